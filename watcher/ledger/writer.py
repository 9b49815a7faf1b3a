"""The audit trail, in SQLite. ``decided`` is on disk before a file moves, ``ended`` after.

A few writers, one transaction at a time: the daemon or the workers of one inbox,
and commands that put files back. Anyone may read. TRUNCATE journal and full
synchronisation: SQLite before 3.51.3 can corrupt a WAL database that has two
writers, and the state directory must not be on a network file system either.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.records import Behind, Ending, Order, signed
from watcher.ledger import rows as ledger_rows
from watcher.ledger.rows import Unended

_VERSION = 3
"""What ``ledger.sql`` says of itself."""

BUSY_S = 30
"""How long a transaction waits for that of another process."""


class Ledger:
    """The open ledger. Used by one thread at a time; ``clock`` gives aware UTC times.

    ``owner`` is who must end what is decided here, see ``ledger.sql``.
    """

    def __init__(
        self, path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC), owner: str = "daemon"
    ) -> None:
        """Open or make the ledger file.

        Raises:
            Fatal: exit code 5; it can not be opened, is damaged, or of another version.
        """
        self._clock, self._path, self.owner = clock, path, owner
        self._noted: dict[Path, tuple[int, int]] = {}
        self._owed: list[tuple[Any, ...]] = []
        self.behind: Behind | None = None
        """What is not recorded yet although it has happened, and why."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
            self._db.execute("pragma journal_mode = truncate")
            self._db.execute("pragma synchronous = full")
            _refuse_other_version(self._db)
            self._db.executescript(
                f"begin immediate; {resources.files('watcher.ledger').joinpath('schema.sql').read_text()} commit;"
            )
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """One transaction around looking what was decided before and :meth:`decided`: nobody decides in between.

        Raises:
            Retry: nothing was recorded (the disk is full, say, or an ending is still owed), so nothing may move.
            Fatal: the ledger was removed while it was in use.
        """
        try:
            self.catch_up()
            self._db.execute("begin immediate")
            yield
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._refuse_removed(error)
            raise Retry(f"the ledger can not be written: {error}") from error
        finally:
            self._roll_back()

    def decided(
        self, orders: Sequence[Order], directories: Sequence[str], model: str | None, inbox: Path = Path()
    ) -> list[int]:
        """Record decisions, within :meth:`deciding`. Gives their ids, in order; the first is that of the batch.

        Raises:
            Retry: somebody else carries out one of the verdicts, or has done so.
        """
        self._refuse_taken([order.verdict for order in orders if order.verdict is not None])
        first = self.next_id
        ids = list(range(first, first + len(orders)))
        at = self._clock().isoformat(timespec="milliseconds")
        rows = [
            ledger_rows.decision(number, first, order, str(inbox / (order.source or order.name)), directory, model, at)
            for number, order, directory in zip(ids, orders, directories, strict=True)
        ]
        self._db.executemany(ledger_rows.DECIDE, rows)
        self._db.executemany("insert into unended values (?, ?)", [(number, self.owner) for number in ids])
        return ids

    def _refuse_taken(self, verdicts: Sequence[int]) -> None:
        for number in verdicts:
            if not self.execute(f"{ledger_rows.AWAITED} where verdict = ?", number):
                raise Retry("somebody else carries out that verdict")

    def awaited(self, limit: int) -> list[int]:
        """The oldest verdicts that nobody has carried out, nor does just now."""
        return [row[0] for row in self._read(f"{ledger_rows.AWAITED} order by verdict limit ?", limit)]

    def execute(self, statement: str, *values: Any) -> list[Any]:
        """What else is to be looked at or recorded, within :meth:`deciding`."""
        return self._db.execute(statement, values).fetchall()

    def note(self, directories: Iterable[Path]) -> None:
        """Record which directories these are just now, within :meth:`deciding`: see :meth:`place`."""
        for directory in directories:
            try:
                found = os.stat(directory)
            except OSError:
                continue
            which = signed(found.st_dev), signed(found.st_ino)
            if self._noted.get(directory) != which:
                self._db.execute("insert or replace into place values (?, ?, ?)", (os.fsencode(directory), *which))
                self._noted[directory] = which

    def place(self, directory: Path) -> tuple[int, int] | None:
        """Device and inode that a directory had when files were last moved from or to it."""
        rows = self._read("select device, inode from place where path = ?", os.fsencode(directory))
        return (rows[0][0] % (1 << 64), rows[0][1] % (1 << 64)) if rows else None

    def noted(self) -> list[Path]:
        """Every directory that files were ever moved from or to."""
        return [Path(os.fsdecode(path)) for (path,) in self._read("select path from place order by path")]

    def forget_places(self) -> None:
        """Whatever the directories were: they have been replaced for good."""
        self._db.execute("delete from place")

    @property
    def next_id(self) -> int:
        """The id of the next decision: certain within :meth:`deciding`."""
        return int(self._db.execute("select coalesce(max(id), 0) + 1 from decision").fetchone()[0])

    def twins(self, digests: Iterable[str]) -> dict[str, int]:
        """Of these digests, those of files that were filed under a class, each with the decision that did.

        What another worker moves just now counts, what was put back since does not.
        """
        found = {}
        for wanted in set(digests):
            row = self._db.execute(ledger_rows.TWIN, (wanted,)).fetchone()
            if row is not None:
                found[wanted] = row[0]
        return found

    def coming(self, path: Path) -> list[str | None]:
        """The digests of files of this name that others move to this directory just now."""
        found = self._unended("name = ? and directory = ?", os.fsencode(path.name), os.fsencode(path.parent))
        return [decision.digest for decision in found]

    def ended(self, endings: Iterable[Ending]) -> None:
        """Record how decisions ended, one transaction for all.

        Raises:
            Retry: it can not be written, although the files have moved. Nothing was recorded.
        """
        at = self._clock().isoformat(timespec="milliseconds")
        self._record([ledger_rows.ending(ending, at) for ending in endings])

    def owe(self, endings: Iterable[Ending]) -> None:
        """The same, and what can not be recorded just now is kept for :meth:`catch_up`. Nothing is decided before.

        Whoever dies meanwhile leaves what he does after any move: decisions without an ending.
        """
        at = self._clock().isoformat(timespec="milliseconds")
        self._owed += [ledger_rows.ending(ending, at) for ending in endings]
        with contextlib.suppress(Retry):
            self.catch_up()

    def catch_up(self) -> None:
        """Record what is owed.

        Raises:
            Retry: it still can not be written.
        """
        try:
            if self._owed:
                self._record(self._owed)
        except Retry as error:
            self.behind = Behind(len(self._owed), str(error))
            raise
        self._owed, self.behind = [], None

    def _record(self, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            self._db.execute("begin immediate")
            self._end(rows)
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            self._refuse_removed(error)
            raise Retry(f"the ledger can not be written after files were moved: {error}") from error

    def _refuse_removed(self, error: sqlite3.Error) -> None:
        if not self._path.exists():
            raise _unusable(self._path, FileNotFoundError("it was removed while the daemon ran")) from error

    def _end(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._db.executemany("insert into ending values (?, ?, ?, ?, ?)", rows)
        self._db.executemany("delete from unended where decision = ?", [(row[0],) for row in rows])

    def shadowed(self, ids: Iterable[int]) -> None:
        """Record that these decisions were only recorded, within :meth:`deciding`: their files stay where they are."""
        at = self._clock().isoformat(timespec="milliseconds")
        self._end([ledger_rows.ending(Ending(number, "shadowed"), at) for number in ids])

    def shadows(self, digest: str | None, title: str) -> list[tuple[str, tuple[int, int, int]]]:
        """What was only recorded of files of these bytes: the path of each, and (inode, size, mtime_ns) then.

        Without a digest, of those that could not be read and were to be called so.
        """
        where, value = ("digest = ?", digest) if digest else ("digest is null and name = ?", os.fsencode(title))
        return [ledger_rows.shadow(row) for row in self._read(f"{ledger_rows.SHADOWED} and {where}", value)]

    def all_shadows(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """The same of all there ever were: at a start."""
        return map(ledger_rows.shadow, self._read(ledger_rows.SHADOWED))

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._noted.clear()
            self._db.execute("rollback")

    def adopt(self, owner: str) -> None:
        """Make a dead owner's decisions this one's to end. Of several who ask at once, one gets them.

        Raises:
            Fatal: it can not be written.
        """
        try:
            self._db.execute("update unended set owner = ? where owner = ?", (self.owner, owner))
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    def owners(self) -> list[str]:
        """Who has decisions without an ending: those at work, and those that died at it."""
        return [row[0] for row in self._read("select distinct owner from unended order by 1")]

    def unended(self, owner: str | None = None) -> list[Unended]:
        """Decisions of an owner (None: of this ledger's) without an ending.

        They are what :mod:`watcher.filing.recovery` looks into.
        """
        return self._unended("owner = ? order by id", owner or self.owner)

    def holds(self, path: str) -> bool:
        """Whether a file filed under this very path should be there still. Reads the whole ledger: for recovery."""
        raw = os.fsencode(path)
        [(put, taken)] = self._read(ledger_rows.PUT_AND_TAKEN, raw, raw)
        return bool(put > taken)

    def was_bound_for(self, path: Path) -> bool:
        """Whether a file of this very name was ever to go to this directory. By index."""
        query = "select 1 from decision where name = ? and directory = ? limit 1"
        return bool(self._read(query, os.fsencode(path.name), os.fsencode(path.parent)))

    def leaving(self, path: str) -> list[Unended]:
        """Decisions without an ending, of anybody, to take what was at this very path."""
        return self._unended("source = ? order by id", os.fsencode(path))

    def now(self) -> datetime:
        """What time it is for this ledger, UTC."""
        return self._clock()

    def classified(self, model: str, limit: int) -> list[tuple[float, str | None, float, str, str | None]]:
        """What a model decided among the last decisions, oldest first.

        Each is (seconds since 1970, class, confidence, outcome, reason).
        """
        rows = self._read(ledger_rows.CLASSIFIED, limit, model)
        return [(datetime.fromisoformat(at).timestamp(), *told) for at, *told in reversed(rows)]

    def counts(self) -> dict[str, int]:
        """How many files this owner has filed so far, by outcome.

        Raises:
            Fatal: it can not be read.
        """
        try:
            return dict(self._read("select outcome, files from tally where owner = ?", self.owner))
        except Retry as error:
            raise _unusable(self._path, error) from error

    def _unended(self, where: str, *values: Any) -> list[Unended]:
        return [ledger_rows.unended(row) for row in self._read(f"{ledger_rows.UNENDED} where {where}", *values)]

    def last_filed(self) -> datetime | None:
        """When a file was last sorted or handed to a person, by any owner; None: never yet."""
        rows = self._read(
            "select ended_at from ending join decision on decision.id = ending.decision"
            " where state = 'filed' and outcome != 'restored' order by ending.decision desc limit 1"
        )
        return datetime.fromisoformat(rows[0][0]) if rows else None

    def _read(self, query: str, *values: Any) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Retry(f"the ledger can not be read: {error}") from error
            raise _unusable(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _refuse_other_version(db: sqlite3.Connection) -> None:
    empty = db.execute("select count(*) from sqlite_schema").fetchone()[0] == 0
    version = db.execute("pragma user_version").fetchone()[0]
    if version != _VERSION and not empty:
        raise sqlite3.DatabaseError(f"it is of version {version}, this is for version {_VERSION}")


def _unusable(path: Path, error: Exception) -> Fatal:
    return Fatal(
        f"the ledger {path} can not be used: {error}",
        "Check the directory's owner and free space; move a damaged ledger aside and keep it.",
        Exit.DIRECTORY,
    )
