"""Shared mode: what dead workers left, their unended decisions and their claims."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from watcher import recover
from watcher.claims import Claims
from watcher.ledger import Ledger
from watcher.lock import Lock, path_of
from watcher.records import Ending


@dataclass
class Takeover:
    """Takes over what dead workers had claimed. Called by the thread that uses the ledger."""

    ledger: Ledger
    claims: Claims
    state: Path

    def __call__(self) -> tuple[list[Ending], list[str]]:
        """End what the dead had decided, then claim what they had claimed: endings and names."""
        endings = recover.recover_all(self.ledger, self.state, own=False)
        adopted: list[str] = []
        for worker in self.claims.others():
            lock = Lock(path_of(self.state, worker))
            if not lock.try_acquire():
                continue  # it is at work
            try:
                endings += recover.recover(self.ledger, worker)  # it may have died since
                adopted += self.claims.adopt(worker)
            finally:
                lock.release()
        return endings, adopted
