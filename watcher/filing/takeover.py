"""Take over the work of dead owners: workers of a shared inbox, and commands that put files back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from watcher.core.errors import Fatal, Retry
from watcher.core.lock import Lock, owner_lock_path
from watcher.core.records import Ending
from watcher.filing import recovery
from watcher.inbox import claims
from watcher.inbox.claims import Claims
from watcher.ledger.writer import Ledger


@dataclass
class Takeover:
    """Ends the decisions of dead owners and takes over the files that they had claimed.

    The files go to ``own_claims``, or back to the inbox if it is None. Endings that this owner has postponed are
    recorded first. The object is called in the thread that uses the ledger; the loop arranges that by :meth:`turn`.
    """

    ledger: Ledger
    inbox: Path
    state: Path
    own_claims: Claims | None = None
    scans: int = 0
    """The number of scans of the inbox before the last takeover began."""

    def __post_init__(self) -> None:
        self._work: Future[tuple[list[Ending], list[str]]] | None = None

    @property
    def busy(self) -> bool:
        """True while a takeover is under way."""
        return self._work is not None

    def turn(self, mover: Executor | None, scans: int, wake: Callable[[], None]) -> tuple[list[Ending], list[str]]:
        """Begin a takeover after each scan of the inbox, and return the result of one that has ended.

        The result is as of calling the object. ``mover`` is the executor to use, None while none may begin.
        """
        result: tuple[list[Ending], list[str]] = [], []
        if self._work is not None and self._work.done():
            result, self._work = self._work.result(), None
        if self._work is None and mover is not None and scans > self.scans:
            self.scans = scans
            self._work = mover.submit(self)
            self._work.add_done_callback(lambda _: wake())
        return result

    def __call__(self) -> tuple[list[Ending], list[str]]:
        """Take over now. Return the endings, and the names of the files in the directory that this owner sorts."""
        endings: list[Ending] = []
        names: list[str] = []
        try:
            self.ledger.record_postponed()
        except Retry:
            return [], []  # the ledger can not be written now; the next takeover tries again
        if self.own_claims is not None:  # else there are no workers, and commands are among the owners below
            with contextlib.suppress(Retry):  # the inbox has gone since the scan; the next scan reports it
                endings += recovery.recover_all(self.ledger, self.state, own=False)
        for owner in self._other_owners():
            lock = Lock(owner_lock_path(self.state, owner))
            try:
                if not lock.acquire_briefly():
                    continue  # it is alive
            except Fatal:
                continue  # the lock belongs to another user
            try:
                endings += recovery.recover(self.ledger, owner)  # it may have died since
                if self.own_claims is None:
                    names += claims.release(self.inbox, owner)
                else:
                    names += self.own_claims.adopt(owner)
            except Retry:
                continue
            finally:
                lock.release()
        return endings, names

    def _other_owners(self) -> list[str]:
        """Return the owners with claimed files, and the command that carries out verdicts, which claims none."""
        try:
            owners = set(claims.owners(self.inbox))
            owners |= {owner for owner in self.ledger.unended_owners() if owner == claims.OPERATOR}
            return sorted(owners - {self.ledger.owner})
        except (OSError, Retry):
            return []  # the inbox is gone, which the next scan reports, or the ledger is locked: try again later
