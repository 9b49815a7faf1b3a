"""Find the decisions about a file in the ledger, and where the file lies now."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from watcher.core import no_overwrite
from watcher.inbox import claims
from watcher.ledger.reader import LedgerEntry, LedgerReader

NUMBER = re.compile(r"#?([0-9]{1,18})")
"""The number of a decision."""

_DIGEST = re.compile(r"[0-9a-fA-F]{8,64}")


def find(ledger_reader: LedgerReader, reference: str, inbox: Path) -> list[LedgerEntry]:
    """Return the decisions about the files that ``reference`` can mean, in the order in which they were made.

    A reference is a path, a name, the number of a decision, or 8 or more digits of a SHA-256.
    """
    entries = {entry.id: entry for entry in _matches(ledger_reader, reference, inbox)}
    if not entries and (number := NUMBER.fullmatch(reference)):
        entries = {entry.id: entry for entry in ledger_reader.entries("d.id = ?", (int(number[1]),))}
    return sorted(entries.values(), key=lambda entry: (entry.decided_at, entry.id))


def _matches(ledger_reader: LedgerReader, reference: str, inbox: Path) -> Iterator[LedgerEntry]:
    """Yield the decisions that a reference can mean other than by their number, some more than once."""
    if reference.startswith("#") and NUMBER.fullmatch(reference):
        return
    path = os.path.abspath(reference)
    if os.path.lexists(path) or "/" in reference:
        raw_path = os.fsencode(path)
        yield from ledger_reader.entries(
            "d.source in (?, ?) or e.destination = ?", (raw_path, os.fsencode(inbox / reference), raw_path)
        )
        yield from ledger_reader.entries("d.digest = ?", (_digest(path),))
    if "/" not in reference:
        name = os.fsencode(reference)
        ending = b"/" + name
        tail = (-len(ending), ending)
        where = "d.name = ? or substr(e.destination, ?) = ? or substr(d.source, ?) = ?"
        yield from ledger_reader.entries(where, (name, *tail, *tail))
    if _DIGEST.fullmatch(reference):
        digits = reference.lower()
        yield from ledger_reader.entries("d.digest >= ? and d.digest < ?", (digits, digits + "g"))


def _digest(path: str) -> str | None:
    """Return the SHA-256 of a regular file, or None if it can not be read."""
    try:
        return no_overwrite.digest(Path(path)) if stat.S_ISREG(os.lstat(path).st_mode) else None
    except OSError:
        return None


def with_inbox_path(entry: LedgerEntry) -> LedgerEntry:
    """Return a decision with its path in the inbox, if the ledger has the path in the claims directory instead.

    A file that is put back goes through that directory. It lies in the inbox then, under its name or the next free one.
    """
    directory = claims.unclaimed_directory(Path(entry.directory))
    if str(directory) == entry.directory:
        return entry
    return replace(entry, directory=str(directory), destination=entry.destination and str(directory / entry.name))


def present_state(ledger_reader: LedgerReader, entry: LedgerEntry) -> tuple[str, int | str | None]:
    """Return what has become of the file of a decision since, and the decision or process that did it.

    The state is one of ``unended``, ``stayed``, ``restored``, ``moved_on``, ``gone``, ``there``, ``changed`` and
    ``unreadable``.
    """
    if entry.state is None:
        return "unended", entry.owner
    if entry.destination is None:
        return "stayed", None
    if entry.restored_by is not None:
        by = next(ledger_reader.entries("d.id = ?", (entry.restored_by,)))
        return ("restored" if by.outcome == "restored" else "moved_on"), by.id
    later_entries = ledger_reader.entries(
        "d.source = ? and e.state = 'filed'", (os.fsencode(entry.destination),), after=entry.id
    )
    if (later := next(later_entries, None)) is not None:
        return "moved_on", later.id
    if not os.path.lexists(entry.destination):
        return "gone", None
    if entry.digest is None:
        return "there", None
    digest = _digest(entry.destination)
    return ("unreadable" if digest is None else "there" if digest == entry.digest else "changed"), None
