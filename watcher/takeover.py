"""What dead owners left: their unended decisions, and in shared mode their claims."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from watcher.claims import Claims
from watcher.ledger import Ledger
from watcher.lock import Lock, path_of
from watcher.records import Ending
from watcher.recover import recover


def recover_dead(ledger: Ledger, state: Path, owners: Iterable[str] | None = None) -> list[Ending]:
    """End what owners (None: all in the ledger) left undecided, but for those who are alive."""
    endings = []
    for owner in ledger.owners() if owners is None else owners:
        if owner == ledger.owner:
            endings += recover(ledger)
            continue
        lock = Lock(path_of(state, owner))
        if lock.try_acquire():
            try:
                endings += recover(ledger, owner)
            finally:
                lock.release()
    return endings


@dataclass
class Takeover:
    """Takes over what dead workers had claimed. Called by the thread that uses the ledger."""

    ledger: Ledger
    claims: Claims
    state: Path

    def __call__(self) -> tuple[list[Ending], list[str]]:
        """End what they had decided, then claim what they had claimed: endings and names."""
        endings: list[Ending] = []
        adopted: list[str] = []
        for worker in self.claims.others():
            lock = Lock(path_of(self.state, worker))
            if not lock.try_acquire():
                continue  # it is at work
            try:
                endings += recover(self.ledger, worker)
                adopted += self.claims.adopt(worker)
            finally:
                lock.release()
        return endings, adopted
