"""Count what the pipeline does, and log what an operator must know of it."""

from __future__ import annotations

from collections.abc import Callable

from watcher.core.errors import Fatal, Retry
from watcher.core.records import LedgerLag
from watcher.monitoring.counters import Totals
from watcher.service import log_lines
from watcher.service.stages.claim import Claim
from watcher.service.stages.stage import FilesUnderWay, Stage


class Observe(Stage):
    """Looks once a second for a ledger that lags, for drift, and at the age of the oldest file."""

    def __init__(self, files: FilesUnderWay, claim: Claim) -> None:
        self._files, self._claim = files, claim
        self._lag: LedgerLag | None = None
        self._oldest_s, self._next_s = 0.0, float("-inf")
        self.observe: Callable[[Totals], None] = lambda totals: None
        """Called with the totals after each turn: for metrics."""

    @property
    def totals(self) -> Totals:
        """The numbers of files that this owner has handled, in this life and before.

        Always: seen = filed + withdrawn + shadowed + pending.
        """
        pending, counters = self._files.pending, self._files.counters
        seen = sum(counters.before.values()) + pending.admitted
        counts = (seen, counters.all_lives, pending.withdrawn, len(pending))
        return Totals(*counts, not self._claim.common.unreachable, self._oldest_s, counters.shadowed)

    def advance(self, now: float) -> None:
        """Update the totals; once a second look at ledger, drift and age."""
        if now >= self._next_s:
            files, ledger = self._files, self._files.stations.executor.ledger
            log_lines.ledger(files.log, self._lag, ledger.lag)
            self._lag = ledger.lag
            oldest = files.pending.oldest_s
            self._next_s, self._oldest_s = now + 1, 0.0 if oldest is None else now - oldest
            if (report := files.counters.drift.to_tell(files.counters.clock())) is not None:
                log_lines.drifted(files.log, report)
        self.observe(self.totals)

    def close(self, now: float) -> None:
        """Record in the ledger what is still owed to it.

        Raises:
            Fatal: the ledger can not be written, although files have moved.
        """
        try:
            self._files.stations.executor.ledger.record_postponed()
        except Retry as error:
            raise Fatal(str(error), "Mend that; the next start reconciles ledger and disk.") from error
