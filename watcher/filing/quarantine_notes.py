"""The file beside one in quarantine that says why it is there, and what to do."""

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

ENDING = ".reason.json"
"""How its name ends."""

_MOST = 1 << 16
"""Bytes of one that is read."""


def explain(destination: Path, reason: Mapping[str, Any], is_a_file: Callable[[Path], bool]) -> None:
    """Put a JSON file with the reason beside a quarantined file, whole at once or not at all.

    One of an earlier file of the name, which somebody removed without it, gives way; no other file does, see
    :func:`unexplain`. Best effort: the ledger has it too.
    """
    place, told = beside(destination), json.dumps(reason, indent=2).encode() + b"\n"
    with contextlib.suppress(OSError):
        try:
            no_overwrite.write_new(place, told)
        except FileExistsError:
            if _is_reason(place) and not is_a_file(place):
                place.unlink()
                no_overwrite.write_new(place, told)


def unexplain(path: Path, is_a_file: Callable[[Path], bool]) -> None:
    """Remove the reason beside a file that has left quarantine. Best effort. It stays if another file came since.

    Producers may send a file that is called like a reason: what ``is_a_file`` says was filed there, or what does
    not read like one, is not touched.
    """
    reason = beside(path)
    with contextlib.suppress(OSError):
        # Looked at first: nothing is moved over a name that is taken, so it is this one that goes.
        if not os.path.lexists(path) and _is_reason(reason) and not is_a_file(reason):
            reason.unlink()


def _is_reason(path: Path) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(_MOST))
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.keys() >= {"name", "reason", "what_to_do"}


def beside(path: Path) -> Path:
    """Where the reason of a quarantined file is written. A name too long for that is cut, and has a mark."""
    raw = os.fsencode(path.name)
    if len(raw) + len(ENDING) > no_overwrite.NAME_MAX:
        mark = f"-{hashlib.sha256(raw).hexdigest()[:8]}".encode()
        raw = raw[: no_overwrite.NAME_MAX - len(ENDING) - len(mark)] + mark
    return path.with_name(os.fsdecode(raw) + ENDING)


ADVICE = {
    "empty": "Ask the sender for the file again.",
    "truncated": "The file is not whole. Ask the sender for it again.",
    "damaged": "The file was changed or cut on its way. Ask the sender for it again.",
    "unsupported_format": "Convert it to a format that is read, PNG say, or keep it out of the inbox.",
    "no_pixel_data": "A DICOM file without a picture (a report, a plan, a directory). Keep such out of the inbox.",
    "needs_dicom_extra": "Install mednet-watcher[dicom], restart the daemon, then `mednet-watcher retry`.",
    "too_large": "If it is genuine, raise decode.max_bytes or decode.max_pixels.",
    "too_complex": "It would hold up the decoders. If it is genuine, save it anew, as a baseline JPEG or a plain PNG.",
    "no_permission": "Let the daemon's user read what arrives in the inbox.",
    "not_a_file": "Only regular files are sorted.",
    "duplicate": "Its bytes were filed before. Delete it, or put it where it belongs by hand.",
    "name_taken": "Another image of that name was filed before. See which of them is right.",
}


def reason(
    name: str, reason: str | None, detail: str | None, digest: str | None, at: datetime
) -> dict[str, str | None]:
    """What is written beside a quarantined file."""
    return {
        "name": printable(name),
        "reason": reason,
        "detail": detail,
        "digest": digest,
        "at": at.isoformat(timespec="seconds"),
        "what_to_do": ADVICE.get(reason or "", "Look at the file. `mednet-watcher retry` puts it back into the inbox."),
    }
