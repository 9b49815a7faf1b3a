"""Moves decided files, with the ledger around the move.

ledger(decided) -> filing -> ledger(filed)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from watcher import failpoints, log
from watcher.errors import Fatal, Retry, Vanished
from watcher.filing import Filing
from watcher.ledger import Ending, Ledger
from watcher.records import Decision, Filed, Order, Outcome, Returned

ADVICE = {
    "empty": "Ask the sender for the file again.",
    "truncated": "The file is not whole. Ask the sender for it again.",
    "unsupported_format": "Convert it to JPEG or PNG, or keep it out of the inbox.",
    "too_large": "If it is genuine, raise decode.max_bytes or decode.max_pixels.",
    "no_permission": "Let the daemon's user read what arrives in the inbox.",
    "not_a_file": "Only regular files are sorted.",
}


@dataclass(frozen=True)
class Places:
    """Where files go. Class directories lie below ``sorted``."""

    sorted: Path
    review: Path
    quarantine: Path

    def of(self, decision: Decision) -> Path:
        """The directory for one decision."""
        if decision.outcome is Outcome.SORTED and decision.label is not None:
            return self.sorted / decision.label
        return self.review if decision.outcome is Outcome.REVIEW else self.quarantine


@dataclass
class Clerk:
    """Carries out decisions. ``model`` is the digest of the weights that took them."""

    ledger: Ledger
    filing: Filing
    places: Places
    model: str

    def carry_out(self, orders: Sequence[Order]) -> list[tuple[int, Filed | Returned]]:
        """Record, move, sync, record. Gives each order's decision id and what became of it.

        Raises:
            Fatal: files moved and the ledger or the directories could not follow.
        """
        directories = [self.places.of(order.decision) for order in orders]
        try:
            ids = self.ledger.decided(orders, [str(d) for d in directories], self.model)
        except Retry as error:
            return [(0, Returned(order, str(error), later=True)) for order in orders]
        failpoints.reach("decided")
        results = [self._move(order, directory) for order, directory in zip(orders, directories, strict=True)]
        failpoints.reach("moved")
        try:
            self.filing.flush()
        except Retry as error:
            raise Fatal(str(error), "Check the disk. The next start reconciles ledger and disk.") from error
        failpoints.reach("synced")
        self.ledger.ended(_ending(*each) for each in zip(ids, results, strict=True))
        failpoints.reach("filed")
        return list(zip(ids, results, strict=True))

    def _move(self, order: Order, directory: Path) -> Filed | Returned:
        started = time.perf_counter()
        try:
            path = self.filing.move(order.name, order.identity, order.digest, directory)
        except Vanished as error:
            return Returned(order, str(error), later=False)
        except Retry as error:
            return Returned(order, str(error), later=True)
        if order.decision.outcome is Outcome.QUARANTINE:
            self.filing.explain(path, _reason(order))
        return Filed(order, str(path), (time.perf_counter() - started) * 1000)


def _ending(number: int, result: Filed | Returned) -> Ending:
    if isinstance(result, Filed):
        return Ending(number, "filed", result.destination)
    return Ending(number, "returned", None, result.why)


def _reason(order: Order) -> dict[str, str | None]:
    reason = order.decision.reason or ""
    return {
        "name": log.printable(order.name),
        "reason": reason,
        "detail": order.decision.detail,
        "digest": order.digest,
        "what_to_do": ADVICE.get(reason, "Look at the file; put it back into the inbox to try again."),
    }
