"""Count what the daemon has done, for metrics, status lines and the last line of the log."""

from __future__ import annotations

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from watcher.core.records import Decision, Filed, MoveOrder, Outcome, Timing
from watcher.monitoring.drift import Drift, DriftRules, sample

OUTCOMES = (Outcome.SORTED.value, Outcome.REVIEW.value, Outcome.QUARANTINE.value)

# Upper bounds of histogram buckets.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CONFIDENCES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
IMAGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers of files: seen, filed by outcome, withdrawn (removed from the inbox by others) and pending.

    ``reachable`` is False while the inbox can not be listed. ``oldest_s`` is the time that the oldest pending file has
    been waiting. ``shadowed`` counts the files that were decided upon in shadow mode and left in the inbox.
    """

    seen: int
    filed: Mapping[str, int]
    withdrawn: int
    pending: int
    reachable: bool
    oldest_s: float = 0.0
    shadowed: int = 0


class Histogram:
    """Numbers of values up to each of some upper bounds. One thread may write it, any may read it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Return each bound with the number of values that are not above it; the last bound is +Inf."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return zip(names, itertools.accumulate(list(self._counts)), strict=True)


def _histograms() -> dict[str, Histogram]:
    return {stage: Histogram(SECONDS) for stage in ("queue", "decode", "infer", "move", "total")}


@dataclass
class Counters:
    """Counts since the start of this process. ``before`` holds the files filed by earlier processes, by outcome.

    ``config_refused`` is True if the last reload was refused, so that the config on disk is not the one in force.
    """

    before: Mapping[str, int] = field(default_factory=dict)
    filed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    classified: Counter[tuple[str, str]] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    stages: dict[str, Histogram] = field(default_factory=_histograms)
    confidence: Histogram = field(default_factory=lambda: Histogram(CONFIDENCES))
    batches: Histogram = field(default_factory=lambda: Histogram(IMAGES))
    last_filed_at: float | None = None
    config_refused: bool = False
    shadowed: int = 0
    drift: Drift = field(default_factory=lambda: Drift(DriftRules()))
    clock: Callable[[], float] = time.time

    def record(self, result: Filed, total_s: float) -> None:
        """Count a file that was filed ``total_s`` after it was first seen."""
        decision, timing = result.order.decision, result.order.timing
        self.filed[decision.outcome.value] += 1
        self.last_filed_at = self.clock()
        self.stages["move"].add(result.move_ms / 1000)
        self.stages["total"].add(total_s)
        self.stages["queue"].add(timing.queue_ms / 1000)
        self._count_decision(decision, timing)

    def shadow(self, order: MoveOrder, total_s: float) -> None:
        """Count a file that was decided upon in shadow mode ``total_s`` after it was first seen."""
        self.shadowed += 1
        self.stages["total"].add(total_s)
        self.stages["queue"].add(order.timing.queue_ms / 1000)
        self._count_decision(order.decision, order.timing)

    def _count_decision(self, decision: Decision, timing: Timing) -> None:
        self.drift.add(sample(decision, self.clock()))
        if decision.label is None:
            self.quarantined[decision.reason or ""] += 1
            return
        self.classified[decision.label, decision.outcome.value] += 1
        self.confidence.add(decision.confidence)
        self.stages["decode"].add(timing.decode_ms / 1000)
        self.stages["infer"].add(timing.infer_ms / 1000)

    @property
    def all_lives(self) -> dict[str, int]:
        """Files filed by outcome, by this process and those before it."""
        return {outcome: self.before.get(outcome, 0) + self.filed[outcome] for outcome in OUTCOMES}
