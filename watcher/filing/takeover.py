"""What the dead left: workers of a shared inbox, and commands that put files back."""

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
    """Ends what the dead had decided and takes over what they had claimed, for ``mine`` or for the inbox.

    First what this one's own ledger is still owed. Called by the thread that uses the ledger; the loop has it called
    there by :meth:`turn`.
    """

    ledger: Ledger
    inbox: Path
    state: Path
    mine: Claims | None = None
    scans: int = 0
    """Scans of the inbox after the last of which this was begun."""

    def __post_init__(self) -> None:
        self._work: Future[tuple[list[Ending], list[str]]] | None = None

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self._work is not None

    def turn(self, mover: Executor | None, scans: int, wake: Callable[[], None]) -> tuple[list[Ending], list[str]]:
        """Begin after each scan of the inbox, and give once what was found. ``mover`` is None while none may begin."""
        found: tuple[list[Ending], list[str]] = [], []
        if self._work is not None and self._work.done():
            found, self._work = self._work.result(), None
        if self._work is None and mover is not None and scans > self.scans:
            self.scans = scans
            self._work = mover.submit(self)
            self._work.add_done_callback(lambda _: wake())
        return found

    def __call__(self) -> tuple[list[Ending], list[str]]:
        """The endings, and the names of the files, which lie where the route works."""
        endings: list[Ending] = []
        names: list[str] = []
        try:
            self.ledger.catch_up()
        except Retry:
            return [], []  # it can not be written: the next time, then
        if self.mine is not None:  # alone there are no workers: what commands leave has a place in the inbox
            with contextlib.suppress(Retry):  # the inbox has gone since the scan: the next one tells
                endings += recovery.recover_all(self.ledger, self.state, own=False)
        for owner in self._others():
            lock = Lock(owner_lock_path(self.state, owner))
            try:
                if not lock.acquire_briefly():
                    continue  # it is at work
            except Fatal:
                continue  # another user's
            try:
                endings += recovery.recover(self.ledger, owner)  # it may have died since
                names += self.mine.adopt(owner) if self.mine is not None else claims.release(self.inbox, owner)
            except Retry:
                continue
            finally:
                lock.release()
        return endings, names

    def _at_verdicts(self) -> list[str]:
        """A command that carries out verdicts itself has no place in the inbox."""
        return [owner for owner in self.ledger.owners() if owner == claims.OPERATOR]

    def _others(self) -> list[str]:
        try:
            owners = {*claims.owners(self.inbox), *self._at_verdicts()}
            return sorted(owners - {self.ledger.owner})
        except (OSError, Retry):
            return []  # the inbox is gone: the next scan tells; or the ledger is locked: the next time, then
