"""Shared mode: what comes before the route. From the common inbox into this worker's claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from watcher.core.errors import Retry
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.claims import Claim, Claims

BUSY_S = 0.2
"""How long a file waits whose name is claimed here already."""

PAUSE_S = 5.0
"""How long a file waits that could not be claimed for other reasons."""


@dataclass
class Claimer:
    """Claims files of the inbox as they become complete, no more than there is work for."""

    arrivals: Arrivals
    claims: Claims

    def claim(self, now: float, limit: int) -> Iterator[tuple[str, float]]:
        """Claim at most ``limit`` files: the name of each and when it was first seen."""
        pending, inbox = self.arrivals.pending, self.arrivals.inbox
        for ready in pending.ready(now, inbox.look, 0 if self.arrivals.unreachable else limit):
            try:
                claim = self.claims.take(ready.name)
            except Retry:
                pending.pause(ready.name, now, PAUSE_S)  # if it lasts, the next sweep tells that nothing can be reached
                continue
            if claim is Claim.BUSY:
                pending.pause(ready.name, now, BUSY_S)
                continue
            pending.forget(ready.name)
            if claim is Claim.TAKEN:
                yield ready.name, ready.seen_s

    def due_s(self, room: int) -> float | None:
        """When there is next something to do."""
        dues = (self.arrivals.due_s(), self.arrivals.pending.due_s() if room > 0 else None)
        return min((due for due in dues if due is not None), default=None)
