"""The audit trail, in SQLite. ``decided`` is on disk before a file moves, ``ended`` after.

One writer, the daemon; anyone may read. TRUNCATE journal and full
synchronisation: SQLite before 3.51.3 can corrupt a WAL database that has two
writers, and the state directory must not be on a network file system either.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from watcher.errors import Exit, Fatal, Retry
from watcher.records import Identity, Order

_DECIDE = """
insert into decision (id, name, digest, device, inode, size, mtime_ns, outcome, class, confidence,
                      reason, detail, top, model, directory, decided_at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

State = Literal["filed", "returned", "missing"]


@dataclass(frozen=True)
class Ending:
    """How a decision ended. ``destination`` is where the file lies now, if it was filed."""

    decision: int
    state: State
    destination: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Unended:
    """A decision whose file may or may not have moved, from before a crash."""

    decision: int
    name: str
    directory: str
    identity: Identity | None
    digest: str | None


class Ledger:
    """The open ledger. Used by one thread at a time; ``clock`` gives aware UTC times."""

    def __init__(self, path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Open or make the ledger file.

        Raises:
            Fatal: exit code 5; it can not be opened, or is damaged.
        """
        self._clock, self._path = clock, path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            self._db.execute("pragma journal_mode = truncate")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(resources.files("watcher").joinpath("ledger.sql").read_text())
            self._next = self._db.execute("select coalesce(max(id), 0) + 1 from decision").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error

    def decided(self, orders: Sequence[Order], directories: Sequence[str], model: str) -> list[int]:
        """Record decisions, one transaction for all. Gives their ids, in order.

        Raises:
            Retry: nothing was recorded (the disk is full, say), so nothing may move.
            Fatal: the ledger was removed while it was in use.
        """
        ids = list(range(self._next, self._next + len(orders)))
        at = self._clock().isoformat(timespec="milliseconds")
        rows = [_row(*each, model, at) for each in zip(ids, orders, directories, strict=True)]
        try:
            self._db.execute("begin immediate")
            self._db.executemany(_DECIDE, rows)
            self._db.executemany("insert into unended values (?)", [(number,) for number in ids])
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            if not self._path.exists():
                raise _unusable(self._path, FileNotFoundError("it was removed while the daemon ran")) from error
            raise Retry(f"the ledger can not be written: {error}") from error
        self._next += len(orders)
        return ids

    def ended(self, endings: Iterable[Ending]) -> None:
        """Record how decisions ended, one transaction for all.

        Raises:
            Fatal: it can not be written although the files have moved. A restart
                finds them (see :mod:`watcher.recover`).
        """
        at = self._clock().isoformat(timespec="milliseconds")
        rows = [
            (e.decision, e.state, None if e.destination is None else os.fsencode(e.destination), _text(e.note), at)
            for e in endings
        ]
        try:
            self._db.execute("begin immediate")
            self._db.executemany("insert into ending values (?, ?, ?, ?, ?)", rows)
            self._db.executemany("delete from unended where decision = ?", [(row[0],) for row in rows])
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            raise Fatal(
                f"the ledger can not be written after files were moved: {error}",
                "Free space on the state directory's disk; the next start reconciles ledger and disk.",
            ) from error

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("rollback")

    def unended(self) -> list[Unended]:
        """Decisions without an ending: after a crash, what :mod:`watcher.recover` looks into."""
        try:
            rows = self._unended()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error
        return [
            Unended(r[0], os.fsdecode(r[1]), os.fsdecode(r[2]), None if r[4] is None else _identity(r[3:7]), r[7])
            for r in rows
        ]

    def _unended(self) -> list[Any]:
        rows = self._db.execute(
            "select id, name, directory, device, inode, size, mtime_ns, digest"
            " from unended join decision on decision.id = unended.decision order by id"
        )
        return rows.fetchall()

    def has_filed(self, destination: str) -> bool:
        """Whether a file was filed under this very name before. Reads the whole ledger: for recovery only."""
        row = self._db.execute("select 1 from ending where destination = ? limit 1", (os.fsencode(destination),))
        return row.fetchone() is not None

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _row(number: int, order: Order, directory: str, model: str, at: str) -> tuple[Any, ...]:
    i, d = order.identity, order.decision
    stamp = (_signed(i.device), _signed(i.inode), i.size, i.mtime_ns) if i else (None,) * 4
    top = json.dumps(d.top)
    return (
        *(number, os.fsencode(order.name), order.digest, *stamp),
        *(
            d.outcome.value,
            d.label,
            d.confidence,
            _text(d.reason),
            _text(d.detail),
            top,
            model,
            os.fsencode(directory),
            at,
        ),
    )


def _text(text: str | None) -> str | None:
    """SQLite takes no surrogate escapes: names that are no UTF-8 appear in words as escapes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _signed(number: int) -> int:
    """SQLite's integers are signed; device and inode numbers may use all 64 bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _identity(row: Sequence[int]) -> Identity:
    device, inode, size, mtime_ns = row
    return Identity(device % (1 << 64), inode % (1 << 64), size, mtime_ns)


def _unusable(path: Path, error: Exception) -> Fatal:
    return Fatal(
        f"the ledger {path} can not be used: {error}",
        "Check the directory's owner and free space; move a damaged ledger aside and keep it.",
        Exit.DIRECTORY,
    )


@dataclass(frozen=True)
class Tally:
    """What ``status`` tells of the ledger. Counts are of files filed."""

    total: dict[str, int]
    since: dict[str, int]
    classes: dict[str, int]
    last_filed_at: str | None
    unended: int


def tally(path: Path, since: datetime) -> Tally:
    """Read the counts, all and since a time, without disturbing the daemon.

    Raises:
        Fatal: exit code 5; there is no ledger, or it can not be read.
    """
    filed = "from ending join decision on decision.id = ending.decision where state = 'filed'"
    at = since.astimezone(UTC).isoformat(timespec="milliseconds")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            return Tally(
                total=dict(db.execute(f"select outcome, count(*) {filed} group by 1")),
                since=dict(db.execute(f"select outcome, count(*) {filed} and decided_at >= ? group by 1", (at,))),
                classes=dict(db.execute(f"select class, count(*) {filed} and outcome = 'sorted' group by 1")),
                last_filed_at=db.execute("select max(ended_at) from ending where state = 'filed'").fetchone()[0],
                unended=db.execute("select count(*) from unended").fetchone()[0],
            )
    except sqlite3.Error as error:
        raise Fatal(
            f"the ledger {path} can not be read: {error}", "Move a damaged ledger aside and keep it.", Exit.DIRECTORY
        ) from error
