"""Detect a stage of the pipeline that is stuck: it owes work and has finished nothing for too long.

A stage that owes nothing is idle, for however long: an empty inbox is never stuck. Time is an argument; the loop owns
the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StallLimits:
    """Seconds that each stage may take over one piece of work, far beyond the time that a healthy one takes.

    A piece is a name (inbox), a look at a file (settle), a file (decode, filing), a batch (batch, classify), or all
    that a dead worker left (takeover).
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
    """The work of one stage at this moment: pieces that it owes, pieces finished so far, and its limit."""

    stage: str
    owes: int
    done: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class StuckStage:
    """A stage that has finished nothing for ``for_s`` seconds although it owes something."""

    stage: str
    owes: int
    for_s: float


class StallDetector:
    """Remembers when each stage last finished something, or had nothing to do.

    Between two calls a stage may have finished its work and begun other: then ``done`` has changed.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    def stuck(self, stages: Iterable[StageProgress], now: float) -> StuckStage | None:
        """Return the stage that has been stuck longest, or None. Call it every few seconds with all stages."""
        stuck = []
        for stage in stages:
            done, since = self._last.get(stage.stage, (-1, now))
            if not stage.owes or stage.done != done:
                self._last[stage.stage] = stage.done, now
            elif now - since > stage.limit_s:
                stuck.append(StuckStage(stage.stage, stage.owes, now - since))
        return max(stuck, key=lambda each: each.for_s, default=None)
