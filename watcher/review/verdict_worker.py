"""Where a running daemon takes in what people said of images: when the bell rings, and after each scan.

It is carried out in the thread that moves files and uses the ledger, a chunk at
a time, so that sorting goes on in between.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future

from watcher.filing.decision_executor import DecisionExecutor
from watcher.review import verdicts
from watcher.review.verdicts import VerdictResult
from watcher.review.wake_pipe import WakePipe

PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
"""How long what could not be done waits (a full disk, say): twice as long each time. The bell ends it."""


class VerdictWorker:
    """Turned by the loop, see :class:`watcher.service.pipeline.Pipeline`. ``wake`` ends its wait."""

    def __init__(self, bell: WakePipe, wake: Callable[[], None]) -> None:
        self.bell, self._wake = bell, wake
        self._work: Future[list[VerdictResult]] | None = None
        self._asked, self._scans, self._pause_s, self._not_before_s = True, 0, 0.0, float("-inf")
        self._ended = 0
        self._persons: DecisionExecutor | None = None

    @property
    def busy(self) -> bool:
        """Whether a chunk is under way."""
        return self._work is not None

    @property
    def finished(self) -> int:
        """Chunks done so far, and files of theirs: a chunk of many large ones takes its time."""
        return self._ended + (self._persons.carried if self._persons else 0)

    def turn(self, now: float, executor: DecisionExecutor, mover: Executor | None, scans: int) -> list[VerdictResult]:
        """Begin or end a chunk. Gives the verdicts of one that has ended.

        ``mover`` is None while none may begin; ``sweeps`` counts scans of the inbox.
        """
        done = self._end(now) if self._work is not None and self._work.done() else []
        if self.bell.rung():
            self._asked, self._pause_s, self._not_before_s = True, 0.0, now
        if scans > self._scans and now >= self._not_before_s:
            self._asked, self._scans = True, scans
        if self._asked and self._work is None and mover is not None:
            self._asked = False
            self._persons = DecisionExecutor(executor.ledger, executor.mover, executor.destinations, None)
            self._work = mover.submit(verdicts.carry_out, self._persons)
            self._work.add_done_callback(lambda _: self._wake())
        return done

    def _end(self, now: float) -> list[VerdictResult]:
        assert self._work is not None
        done, self._work = self._work.result(), None
        self._ended, self._persons = self.finished + 1, None
        if any(each.state == "later" for each in done):
            self._pause_s = min(max(PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
            self._not_before_s = now + self._pause_s
        elif done:
            self._asked, self._pause_s = True, 0.0  # there may be more
        return done

    def close(self, now: float) -> list[VerdictResult]:
        """End. What is under way has ended: the thread that moves files has been waited for."""
        done = [] if self._work is None else self._end(now)
        self.bell.close()
        return done
