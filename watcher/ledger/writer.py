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

from watcher.core.errors import Retry
from watcher.core.records import Ending, LedgerLag, MoveOrder, signed
from watcher.ledger import rows as ledger_rows
from watcher.ledger.queries import LedgerQueries, unusable

_VERSION = 3
"""What ``schema.sql`` says of itself."""

BUSY_S = 30
"""How long a transaction waits for that of another process."""


class Ledger(LedgerQueries):
    """The open ledger. Used by one thread at a time; ``clock`` gives aware UTC times.

    ``owner`` is who must end what is decided here, see ``schema.sql``.
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
        self.behind: LedgerLag | None = None
        """What is not recorded yet although it has happened, and why."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
            with contextlib.ExitStack() as on_error:
                on_error.callback(db.close)
                db.execute("pragma journal_mode = truncate")
                db.execute("pragma synchronous = full")
                _refuse_other_version(db)
                schema = resources.files("watcher.ledger").joinpath("schema.sql").read_text()
                db.executescript(f"begin immediate; {schema} commit;")
                on_error.pop_all()
        except (sqlite3.Error, OSError) as error:
            raise unusable(path, error) from error
        self._db = db

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
        self, orders: Sequence[MoveOrder], directories: Sequence[str], model: str | None, inbox: Path = Path()
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
            self.behind = LedgerLag(len(self._owed), str(error))
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
            raise unusable(self._path, FileNotFoundError("it was removed while the daemon ran")) from error

    def _end(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._db.executemany("insert into ending values (?, ?, ?, ?, ?)", rows)
        self._db.executemany("delete from unended where decision = ?", [(row[0],) for row in rows])

    def shadowed(self, ids: Iterable[int]) -> None:
        """Record that these decisions were only recorded, within :meth:`deciding`: their files stay where they are."""
        at = self._clock().isoformat(timespec="milliseconds")
        self._end([ledger_rows.ending(Ending(number, "shadowed"), at) for number in ids])

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
            raise unusable(self._path, error) from error

    def now(self) -> datetime:
        """What time it is for this ledger, UTC."""
        return self._clock()

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _refuse_other_version(db: sqlite3.Connection) -> None:
    empty = db.execute("select count(*) from sqlite_schema").fetchone()[0] == 0
    version = db.execute("pragma user_version").fetchone()[0]
    if version != _VERSION and not empty:
        raise sqlite3.DatabaseError(f"it is of version {version}, this is for version {_VERSION}")
