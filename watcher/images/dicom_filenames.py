"""Make names for DICOM files from their tags, by a template such as ``{Modality}-{SOPInstanceUID}``.

The template is the setting ``output.dicom_name``. The tags in :data:`SAFE` do not identify the patient: they give words
of the standard, and the first digits of the SHA-256 of a UID. The tags in :data:`PERSONAL` do identify the patient, and
the operator must allow them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from string import Formatter

from watcher.images import dicom_vocabulary

UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
SAFE = ("Modality", "BodyPartExamined", *UIDS)
PERSONAL = ("PatientID", "AccessionNumber", "StudyDate")

UNKNOWN = "unknown"
"""The text for a tag that is missing or has an unknown value."""

EXTENSION = ".dcm"

_LITERAL = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATTERNS = {**dict.fromkeys(UIDS, re.compile("[0-9a-f]{16}")), "StudyDate": re.compile("[0-9]{8}")}


def tags(template: str) -> tuple[str, ...]:
    """Return the tags in a template, in order.

    Raises:
        ValueError: It is not a template. The text says why, for the operator.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError("must have a tag between each { and }") from error
    names = tuple(tag for _, tag, _, _ in parts if tag is not None)
    if any(format_spec or conversion for _, _, format_spec, conversion in parts) or set(names) - {*SAFE, *PERSONAL}:
        raise ValueError(f"must have one of {', '.join((*SAFE, *PERSONAL))} between each {{ and }}")
    if not names or template.startswith(".") or not all(_LITERAL.fullmatch(text) for text, *_ in parts):
        raise ValueError(
            "must have at least one tag and, between tags, only letters, digits and _ . + -, without a dot at the start"
        )
    return names


def part_of_name(tag: str, value: object) -> str:
    """Return the text for the value of a tag in a name."""
    text = str(value if value is not None else "").strip("\0 ")
    if tag in UIDS and text:
        text = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    elif tag in PERSONAL:
        text = re.sub("[^A-Za-z0-9-]+", "_", text)[:64]
    return checked(tag, text)


def checked(tag: str, text: object) -> str:
    """Return a text that a decoder gave for a tag if it may be part of a name, or else UNKNOWN.

    The text is not trusted, because a hostile file may have taken over the decoder.
    """
    if tag in ("Modality", "BodyPartExamined"):
        term = dicom_vocabulary.modality if tag == "Modality" else dicom_vocabulary.body_part
        return term(text) or UNKNOWN
    valid = isinstance(text, str) and _PATTERNS.get(tag, _WORD).fullmatch(text)
    return str(text) if valid else UNKNOWN


def name(template: str, parts: Mapping[str, str]) -> str:
    """Return the name that a template makes of the parts for its tags."""
    return template.format_map(parts) + EXTENSION
