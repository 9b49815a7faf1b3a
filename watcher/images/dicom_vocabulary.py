"""What a DICOM file says of its picture, and whether that fits a class.

Used to doubt a decision, never to take one: what agrees proves nothing (a
whole series has the tags of its protocol), and what is unknown says nothing.
Only words of these lists leave a decoder, whatever a file holds.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Defined terms of Modality (PS3.3, C.7.3.1.1.1) that are pictures of patients. XR is in use, though not defined.
_XRAY = _words("CR DX RG RF XR")
MODALITIES = _XRAY | _words(
    """BDUS BI BMD CT DG ECG ES GM IO IVOCT IVUS MG MR NM OAM OCT OP OPM OPT OPTENF OPV PT PX RTDOSE RTIMAGE SEG SM TG
    US XA XC"""
)

# Defined terms of Body Part Examined (PS3.16, annex L), without those that are anywhere ("WHOLEBODY").
_CHEST_AND_ABDOMEN = _words("CHESTABDOMEN CHESTABDPELVIS NECKCHESTABDOMEN NECKCHESTABDPELV")
_HEAD = _words(
    """BRAIN CEREBRUM EAR EYE FACE FOREHEAD HEAD HEADNECK IAC JAW MANDIBLE MASTOID MAXILLA NASALBONE NOSE ORBIT
    PARANASALSINUS PITUITARY SELLA SINUS SKULL TEMPORALBONE TMJ ZYGOMA"""
)
_CHEST = _CHEST_AND_ABDOMEN | _words(
    "CHEST CLAVICLE CORONARYARTERY HEART LUNG MEDIASTINUM NECKCHEST RIB STERNUM THORAX"
)
_ABDOMEN = _CHEST_AND_ABDOMEN | _words(
    """ABDOMEN ABDOMENPELVIS ADRENAL BLADDER COLON GALLBLADDER KIDNEY LIVER PANCREAS PELVIS SPLEEN STOMACH
    UPPERABDOMEN"""
)
_HAND = _words("CARPUS EXTREMITY FINGER HAND METACARPUS THUMB UPPEREXTREMITY UPPERLIMB WRIST")
_BREAST = _words("BREAST")
_NONE_OF_THESE = _words(
    """ANKLE ARM CALCANEUS CSPINE CTSPINE ELBOW FEMUR FOOT FOREARM HIP HUMERUS KNEE LEG LOWERLEG LSPINE LSSPINE NECK
    PATELLA PROSTATE SCAPULA SHOULDER SPINE SSPINE TLSPINE TOE TSPINE UTERUS"""
)
PARTS = _HEAD | _CHEST | _ABDOMEN | _HAND | _BREAST | _NONE_OF_THESE

_AGREES = {
    "ChestCT": (_words("CT"), _CHEST),
    "AbdomenCT": (_words("CT"), _ABDOMEN),
    "HeadCT": (_words("CT"), _HEAD),
    "BreastMRI": (_words("MR"), _BREAST),
    "CXR": (_XRAY, _CHEST),
    "Hand": (_XRAY, _HAND),
}


def modality(said: object) -> str | None:
    """The word for it, if it is one that says something."""
    return _known(said, MODALITIES)


def body_part(said: object) -> str | None:
    """The word for it, if it is one that says something. "C-Spine" and "C SPINE" are CSPINE."""
    return _known(said, PARTS)


def _known(said: object, words: frozenset[str]) -> str | None:
    text = "".join(letter for letter in said.upper() if letter.isalnum()) if isinstance(said, str) else ""
    return text if text in words else None


def disagreement(label: str, modality: str | None, body_part: str | None) -> str | None:
    """In words, what speaks against a class; None where nothing does. A class that is not known here agrees."""
    if label not in _AGREES:
        return None
    modalities, parts = _AGREES[label]
    against = []
    if modality is not None and modality not in modalities:
        against.append(f"Modality {modality}")
    if body_part is not None and body_part not in parts:
        against.append(f"BodyPartExamined {body_part}")
    return f"the file says {' and '.join(against)}" if against else None
