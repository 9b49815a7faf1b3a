"""Check the Modality and the Body Part Examined of a DICOM file against a class.

The tags can only raise a doubt about a decision. If they agree with it, that proves nothing, because a whole series
has the tags of its protocol. Unknown words say nothing either. Only the words listed here leave a decoder.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The defined terms of Modality for pictures of patients (PS3.3, C.7.3.1.1.1). XR is in use, but not defined.
_XRAY = _words("CR DX RG RF XR")
MODALITIES = _XRAY | _words(
    """BDUS BI BMD CT DG ECG ES GM IO IVOCT IVUS MG MR NM OAM OCT OP OPM OPT OPTENF OPV PT PX RTDOSE RTIMAGE SEG SM TG
    US XA XC"""
)

# The defined terms of Body Part Examined (PS3.16, annex L), except for those of no single place ("WHOLEBODY").
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

_EXPECTED = {
    "ChestCT": (_words("CT"), _CHEST),
    "AbdomenCT": (_words("CT"), _ABDOMEN),
    "HeadCT": (_words("CT"), _HEAD),
    "BreastMRI": (_words("MR"), _BREAST),
    "CXR": (_XRAY, _CHEST),
    "Hand": (_XRAY, _HAND),
}


def modality(value: object) -> str | None:
    """Return the defined term for the value of a tag, or None if there is none."""
    return _term(value, MODALITIES)


def body_part(value: object) -> str | None:
    """Return the defined term for the value of a tag, or None. "C-Spine" and "C SPINE" are CSPINE."""
    return _term(value, PARTS)


def _term(value: object, terms: frozenset[str]) -> str | None:
    text = "".join(letter for letter in value.upper() if letter.isalnum()) if isinstance(value, str) else ""
    return text if text in terms else None


def disagreement(label: str, modality: str | None, body_part: str | None) -> str | None:
    """Return in words how the tags contradict a class, or None if they do not.

    Nothing contradicts a class that is not listed here.
    """
    if label not in _EXPECTED:
        return None
    modalities, parts = _EXPECTED[label]
    against = []
    if modality is not None and modality not in modalities:
        against.append(f"Modality {modality}")
    if body_part is not None and body_part not in parts:
        against.append(f"BodyPartExamined {body_part}")
    return f"the file says {' and '.join(against)}" if against else None
