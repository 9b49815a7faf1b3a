"""Write the audit trail in SQLite.

A decision is on disk before its file moves, its ending after.

A few processes write, one transaction at a time: the daemon or the workers of
one inbox, and commands that put files back. Anyone may read. The database uses
the TRUNCATE journal and full synchronisation, because SQLite before 3.51.3 can
corrupt a WAL database that has two writers. The state directory must not be on a
network file system either.
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
from watcher.ledger import rows
from watcher.ledger.queries import LedgerQueries, unusable

_VERSION = 3
"""The ``user_version`` in ``schema.sql``."""

BUSY_S = 30
"""Seconds that a transaction waits for that of another process."""


class Ledger(LedgerQueries):
    """The open ledger. Used by one thread at a time.

    ``clock`` returns aware times in UTC. ``owner`` must end the decisions that are recorded here, see ``schema.sql``.
    """

    def __init__(
        self, path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC), owner: str = "daemon"
    ) -> None:
        """Open or make the ledger file.

        Raises:
            Fatal: exit code 5; it can not be opened, is damaged, or of another version.
        """
        self._clock, self._path, self.owner = clock, path, owner
        self._recorded: dict[Path, tuple[int, int]] = {}
        self._postponed: list[tuple[Any, ...]] = []
        self.lag: LedgerLag | None = None
        """The endings that are not recorded yet, and the reason. None if all are recorded."""
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
    def transaction(self) -> Iterator[None]:
        """Open a transaction for looking up earlier decisions and recording new ones. Nobody else writes meanwhile.

        Raises:
            Retry: nothing was recorded, so no file may move. For example the disk is full, or a postponed ending
                still can not be recorded.
            Fatal: the ledger was removed while it was in use.
        """
        try:
            self.record_postponed()
            self._db.execute("begin immediate")
            yield
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._refuse_removed(error)
            raise Retry(f"the ledger can not be written: {error}") from error
        finally:
            self._roll_back()

    def record_decisions(
        self, orders: Sequence[MoveOrder], directories: Sequence[str], model: str | None, inbox: Path = Path()
    ) -> list[int]:
        """Record decisions, within :meth:`transaction`. Return their ids in order; the first is the batch's id.

        Raises:
            Retry: somebody else is carrying out one of the verdicts, or has done so.
        """
        self._refuse_taken([order.verdict for order in orders if order.verdict is not None])
        first = self.next_id
        ids = list(range(first, first + len(orders)))
        decided_at = self._now_text()
        decisions = [
            rows.decision_row(number, first, order, str(inbox / (order.source or order.name)), to, model, decided_at)
            for number, order, to in zip(ids, orders, directories, strict=True)
        ]
        self._db.executemany(rows.INSERT_DECISION, decisions)
        self._db.executemany("insert into unended values (?, ?)", [(number, self.owner) for number in ids])
        return ids

    def _refuse_taken(self, verdicts: Sequence[int]) -> None:
        for number in verdicts:
            if not self.execute(f"{rows.WAITING_VERDICTS} where verdict = ?", number):
                raise Retry("somebody else carries out that verdict")

    def execute(self, statement: str, *values: Any) -> list[Any]:
        """Execute any other statement within :meth:`transaction`, and return its rows."""
        return self._db.execute(statement, values).fetchall()

    def record_directories(self, directories: Iterable[Path]) -> None:
        """Record the device and inode of each directory, within :meth:`transaction`.

        :meth:`recorded_directory` returns them later.
        """
        for directory in directories:
            try:
                status = os.stat(directory)
            except OSError:
                continue
            identity = signed(status.st_dev), signed(status.st_ino)
            if self._recorded.get(directory) != identity:
                self._db.execute("insert or replace into place values (?, ?, ?)", (os.fsencode(directory), *identity))
                self._recorded[directory] = identity

    def forget_directories(self) -> None:
        """Forget all recorded directories, because they have been replaced for good."""
        self._db.execute("delete from place")

    @property
    def next_id(self) -> int:
        """The id of the next decision. It is certain only within :meth:`transaction`."""
        return int(self._db.execute("select coalesce(max(id), 0) + 1 from decision").fetchone()[0])

    def find_duplicates(self, digests: Iterable[str]) -> dict[str, int]:
        """Return the digests of which a file was filed under a class, each with the decision that filed it.

        A file that another worker is moving now counts. A file that was put back since does not count.
        """
        duplicates = {}
        for digest in set(digests):
            row = self._db.execute(rows.DUPLICATE, (digest,)).fetchone()
            if row is not None:
                duplicates[digest] = row[0]
        return duplicates

    def digests_bound_for(self, path: Path) -> list[str | None]:
        """Return the digests of files of this name that others are moving to this directory now."""
        decisions = self._unended("name = ? and directory = ?", os.fsencode(path.name), os.fsencode(path.parent))
        return [decision.digest for decision in decisions]

    def record_endings(self, endings: Iterable[Ending]) -> None:
        """Record how decisions ended, in one transaction.

        Raises:
            Retry: nothing was recorded, although the files have moved.
        """
        ended_at = self._now_text()
        self._record([rows.ending_row(ending, ended_at) for ending in endings])

    def record_or_postpone(self, endings: Iterable[Ending]) -> None:
        """Record how decisions ended. If that fails, postpone it to :meth:`record_postponed`.

        No further decision is recorded before that has succeeded. If the process dies first, its decisions stay
        without an ending, and recovery ends them.
        """
        ended_at = self._now_text()
        self._postponed += [rows.ending_row(ending, ended_at) for ending in endings]
        with contextlib.suppress(Retry):
            self.record_postponed()

    def record_postponed(self) -> None:
        """Record the endings that were postponed.

        Raises:
            Retry: they still can not be recorded.
        """
        try:
            if self._postponed:
                self._record(self._postponed)
        except Retry as error:
            self.lag = LedgerLag(len(self._postponed), str(error))
            raise
        self._postponed, self.lag = [], None

    def _record(self, endings: Sequence[tuple[Any, ...]]) -> None:
        try:
            self._db.execute("begin immediate")
            self._insert_endings(endings)
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            self._refuse_removed(error)
            raise Retry(f"the ledger can not be written after files were moved: {error}") from error

    def _refuse_removed(self, error: sqlite3.Error) -> None:
        if not self._path.exists():
            raise unusable(self._path, FileNotFoundError("it was removed while the daemon ran")) from error

    def _insert_endings(self, endings: Sequence[tuple[Any, ...]]) -> None:
        self._db.executemany("insert into ending values (?, ?, ?, ?, ?)", endings)
        self._db.executemany("delete from unended where decision = ?", [(row[0],) for row in endings])

    def record_shadowed(self, ids: Iterable[int]) -> None:
        """End decisions whose files stay where they are, within :meth:`transaction`."""
        ended_at = self._now_text()
        self._insert_endings([rows.ending_row(Ending(number, "shadowed"), ended_at) for number in ids])

    def _now_text(self) -> str:
        return self._clock().isoformat(timespec="milliseconds")

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._recorded.clear()
            self._db.execute("rollback")

    def adopt(self, owner: str) -> None:
        """Make this owner responsible for the decisions of a dead one. If several try at once, one succeeds.

        Raises:
            Fatal: the ledger can not be written.
        """
        try:
            self._db.execute("update unended set owner = ? where owner = ?", (self.owner, owner))
        except sqlite3.Error as error:
            raise unusable(self._path, error) from error

    def now(self) -> datetime:
        """Return the time of this ledger's clock, in UTC."""
        return self._clock()

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _refuse_other_version(db: sqlite3.Connection) -> None:
    empty = db.execute("select count(*) from sqlite_schema").fetchone()[0] == 0
    version = db.execute("pragma user_version").fetchone()[0]
    if version != _VERSION and not empty:
        raise sqlite3.DatabaseError(f"it is of version {version}, but version {_VERSION} is needed")
