"""Names for DICOM files, made from what they say of themselves: ``output.dicom_name``.

A template such as ``{Modality}-{BodyPartExamined}-{SOPInstanceUID}``. Of the
tags in :data:`SAFE` nothing leaves a decoder that says who the patient is:
words of the standard, and UIDs as the beginning of their SHA-256. Those in
:data:`PERSONAL` do, and must be asked for.
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
"""What stands for a tag that is missing, or says nothing known."""

EXTENSION = ".dcm"

_LITERAL = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATTERNS = {**dict.fromkeys(UIDS, re.compile("[0-9a-f]{16}")), "StudyDate": re.compile("[0-9]{8}")}


def tags(template: str) -> tuple[str, ...]:
    """The tags that a template names, in its order.

    Raises:
        ValueError: it is none, in words for an operator.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError("must have a tag between each { and }") from error
    found = tuple(tag for _, tag, _, _ in parts if tag is not None)
    if any(kind or conversion for _, _, kind, conversion in parts) or set(found) - {*SAFE, *PERSONAL}:
        raise ValueError(f"must have one of {', '.join((*SAFE, *PERSONAL))} between each {{ and }}")
    if not found or template.startswith(".") or not all(_LITERAL.fullmatch(text) for text, *_ in parts):
        raise ValueError("must have a tag, and but for tags only letters, digits and _ . + -, no dot first")
    return found


def told(tag: str, value: object) -> str:
    """What a file's value of a tag becomes in a name."""
    text = str(value if value is not None else "").strip("\0 ")
    if tag in UIDS and text:
        text = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    elif tag in PERSONAL:
        text = re.sub("[^A-Za-z0-9-]+", "_", text)[:64]
    return checked(tag, text)


def checked(tag: str, text: object) -> str:
    """The same text if it may be part of a name: what a decoder says is not believed."""
    if tag in ("Modality", "BodyPartExamined"):
        known = dicom_vocabulary.modality if tag == "Modality" else dicom_vocabulary.body_part
        return known(text) or UNKNOWN
    good = isinstance(text, str) and _PATTERNS.get(tag, _WORD).fullmatch(text)
    return str(text) if good else UNKNOWN


def name(template: str, said: Mapping[str, str]) -> str:
    """The name of a file that says this of itself."""
    return template.format_map(said) + EXTENSION
