"""Compare the ledger with the disk: every file must lie where it was filed, with its bytes, and no other. Reads only.

The disk is walked first and the ledger read after it. So files that a daemon
files meanwhile are not examined. Every difference is checked a second time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from watcher.core import lock, no_overwrite
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.records import signed
from watcher.filing import quarantine_notes
from watcher.filing.audit_report import Finding, Kind, Report
from watcher.filing.destinations import Destinations
from watcher.inbox import claims
from watcher.inbox.scan import Inbox
from watcher.ledger.reader import LedgerEntry, LedgerReader


@dataclass(frozen=True)
class UnknownFile:
    """A file on disk for which no decision was found so far."""

    path: str
    size: int
    inode: int
    mtime_ns: int


class Audit:
    """An audit. Call :meth:`run` once."""

    def __init__(
        self, ledger_reader: LedgerReader, places: Destinations, inbox: Inbox, state: Path, *, quick: bool
    ) -> None:
        self._ledger_reader, self._inbox, self._state, self._quick = ledger_reader, inbox, state, quick
        named = {
            "sorted": places.sorted,
            "review": places.review,
            "quarantine": places.quarantine,
            "rejected": places.rejected,
        }
        self._places = dict(sorted(named.items(), key=lambda place: -len(str(place[1]))))  # one may lie in another
        self._report = Report()
        self._suspects: list[LedgerEntry] = []
        self._vanished: list[LedgerEntry] = []
        self._digests: dict[str, str | None] = {}
        self._disk = sqlite3.connect("", isolation_level=None)  # in a temporary file: memory stays bounded
        self._disk.execute("pragma journal_mode = off")
        self._disk.execute(
            "create table file (path blob primary key, place text, size int, inode int, mtime_ns int, decision int)"
            " without rowid"
        )
        self._disk.execute("create table shadow (size int, inode int, mtime_ns int, digest text)")
        self._disk.execute("create index shadow_by_size on shadow (size)")
        self._disk.execute("begin")

    def run(self) -> Report:
        """Compare everything, and return the report.

        Raises:
            Fatal: a directory or the ledger can not be read.
        """
        with contextlib.closing(self._disk):
            return self._compare()

    def _compare(self) -> Report:
        partials = [path for place in (*self._places.items(), None) for path in self._walk(place)]
        last_id = self._ledger_reader.last_id()
        unended_before = {entry.id for entry in self._ledger_reader.unended()}
        for entry in self._ledger_reader.entries(upto=last_id):
            if entry.id not in unended_before:
                self._check_entry(entry)
        for number in sorted(unended_before):
            self._check_entry(self._reread(number))
        missing, unended = self._check_suspects_again(), self._report_unended()
        unknown = self._unknown_files(unended)
        self._report_missing(missing, unknown)
        self._report_unknown(unknown)
        if not any(self._is_owner_alive(entry) for entry in unended):
            for path in partials:
                if os.path.lexists(path):
                    self._report_finding("partial", path, os.path.basename(path))
        self._report.on_disk.update(dict(self._disk.execute("select place, count(*) from file group by 1").fetchall()))
        return self._report

    def _walk(self, place: tuple[str, Path] | None) -> Iterator[str]:
        """Note every file of a directory, or without one count the inbox. Yield the unfinished copies."""
        if place is None:
            try:
                self._report.pending = sum(1 for _ in self._inbox.scan()) + claims.count_files(self._inbox.path)
            except Retry as error:
                raise Fatal(str(error), "Mount it, or set inbox.path.", Exit.DIRECTORY) from error
            yield from map(str, self._inbox.path.glob(f".*{no_overwrite.PARTIAL}"))
            return
        for folder, folders, names in os.walk(place[1], onerror=_refuse):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in names + links:
                path = os.path.join(folder, name)
                if name.startswith(".") and name.endswith(no_overwrite.PARTIAL):
                    yield path
                else:
                    self._note(path, place[0])

    def _note(self, path: str, place: str) -> bool:
        """Note a file on disk. Return False if it is gone."""
        try:
            status = os.lstat(path)
        except OSError:
            return False
        row = (os.fsencode(path), place, status.st_size, signed(status.st_ino), signed(status.st_mtime_ns))
        self._disk.execute("insert or ignore into file values (?, ?, ?, ?, ?, null)", row)
        return True

    def _check_entry(self, entry: LedgerEntry) -> None:
        """Count a decision, and check that its file is where it should be."""
        if entry.state == "shadowed":
            row = (entry.size, None if entry.inode is None else signed(entry.inode), entry.mtime_ns, entry.digest)
            self._disk.execute("insert into shadow values (?, ?, ?, ?)", row)
        if entry.state == "missing" and not self._turned_up(entry):
            self._vanished.append(entry)
        if entry.state != "filed":
            return
        if entry.outcome == "restored":
            self._report.elsewhere += claims.inbox_of(Path(entry.directory)) != self._inbox.path
            return
        self._report.filed[entry.outcome] += 1
        if entry.restored_by is not None:
            self._report.restored[entry.outcome] += 1
        elif not self._is_there(entry):
            self._suspects.append(entry)

    def _turned_up(self, entry: LedgerEntry) -> bool:
        """Return True if a file that was missing after a crash was filed since."""
        later = self._ledger_reader.entries("d.digest = ? and e.state = 'filed'", (entry.digest,), after=entry.id)
        return entry.digest is not None and next(later, None) is not None

    def _is_there(self, entry: LedgerEntry) -> bool:
        """Return True if a file lies where it was filed, with its bytes, and belongs to no other decision.

        Then note that it belongs to this decision.
        """
        assert entry.destination is not None
        path = os.fsencode(entry.destination)
        row = self._row(path)
        if row is None and self._note(entry.destination, entry.outcome):
            row = self._row(path)
        if row is None or row[1] is not None or entry.size not in (None, row[0]):
            return False
        if entry.digest is not None and not self._quick and self._digest(entry.destination) != entry.digest:
            return False
        self._digests.pop(entry.destination, None)
        self._disk.execute("update file set decision = ? where path = ?", (entry.id, path))
        return True

    def _row(self, path: bytes) -> tuple[int, int | None] | None:
        row: tuple[int, int | None] | None
        row = self._disk.execute("select size, decision from file where path = ?", (path,)).fetchone()
        return row

    def _digest(self, path: str) -> str | None:
        """Return the SHA-256 of a file, None if it is no regular file or can not be read. Cache it for later checks."""
        if path not in self._digests:
            try:
                regular = stat.S_ISREG(os.lstat(path).st_mode)
                self._digests[path] = no_overwrite.digest(Path(path)) if regular else None
            except OSError:
                self._digests[path] = None
        return self._digests[path]

    def _reread(self, number: int) -> LedgerEntry:
        return next(self._ledger_reader.entries("d.id = ?", (number,)))

    def _check_suspects_again(self) -> list[LedgerEntry]:
        """Check the files that were not in place once more. Report those with other bytes, return those missing."""
        missing = []
        moving = {entry.restores for entry in self._ledger_reader.unended()}
        for suspect in self._suspects:
            entry = self._reread(suspect.id)
            assert entry.destination is not None
            if entry.restored_by is not None:
                self._report.restored[entry.outcome] += 1
            elif entry.id not in moving:
                exists = os.path.lexists(entry.destination)
                row = self._row(os.fsencode(entry.destination))
                if not exists or row is None or row[1] is not None:
                    missing.append(entry)
                    continue
                self._disk.execute(
                    "update file set decision = ? where path = ?", (entry.id, os.fsencode(entry.destination))
                )
                readable = os.access(entry.destination, os.R_OK) or os.path.islink(entry.destination)
                self._report_finding("changed" if readable else "unreadable", entry.destination, entry.name, entry.id)
        return missing

    def _report_unended(self) -> list[LedgerEntry]:
        """Return the decisions without an ending, and report those of dead owners."""
        entries = self._ledger_reader.unended()
        for entry in entries:
            if not self._is_owner_alive(entry):
                self._report_finding("unended", entry.source, entry.name, entry.id)
        return entries

    def _is_owner_alive(self, entry: LedgerEntry) -> bool:
        return lock.holder(self._state / f"{entry.owner}.lock") is not None

    def _unknown_files(self, unended: list[LedgerEntry]) -> dict[str, UnknownFile]:
        """Return the files that belong to no decision and are not being moved now, without notes beside their files."""
        moving = {(entry.inode, entry.size, entry.mtime_ns) for entry in unended}
        copying = {(entry.size, entry.mtime_ns) for entry in unended}
        directories = {entry.directory for entry in unended}
        unknown = {}
        query = "select path, size, inode, mtime_ns from file where decision is null order by path"
        for raw, size, inode, mtime_ns in self._disk.execute(query).fetchall():
            file = UnknownFile(os.fsdecode(raw), size, inode % (1 << 64), mtime_ns)
            is_gone = not os.path.lexists(file.path)
            is_copied = os.path.dirname(file.path) in directories and (size, mtime_ns) in copying
            is_moving = (file.inode, size, mtime_ns) in moving or is_copied
            is_note = file.path.endswith(quarantine_notes.SUFFIX)
            if is_gone or is_note:
                self._disk.execute("delete from file where path = ?", (raw,))
            if is_note and not is_gone and not self._has_file(raw):
                self._report_finding("stray_reason", file.path, os.path.basename(file.path))
            elif not (is_gone or is_note or is_moving):
                unknown[file.path] = file
        return unknown

    def _has_file(self, note: bytes) -> bool:
        """Return True if a note lies beside its file, whose long name may be cut in the note's."""
        stem = note[: -len(quarantine_notes.SUFFIX)]
        if os.path.lexists(stem):
            return True
        if len(os.path.basename(note)) < no_overwrite.NAME_MAX:
            return False
        start = stem[: -len("-01234567")]
        query = "select path from file where path > ? and substr(path, 1, ?) = ? and path != ?"
        others = self._disk.execute(query, (start, len(start), start, note))
        return any(os.fsencode(quarantine_notes.path_beside(Path(os.fsdecode(path)))) == note for (path,) in others)

    def _report_missing(self, missing: list[LedgerEntry], unknown: dict[str, UnknownFile]) -> None:
        """Report the missing files, and where the same bytes lie. A file found so is no longer unknown."""
        by_size: dict[int | None, list[str]] = defaultdict(list)
        for file in unknown.values():
            by_size[file.size].append(file.path)
        for name in self._inbox.scan() if missing or self._vanished else ():
            if (identity := self._inbox.identify(name)) is not None:
                by_size[identity.size].append(str(self._inbox.path / name))
        for entry in (*missing, *self._vanished):
            copies = (path for path in by_size[entry.size] if entry.digest and self._digest(path) == entry.digest)
            where = next(copies, None)
            if where is not None:
                by_size[entry.size].remove(where)
                unknown.pop(where, None)
            path = entry.destination or entry.source
            self._report_finding("moved" if where else "missing", path, entry.name, entry.id, where)

    def _report_unknown(self, unknown: dict[str, UnknownFile]) -> None:
        for path, file in unknown.items():
            digest = None if self._quick else self._digest(path)
            duplicate = self._ledger_reader.in_place_with_digest(digest) if digest else None
            if duplicate is None and self._was_shadowed(file):
                self._report.by_people += 1
                continue
            where = self._reread(duplicate).destination if duplicate else None
            self._report_finding("doubled" if duplicate else "unknown", path, os.path.basename(path), duplicate, where)

    def _was_shadowed(self, file: UnknownFile) -> bool:
        """Return True if shadow mode decided on this file, by inode and time or by its bytes. Then people sorted it."""
        query = "select inode, mtime_ns, digest from shadow where size = ?"
        rows = self._disk.execute(query, (file.size,)).fetchall()
        stamp = (signed(file.inode), file.mtime_ns)
        if any((inode, mtime_ns) == stamp for inode, mtime_ns, _ in rows):
            return True
        return bool(rows) and self._digest(file.path) in {digest for *_, digest in rows if digest is not None}

    def _report_finding(
        self, kind: Kind, path: str, name: str, number: int | None = None, where: str | None = None
    ) -> None:
        self._report.findings.append(Finding(kind, path, name, number, where))


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise Fatal(
            f"{error.filename} can not be read: {error.strerror}",
            "Run this as the daemon's user.",
            Exit.DIRECTORY,
        ) from error
