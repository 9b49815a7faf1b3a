"""Select the files that ``retry`` and ``undo`` put back, and the names that they get."""

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
from watcher.ledger.reader import IN_PLACE, LedgerEntry, LedgerReader, Verdict

NameOf = Callable[[LedgerEntry], str]
"""A function that returns the name that the file of a decision is to get, with a relative path if it has one."""

_AGO = re.compile(r"(\d{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class PutBackRequest:
    """A request to put a file back.

    ``path`` is where the file lies, ``name`` the name that it is to get, ``entry`` the decision that is taken back.
    ``verdict`` is a person's verdict that put or left the file there. If ``stays`` is true, the file is left alone,
    because that verdict is not to be withdrawn.
    """

    path: str
    name: str
    entry: LedgerEntry | None
    verdict: Verdict | None = None
    stays: bool = False


def filed_name(entry: LedgerEntry) -> str:
    """Return the name that the decision gave the file."""
    return entry.name


def name_in_inbox(inbox: Path, *, recursive: bool) -> NameOf:
    """Return a function that gives files the names that they had in this inbox.

    If ``recursive`` is true, the names have paths relative to the inbox.
    """

    def name_of(entry: LedgerEntry) -> str:
        source = Path(entry.source)
        directory = claims.unclaimed_directory(source.parent)
        if not directory.is_relative_to(inbox):
            return entry.name
        return str(directory.relative_to(inbox) / source.name) if recursive else source.name

    return name_of


def quarantined(
    ledger_reader: LedgerReader, reason: str | None = None, name_of: NameOf = filed_name
) -> list[PutBackRequest]:
    """Return a request for each file that lies in quarantine, as far as the ledger knows.

    Of two decisions for one path the later counts. Files that somebody removed by hand are passed over.
    """
    where = f"{IN_PLACE} and outcome = 'quarantine'" + (" and reason = ?" if reason is not None else "")
    entries = ledger_reader.entries(where, () if reason is None else (reason,))
    requests = {entry.destination: _request(entry, name_of) for entry in entries}
    return [request for path, request in requests.items() if path is not None and os.path.lexists(path)]


def named(
    ledger_reader: LedgerReader, files: Iterable[str], quarantine: Path, name_of: NameOf = filed_name
) -> list[PutBackRequest]:
    """Return a request for each of these files in quarantine, also for files that the ledger does not know.

    A name without a directory is a name in quarantine.

    Raises:
        Fatal: exit code 2; a file lies elsewhere, or is a directory, a note or an unfinished copy.
    """
    known = {request.path: request for request in quarantined(ledger_reader, name_of=name_of)}
    moving = {(entry.size, entry.mtime_ns): entry for entry in ledger_reader.unended() if entry.outcome == "quarantine"}
    requests = {}
    for file in files:
        folder, name = os.path.split(os.path.abspath(file) if os.path.dirname(file) else quarantine / file)
        path = str(quarantine / name)
        if os.path.realpath(folder) != os.path.realpath(quarantine):
            raise Fatal(f"{file} does not lie in {quarantine}", "Only quarantined files can be retried.", Exit.USAGE)
        if path not in known and (
            name.endswith((quarantine_notes.SUFFIX, no_overwrite.PARTIAL)) or _is_directory(path)
        ):
            raise Fatal(f"{file} is no quarantined file", "Name the file that it belongs to.", Exit.USAGE)
        requests[path] = known.get(path) or PutBackRequest(path, name, moving.get(_size_and_time(path)))
    return list(requests.values())


def _size_and_time(path: str) -> tuple[int | None, int | None]:
    """Return the size and time of a file. Both stay the same when it is moved, also to another file system."""
    try:
        status = os.lstat(path)
    except OSError:
        return None, None
    return status.st_size, signed(status.st_mtime_ns)


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def filed(
    ledger_reader: LedgerReader,
    *,
    since: datetime | None = None,
    batch: int | None = None,
    number: int | None = None,
    verdicts: bool = False,
    name_of: NameOf = filed_name,
) -> Iterator[PutBackRequest]:
    """Yield a request for each file that was filed and not put back: since a time, of a batch, or by a decision.

    Files that people judged stay, unless ``verdicts`` is true or the decision is given by its ``number``. Files that
    the daemon files after this call are not included.
    """
    condition: tuple[str, str | int | None]
    if since is not None:
        condition = ("e.ended_at >= ?", since.astimezone(UTC).isoformat(timespec="milliseconds"))
    else:
        condition = ("d.id = ?", number) if batch is None else ("d.batch = ?", batch)
    for entry in ledger_reader.entries(f"{IN_PLACE} and {condition[0]}", (condition[1],)):
        verdict = ledger_reader.standing_verdict(entry)
        stays = verdict is not None and number is None and not verdicts
        yield replace(_request(entry, name_of), verdict=verdict, stays=stays)


def parse_since(text: str, now: datetime) -> datetime:
    """Return the time for a text such as ``2h``, ``30m`` or ``1d`` ago, or an ISO 8601 time, by default local.

    Raises:
        Fatal: exit code 2; the text is no time.
    """
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Fatal(
            f"{text} is no time", "Say 30m, 2h or 1d for a time ago, or 2026-03-01T14:30.", Exit.USAGE
        ) from error


def _request(entry: LedgerEntry, name_of: NameOf) -> PutBackRequest:
    assert entry.destination is not None  # it was filed
    return PutBackRequest(entry.destination, name_of(entry), entry)
