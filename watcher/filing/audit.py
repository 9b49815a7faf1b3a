"""Ledger against disk: is every file where it was filed, with its bytes, and is there no other? Reads only.

The disk is walked first and the ledger read after: what a daemon files
meanwhile is not looked at, and what seems wrong is looked at once more.
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
class Found:
    """A file on disk that no decision accounts for so far."""

    path: str
    size: int
    inode: int
    mtime_ns: int


class Audit:
    """One audit. Call :meth:`run` once."""

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
        self._places = dict(sorted(named.items(), key=lambda each: -len(str(each[1]))))  # one may lie in another
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
        """Look at everything.

        Raises:
            Fatal: a directory or the ledger can not be read.
        """
        with contextlib.closing(self._disk):
            return self._compare()

    def _compare(self) -> Report:
        partials = [path for place in (*self._places.items(), None) for path in self._walk(place)]
        last = self._ledger_reader.last()
        open_before = {entry.id for entry in self._ledger_reader.unended()}
        for entry in self._ledger_reader.entries(upto=last):
            if entry.id not in open_before:
                self._account(entry)
        for number in sorted(open_before):
            self._account(self._again(number))
        missing, unended = self._confirmed(), self._unended()
        unknown = self._unknown(unended)
        self._match(missing, unknown)
        self._tell_unknown(unknown)
        if not any(self._alive(entry) for entry in unended):
            for path in partials:
                if os.path.lexists(path):
                    self._find("partial", path, os.path.basename(path))
        self._report.on_disk.update(dict(self._disk.execute("select place, count(*) from file group by 1").fetchall()))
        return self._report

    def _walk(self, place: tuple[str, Path] | None) -> Iterator[str]:
        """Note every file of a place (None: only count the inbox). Gives the unfinished copies."""
        if place is None:
            try:
                self._report.pending = sum(1 for _ in self._inbox.scan()) + claims.count_files(self._inbox.path)
            except Retry as error:
                raise Fatal(str(error), "Mount it, or set inbox.path.", Exit.DIRECTORY) from error
            yield from map(str, self._inbox.path.glob(f".*{no_overwrite.PARTIAL}"))
            return
        for folder, folders, names in os.walk(place[1], onerror=_refuse):
            for name in names + [each for each in folders if os.path.islink(os.path.join(folder, each))]:
                path = os.path.join(folder, name)
                if name.startswith(".") and name.endswith(no_overwrite.PARTIAL):
                    yield path
                else:
                    self._note(path, place[0])

    def _note(self, path: str, place: str) -> bool:
        try:
            found = os.lstat(path)
        except OSError:
            return False
        row = (os.fsencode(path), place, found.st_size, signed(found.st_ino), signed(found.st_mtime_ns))
        self._disk.execute("insert or ignore into file values (?, ?, ?, ?, ?, null)", row)
        return True

    def _account(self, entry: LedgerEntry) -> None:
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
        """Whether a file that was nowhere after a crash was filed since."""
        later = self._ledger_reader.entries("d.digest = ? and e.state = 'filed'", (entry.digest,), after=entry.id)
        return entry.digest is not None and next(later, None) is not None

    def _is_there(self, entry: LedgerEntry) -> bool:
        """Whether a file lies where it was filed, with its bytes, and no other decision has it. Then this one does."""
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
        """SHA-256 of a file; None if it is none that can be read. Of those that do not match it is remembered."""
        if path not in self._digests:
            try:
                regular = stat.S_ISREG(os.lstat(path).st_mode)
                self._digests[path] = no_overwrite.digest(Path(path)) if regular else None
            except OSError:
                self._digests[path] = None
        return self._digests[path]

    def _again(self, number: int) -> LedgerEntry:
        return next(self._ledger_reader.entries("d.id = ?", (number,)))

    def _confirmed(self) -> list[LedgerEntry]:
        """What is still not there at a second look: told if others bytes are, given if nothing is."""
        missing = []
        moving = {entry.restores for entry in self._ledger_reader.unended()}
        for suspect in self._suspects:
            entry = self._again(suspect.id)
            assert entry.destination is not None
            if entry.restored_by is not None:
                self._report.restored[entry.outcome] += 1
            elif entry.id not in moving:
                there = os.path.lexists(entry.destination)
                row = self._row(os.fsencode(entry.destination))
                if not there or row is None or row[1] is not None:
                    missing.append(entry)
                    continue
                self._disk.execute(
                    "update file set decision = ? where path = ?", (entry.id, os.fsencode(entry.destination))
                )
                readable = os.access(entry.destination, os.R_OK) or os.path.islink(entry.destination)
                self._find("changed" if readable else "unreadable", entry.destination, entry.name, entry.id)
        return missing

    def _unended(self) -> list[LedgerEntry]:
        """Decisions at work now. Those of the dead are told."""
        entries = self._ledger_reader.unended()
        for entry in entries:
            if not self._alive(entry):
                self._find("unended", entry.source, entry.name, entry.id)
        return entries

    def _alive(self, entry: LedgerEntry) -> bool:
        return lock.holder(self._state / f"{entry.owner}.lock") is not None

    def _unknown(self, unended: list[LedgerEntry]) -> dict[str, Found]:
        """Files that no decision accounts for, nor one that is at work; reason files beside theirs are none."""
        moving = {(entry.inode, entry.size, entry.mtime_ns) for entry in unended}
        directories = {entry.directory for entry in unended}
        unknown = {}
        query = "select path, size, inode, mtime_ns from file where decision is null order by path"
        for raw, size, inode, mtime_ns in self._disk.execute(query).fetchall():
            found = Found(os.fsdecode(raw), size, inode % (1 << 64), mtime_ns)
            gone = not os.path.lexists(found.path)
            stamp = (found.inode, size, mtime_ns)
            at_work = stamp in moving or (
                os.path.dirname(found.path) in directories and stamp[1:] in {m[1:] for m in moving}
            )
            reason = found.path.endswith(quarantine_notes.ENDING)
            if gone or reason:
                self._disk.execute("delete from file where path = ?", (raw,))
            if reason and not gone and not self._has_file(raw):
                self._find("stray_reason", found.path, os.path.basename(found.path))
            elif not (gone or reason or at_work):
                unknown[found.path] = found
        return unknown

    def _has_file(self, reason: bytes) -> bool:
        """Whether a reason lies beside its file. A long name was cut, see reasons.beside."""
        stem = reason[: -len(quarantine_notes.ENDING)]
        if os.path.lexists(stem):
            return True
        if len(os.path.basename(reason)) < no_overwrite.NAME_MAX:
            return False
        begin = stem[: -len("-01234567")]
        query = "select path from file where path > ? and substr(path, 1, ?) = ? and path != ?"
        others = self._disk.execute(query, (begin, len(begin), begin, reason))
        return any(os.fsencode(quarantine_notes.beside(Path(os.fsdecode(path)))) == reason for (path,) in others)

    def _match(self, missing: list[LedgerEntry], unknown: dict[str, Found]) -> None:
        """Tell of the missing, and where the same bytes lie. A file found so is no longer unknown."""
        by_size: dict[int | None, list[str]] = defaultdict(list)
        for found in unknown.values():
            by_size[found.size].append(found.path)
        for name in self._inbox.scan() if missing or self._vanished else ():
            if (identity := self._inbox.identify(name)) is not None:
                by_size[identity.size].append(str(self._inbox.path / name))
        for entry in (*missing, *self._vanished):
            same = (path for path in by_size[entry.size] if entry.digest and self._digest(path) == entry.digest)
            where = next(same, None)
            if where is not None:
                by_size[entry.size].remove(where)
                unknown.pop(where, None)
            path = entry.destination or entry.source
            self._find("moved" if where else "missing", path, entry.name, entry.id, where)

    def _tell_unknown(self, unknown: dict[str, Found]) -> None:
        for path, found in unknown.items():
            digest = None if self._quick else self._digest(path)
            twin = self._ledger_reader.holds_digest(digest) if digest else None
            if twin is None and self._was_shadowed(found):
                self._report.by_people += 1
                continue
            where = self._again(twin).destination if twin else None
            self._find("doubled" if twin else "unknown", path, os.path.basename(path), twin, where)

    def _was_shadowed(self, found: Found) -> bool:
        """Whether shadow mode decided upon this file, by inode and time or by its bytes: people sorted it since."""
        query = "select inode, mtime_ns, digest from shadow where size = ?"
        rows = self._disk.execute(query, (found.size,)).fetchall()
        stamp = (signed(found.inode), found.mtime_ns)
        if any((inode, mtime_ns) == stamp for inode, mtime_ns, _ in rows):
            return True
        return bool(rows) and self._digest(found.path) in {digest for *_, digest in rows if digest is not None}

    def _find(self, kind: Kind, path: str, name: str, number: int | None = None, where: str | None = None) -> None:
        self._report.findings.append(Finding(kind, path, name, number, where))


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise Fatal(
            f"{error.filename} can not be read: {error.strerror}",
            "Run this as the daemon's user.",
            Exit.DIRECTORY,
        ) from error
