"""Claim complete files of a shared inbox for this worker, which then sorts them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from watcher.core.errors import Retry
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.claims import Claim, Claims

BUSY_S = 0.2
"""Seconds that a file waits if this worker has another file of its name."""

PAUSE_S = 5.0
"""Seconds that a file waits if it can not be claimed for another reason."""


@dataclass
class Claimer:
    """Claims files of the inbox when they are complete, but no more than this worker can take."""

    arrivals: Arrivals
    claims: Claims

    def claim(self, now: float, limit: int) -> Iterator[tuple[str, float]]:
        """Claim at most ``limit`` files. Yield the name of each and the time at which it was first seen."""
        pending, inbox = self.arrivals.pending, self.arrivals.inbox
        for ready in pending.ready(now, inbox.identify, 0 if self.arrivals.unreachable else limit):
            try:
                claim = self.claims.take(ready.name)
            except Retry:
                pending.pause(ready.name, now, PAUSE_S)  # if the failure lasts, the next scan reports it
                continue
            if claim is Claim.BUSY:
                pending.pause(ready.name, now, BUSY_S)
                continue
            pending.forget(ready.name)
            if claim is Claim.TAKEN:
                yield ready.name, ready.seen_s

    def due_s(self, room: int) -> float | None:
        """Return the time of the next scan step or file, or None if there is none."""
        due_times = (self.arrivals.due_s(), self.arrivals.pending.due_s() if room > 0 else None)
        return min((due_s for due_s in due_times if due_s is not None), default=None)
