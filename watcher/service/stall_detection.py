"""Is the route getting on? A station is stuck that owes something and has finished nothing for too long.

One that owes nothing is idle, for however long: an empty inbox is never stuck. Time is an argument; the loop owns
the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StallLimits:
    """Seconds each station may take over one piece of work, far beyond what any takes that is well.

    What is a piece: a name (inbox), a look at a file (settle), a file (decode, filing), a batch (batch, classify),
    all that a dead worker left (takeover).
    """

    inbox: float = 60.0
    settle: float = 60.0
    decode: float = 90.0
    batch: float = 60.0
    classify: float = 60.0
    filing: float = 120.0
    takeover: float = 600.0


@dataclass(frozen=True, slots=True)
class StageProgress:
    """One station at this moment: the pieces that it owes, those it has finished so far, and its limit."""

    station: str
    owes: int
    done: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class StuckStage:
    """A station that has finished nothing for ``for_s`` although it owes something."""

    station: str
    owes: int
    for_s: float


class StallDetector:
    """Remembers of each station when it last finished something, or had nothing to do.

    Between two calls a station may have finished its work and begun other: then ``done`` has changed.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    def stuck(self, works: Iterable[StageProgress], now: float) -> StuckStage | None:
        """The station that has been stuck longest, or None."""
        found = []
        for work in works:
            done, since = self._last.get(work.station, (-1, now))
            if not work.owes or work.done != done:
                self._last[work.station] = work.done, now
            elif now - since > work.limit_s:
                found.append(StuckStage(work.station, work.owes, now - since))
        return max(found, key=lambda stuck: stuck.for_s, default=None)
