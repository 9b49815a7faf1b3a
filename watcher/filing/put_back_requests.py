"""Which files are to be put back, and what they are to be called: what ``retry`` and ``undo`` ask for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from watcher.core import no_overwrite
from watcher.core.errors import Exit, Fatal
from watcher.core.records import signed
from watcher.filing import quarantine_notes
from watcher.inbox import claims
from watcher.ledger.reader import LIES, LedgerEntry, LedgerReader, Verdict

Name = Callable[[LedgerEntry], str]
"""What a file is to be called that a decision put where it lies, with its path if it goes below."""

_AGO = re.compile(r"(\d{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class PutBackRequest:
    """A file that is to be put back: where it lies, what it is to be called, and the decision that it takes back.

    ``said`` is the word of a person by which it lies there. It ``stays`` if that is not to be withdrawn.
    """

    path: str
    name: str
    entry: LedgerEntry | None
    said: Verdict | None = None
    stays: bool = False


def by_name(entry: LedgerEntry) -> str:
    """The name that the decision gave it."""
    return entry.name


def as_it_came(inbox: Path, *, recursive: bool) -> Name:
    """The name it had in this inbox; with its path there, if the directories below are sorted too."""

    def name(entry: LedgerEntry) -> str:
        source = Path(entry.source)
        directory = claims.unclaimed_directory(source.parent)
        if not directory.is_relative_to(inbox):
            return entry.name
        return str(directory.relative_to(inbox) / source.name) if recursive else source.name

    return name


def quarantined(ledger_reader: LedgerReader, reason: str | None = None, name: Name = by_name) -> list[PutBackRequest]:
    """All that should lie in quarantine, as far as the ledger knows. Of two under one path the later counts.

    What somebody removed by hand is not missed.
    """
    where = f"{LIES} and outcome = 'quarantine'" + (" and reason = ?" if reason is not None else "")
    found = ledger_reader.entries(where, () if reason is None else (reason,))
    requests = {entry.destination: _wish(entry, name) for entry in found}
    return [request for path, request in requests.items() if path is not None and os.path.lexists(path)]


def named(
    ledger_reader: LedgerReader, files: Iterable[str], quarantine: Path, to_name: Name = by_name
) -> list[PutBackRequest]:
    """These files in the quarantine directory, also those that the ledger does not know of. A bare name is one in it.

    Raises:
        Fatal: exit code 2; one lies elsewhere, or is no file of its own.
    """
    known = {request.path: request for request in quarantined(ledger_reader, name=to_name)}
    moving = {(entry.size, entry.mtime_ns): entry for entry in ledger_reader.unended() if entry.outcome == "quarantine"}
    requests = {}
    for file in files:
        folder, name = os.path.split(os.path.abspath(file) if os.path.dirname(file) else quarantine / file)
        path = str(quarantine / name)
        if os.path.realpath(folder) != os.path.realpath(quarantine):
            raise Fatal(f"{file} does not lie in {quarantine}", "Only quarantined files can be retried.", Exit.USAGE)
        if path not in known and (
            name.endswith((quarantine_notes.ENDING, no_overwrite.PARTIAL)) or _is_directory(path)
        ):
            raise Fatal(f"{file} is no quarantined file", "Name the file that it belongs to.", Exit.USAGE)
        requests[path] = known.get(path) or PutBackRequest(path, name, moving.get(_size_and_time(path)))
    return list(requests.values())


def _size_and_time(path: str) -> tuple[int | None, int | None]:
    """What a file keeps when it is moved, also to another file system."""
    try:
        found = os.lstat(path)
    except OSError:
        return None, None
    return found.st_size, signed(found.st_mtime_ns)


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def filed(
    ledger_reader: LedgerReader,
    *,
    since: datetime | None = None,
    batch: int | None = None,
    number: int | None = None,
    verdicts: bool = False,
    name: Name = by_name,
) -> Iterator[PutBackRequest]:
    """What was filed and not put back since: from a time on, of one batch, or by one decision.

    What people judged stays, unless its decision is named, or ``verdicts`` are to be withdrawn.
    What the daemon files from now on is not in it.
    """
    which: tuple[str, str | int | None]
    if since is not None:
        which = ("e.ended_at >= ?", since.astimezone(UTC).isoformat(timespec="milliseconds"))
    else:
        which = ("d.id = ?", number) if batch is None else ("d.batch = ?", batch)
    for entry in ledger_reader.entries(f"{LIES} and {which[0]}", (which[1],)):
        said = ledger_reader.judgement(entry)
        stays = said is not None and number is None and not verdicts
        yield replace(_wish(entry, name), said=said, stays=stays)


def since(text: str, now: datetime) -> datetime:
    """The time that ``2h``, ``30m``, ``1d`` or an ISO 8601 time means; without an offset it is local time.

    Raises:
        Fatal: exit code 2; it means none.
    """
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Fatal(
            f"{text} is no time", "Say 30m, 2h or 1d for a time ago, or 2026-03-01T14:30.", Exit.USAGE
        ) from error


def _wish(entry: LedgerEntry, name: Name) -> PutBackRequest:
    assert entry.destination is not None  # it was filed
    return PutBackRequest(entry.destination, name(entry), entry)
