"""Carry out people's verdicts in a running daemon.

Verdicts are carried out when a process has written to the wake pipe, and after each scan of the inbox. The work runs
in the thread that moves files and uses the ledger, a chunk at a time, so that sorting goes on in between.
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
"""Pause in seconds after a verdict could not be carried out (the disk is full, for example).

It doubles each time up to the longest. A write to the pipe ends it.
"""


class VerdictWorker:
    """Carries out verdicts, turn by turn of the loop (see :class:`watcher.service.pipeline.Pipeline`).

    ``wake`` ends the wait of the loop. It is called when a chunk is done.
    """

    def __init__(self, pipe: WakePipe, wake: Callable[[], None]) -> None:
        self.pipe, self._wake = pipe, wake
        self._chunk: Future[list[VerdictResult]] | None = None
        self._chunk_executor: DecisionExecutor | None = None
        self._chunks_and_files = 0
        self._requested, self._scans = True, 0
        self._pause_s, self._not_before_s = 0.0, float("-inf")

    @property
    def busy(self) -> bool:
        """True while a chunk is under way."""
        return self._chunk is not None

    @property
    def finished(self) -> int:
        """Number of chunks and of their files done so far.

        Files count because a chunk of many large ones takes long without being stuck.
        """
        return self._chunks_and_files + (self._chunk_executor.carried if self._chunk_executor else 0)

    def turn(
        self, now: float, executor: DecisionExecutor, mover_thread: Executor | None, scans: int
    ) -> list[VerdictResult]:
        """Begin a chunk, or end it. Return the results of a chunk that has ended.

        ``mover_thread`` moves the files, and is None while no chunk may begin. ``scans`` counts the scans of the
        inbox.
        """
        results = self._end(now) if self._chunk is not None and self._chunk.done() else []
        if self.pipe.woken():
            self._requested, self._pause_s, self._not_before_s = True, 0.0, now
        if scans > self._scans and now >= self._not_before_s:
            self._requested, self._scans = True, scans
        if self._requested and self._chunk is None and mover_thread is not None:
            self._requested = False
            self._chunk_executor = DecisionExecutor(executor.ledger, executor.mover, executor.destinations, None)
            self._chunk = mover_thread.submit(verdicts.carry_out_open, self._chunk_executor)
            self._chunk.add_done_callback(lambda _: self._wake())
        return results

    def _end(self, now: float) -> list[VerdictResult]:
        assert self._chunk is not None
        results, self._chunk = self._chunk.result(), None
        self._chunks_and_files, self._chunk_executor = self.finished + 1, None
        if any(result.state == "later" for result in results):
            self._pause_s = min(max(PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
            self._not_before_s = now + self._pause_s
        elif results:
            self._requested, self._pause_s = True, 0.0  # there may be more
        return results

    def close(self, now: float) -> list[VerdictResult]:
        """Close the pipe. Return the results of the last chunk.

        Call this after the thread that moves files has ended, so that the chunk has ended, too.
        """
        results = [] if self._chunk is None else self._end(now)
        self.pipe.close()
        return results
