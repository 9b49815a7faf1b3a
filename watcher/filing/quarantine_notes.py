"""Write a note beside each quarantined file that says why it is there and what to do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from watcher.core import no_overwrite
from watcher.core.printable import printable

SUFFIX = ".reason.json"
"""The end of a note's file name."""

_MOST_BYTES = 1 << 16
"""The number of bytes of a note that are read."""


def write(file: Path, note: Mapping[str, Any], was_filed: Callable[[Path], bool]) -> None:
    """Write a note beside a quarantined file, as JSON, whole or not at all.

    Replace the note of an earlier file of that name, which somebody removed without its note. Do not replace any
    other file, see :func:`remove`. Ignore errors, because the ledger has the reason too.
    """
    path, data = path_beside(file), json.dumps(note, indent=2).encode() + b"\n"
    with contextlib.suppress(OSError):
        try:
            no_overwrite.write_new(path, data)
        except FileExistsError:
            if _is_note(path) and not was_filed(path):
                path.unlink()
                no_overwrite.write_new(path, data)


def remove(file: Path, was_filed: Callable[[Path], bool]) -> None:
    """Remove the note beside a file that has left quarantine, unless another file has come in its place since.

    A producer may send a file with the name of a note. So a file is not removed if ``was_filed`` says that it was
    filed, or if it does not read like a note. Ignore errors.
    """
    path = path_beside(file)
    with contextlib.suppress(OSError):
        # The note of this file is still there, because a note is never written over another file.
        if not os.path.lexists(file) and _is_note(path) and not was_filed(path):
            path.unlink()


def _is_note(path: Path) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MOST_BYTES))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= {"name", "reason", "what_to_do"}


def path_beside(file: Path) -> Path:
    """Return the path of the note for a quarantined file. If the name would be too long, it is cut and gets a hash."""
    raw = os.fsencode(file.name)
    if len(raw) + len(SUFFIX) > no_overwrite.NAME_MAX:
        mark = f"-{hashlib.sha256(raw).hexdigest()[:8]}".encode()
        raw = raw[: no_overwrite.NAME_MAX - len(SUFFIX) - len(mark)] + mark
    return file.with_name(os.fsdecode(raw) + SUFFIX)


ADVICE = {
    "empty": "Ask the sender for the file again.",
    "truncated": "The file is not complete. Ask the sender for it again.",
    "damaged": "The file was changed or cut on its way. Ask the sender for it again.",
    "unsupported_format": "Convert it to a supported format, such as PNG, or keep it out of the inbox.",
    "no_pixel_data": "A DICOM file without a picture, such as a report, a plan or a directory. Keep such files out of "
    "the inbox.",
    "needs_dicom_extra": "Install mednet-watcher[dicom], restart the daemon, then `mednet-watcher retry`.",
    "too_large": "If it is genuine, raise decode.max_bytes or decode.max_pixels.",
    "too_complex": "It would block the decoders. If it is genuine, save it again, as a baseline JPEG or a plain PNG.",
    "no_permission": "Let the daemon's user read what arrives in the inbox.",
    "not_a_file": "Only regular files are sorted.",
    "duplicate": "Its bytes were filed before. Delete it, or put it where it belongs by hand.",
    "name_taken": "Another image of that name was filed before. Find out which of them is right.",
}


def compose(
    name: str, reason: str | None, detail: str | None, digest: str | None, at: datetime
) -> dict[str, str | None]:
    """Return the content of the note for a quarantined file."""
    return {
        "name": printable(name),
        "reason": reason,
        "detail": detail,
        "digest": digest,
        "at": at.isoformat(timespec="seconds"),
        "what_to_do": ADVICE.get(reason or "", "Look at the file. `mednet-watcher retry` puts it back into the inbox."),
    }
