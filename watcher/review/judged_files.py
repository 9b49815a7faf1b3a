"""Find the file that a person wants to judge."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from watcher.core import no_overwrite
from watcher.core.errors import Exit, Fatal
from watcher.core.records import signed
from watcher.filing import quarantine_notes
from watcher.filing.destinations import Destinations
from watcher.ledger.reader import IN_PLACE, LedgerEntry, LedgerReader


@dataclass(frozen=True)
class JudgedFile:
    """A file that a person judges: its path, the name to file it under, and the decision that put it there."""

    path: str
    name: str
    digest: str
    entry: LedgerEntry | None


def find(ledger_reader: LedgerReader, reference: str, places: Destinations) -> JudgedFile:
    """Return the file that ``reference`` names.

    A reference is a path, the name of a file in review, or the number of the decision that put the file where it lies.

    Raises:
        Fatal: exit code 2; the reference names no image that was filed here. Exit code 1; the file is gone, can not
            be read, was changed, or is being moved just now.
    """
    path = _path(ledger_reader, reference, places)
    digest, stamp = _read(path)
    # The order matters: a file that has arrived since was decided before `unended` is read, and a decision that is
    # not in `unended` has its ending by the time that `entries` is read.
    moving = {(entry.size, entry.mtime_ns) for entry in ledger_reader.unended()}
    entries = list(ledger_reader.entries(f"{IN_PLACE} and e.destination = ?", (os.fsencode(path),)))
    entry = entries[-1] if entries else _renamed(ledger_reader, path, digest)
    if entry is None and stamp in moving:
        raise Fatal(f"{path} is being moved just now", "Try again.")
    if entry is None and path.endswith((quarantine_notes.SUFFIX, no_overwrite.PARTIAL)):
        raise Fatal(f"{path} is no image", "Name the image that this file belongs to.", Exit.USAGE)
    if entry is not None and entry.digest not in (None, digest):
        raise Fatal(f"{path} was changed since it was filed", "See `mednet-watcher explain` for what was decided.")
    return JudgedFile(path, entry.name if entries and entry else os.path.basename(path), digest, entry)


def _renamed(ledger_reader: LedgerReader, path: str, digest: str) -> LedgerEntry | None:
    """Return the decision that put these bytes into this directory for review, if a person renamed the file since."""
    for entry in ledger_reader.entries(f"{IN_PLACE} and outcome = 'review' and digest = ?", (digest,)):
        old_path = entry.destination
        if old_path and os.path.dirname(old_path) == os.path.dirname(path) and not os.path.lexists(old_path):
            return entry
    return None


def _path(ledger_reader: LedgerReader, reference: str, places: Destinations) -> str:
    """Return the path that ``reference`` names, written with the directories of the config as the ledger does."""
    no_such_file = not os.path.lexists(reference) and not os.path.lexists(places.review / reference)
    if (number := re.fullmatch(r"#?([0-9]{1,18})", reference)) and (reference[0] == "#" or no_such_file):
        entry = next(ledger_reader.entries(f"{IN_PLACE} and d.id = ?", (int(number[1]),)), None)
        if entry is None or entry.destination is None:
            raise Fatal(
                f"decision {reference} is unknown, or its file no longer lies where it was put",
                "See `mednet-watcher explain`.",
                Exit.USAGE,
            )
        return entry.destination
    if "/" not in reference and not os.path.lexists(reference):
        return str(places.review / reference)
    path = os.path.abspath(reference)
    if next(ledger_reader.entries(f"{IN_PLACE} and e.destination = ?", (os.fsencode(path),)), None) is not None:
        return path
    directory = Path(os.path.realpath(os.path.dirname(path)))
    for place in vars(places).values():
        real_place = os.path.realpath(place)
        if directory.is_relative_to(real_place):
            return str(place / directory.relative_to(real_place) / os.path.basename(path))
    raise Fatal(f"{reference} was not filed here", "Name a file in review or in a class directory.", Exit.USAGE)


def _read(path: str) -> tuple[str, tuple[int, int]]:
    """Return the digest of a file, and what stays the same when it is moved: its size and modification time."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Fatal(f"{path} is no regular file", "Only images can be judged.", Exit.USAGE)
        return no_overwrite.digest(Path(path)), (status.st_size, signed(status.st_mtime_ns))
    except OSError as error:
        raise Fatal(f"{path} can not be read: {error.strerror}", "See `mednet-watcher explain`.") from error
