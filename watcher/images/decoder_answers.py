"""Read the answers of decoder processes, which may be hostile."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from watcher.core.records import Decoded, Identity, Rejected
from watcher.images import dicom_filenames, dicom_vocabulary
from watcher.images.decode import SIDE

REASONS = {
    *("empty", "truncated", "damaged", "unreadable", "unsupported_format", "too_large", "too_complex"),
    *("no_permission", "not_a_file", "not_found", "no_pixel_data", "needs_dicom_extra"),
}
"""The reasons for which a decoder may reject a file. They label metrics, so there are few of them."""

Result = Decoded | Rejected


def parse(name: str, message: bytes) -> Result:
    """Return the result in an answer, after a check of its form.

    A hostile file that takes over its decoder can lie about its picture, but it cannot do anything else.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: The answer is malformed.
    """
    line, _, pixels = message.partition(b"\n")
    answer: dict[str, Any] = json.loads(line)
    identity, digest = _parse_identity(answer.get("identity")), answer.get("digest")
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("no digest")
    if "reason" in answer:
        reason = answer["reason"] if answer["reason"] in REASONS else "unreadable"
        return Rejected(name, reason, str(answer["detail"])[:500], identity, digest, answer.get("gone") is True)
    if identity is None or digest is None:
        raise ValueError("an answer without identity or digest")
    image = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)
    frames = answer["frames"]
    if type(frames) is not int:
        raise ValueError("no number of frames")
    modality = dicom_vocabulary.modality(answer["modality"])
    body_part = dicom_vocabulary.body_part(answer["body_part"])
    tags = tuple((str(tag), dicom_filenames.checked(tag, value)) for tag, value in answer["tags"].items())
    blank, decode_ms = answer["blank"] is True, float(answer["decode_ms"])
    return Decoded(name, identity, digest, image, blank, decode_ms, frames, modality, body_part, tags)


def _parse_identity(values: list[int] | None) -> Identity | None:
    if values is None:
        return None
    if len(values) != 4 or not all(type(value) is int for value in values):
        raise ValueError("no identity")
    return Identity(*values)
