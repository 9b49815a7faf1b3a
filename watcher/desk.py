"""Where a running daemon takes in what people said of images: when the bell rings, and after each scan.

It is carried out in the thread that moves files and uses the ledger, a chunk at
a time, so that sorting goes on in between.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future

from watcher import log, verdicts
from watcher.bell import Bell
from watcher.clerk import Clerk
from watcher.verdicts import Done

PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
"""How long what could not be done waits (a full disk, say): twice as long each time. The bell ends it."""


class Desk:
    """Turned by the loop, see :class:`watcher.route.Route`. ``wake`` ends its wait."""

    def __init__(self, bell: Bell, logger: log.Logger, wake: Callable[[], None]) -> None:
        self.bell, self._log, self._wake = bell, logger, wake
        self._work: Future[list[Done]] | None = None
        self._asked, self._sweeps, self._pause_s, self._not_before_s = True, 0, 0.0, float("-inf")
        self._ended = 0
        self._persons: Clerk | None = None

    @property
    def busy(self) -> bool:
        """Whether a chunk is under way."""
        return self._work is not None

    @property
    def finished(self) -> int:
        """Chunks done so far, and files of theirs: a chunk of many large ones takes its time."""
        return self._ended + (self._persons.carried if self._persons else 0)

    def turn(self, now: float, clerk: Clerk, mover: Executor | None, sweeps: int) -> None:
        """Begin or end a chunk. ``mover`` is None while none may begin; ``sweeps`` counts scans of the inbox."""
        if self._work is not None and self._work.done():
            self._end(now)
        if self.bell.rung():
            self._asked, self._pause_s, self._not_before_s = True, 0.0, now
        if sweeps > self._sweeps and now >= self._not_before_s:
            self._asked, self._sweeps = True, sweeps
        if self._asked and self._work is None and mover is not None:
            self._asked = False
            self._persons = Clerk(clerk.ledger, clerk.filing, clerk.places, None)
            self._work = mover.submit(verdicts.carry_out, self._persons)
            self._work.add_done_callback(lambda _: self._wake())

    def _end(self, now: float) -> None:
        assert self._work is not None
        done, self._work = self._work.result(), None
        self._ended, self._persons = self.finished + 1, None
        for each in done:
            _tell(self._log, each)
        if any(each.state == "later" for each in done):
            self._pause_s = min(max(PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
            self._not_before_s = now + self._pause_s
        elif done:
            self._asked, self._pause_s = True, 0.0  # there may be more

    def close(self, now: float) -> None:
        """End. What is under way has ended: the thread that moves files has been waited for."""
        if self._work is not None:
            self._end(now)
        self.bell.close()


def _tell(logger: log.Logger, done: Done) -> None:
    """One line for each. Never the note: what people write there may name a patient."""
    verdict = done.verdict
    about = {
        "verdict": verdict.id,
        "name": log.printable(verdict.name),
        "digest": verdict.digest,
        "class": verdict.label,
        "by": log.printable(verdict.user),
    }
    if done.state == "filed":
        source, destination = log.printable(verdict.path), log.printable(done.destination or "")
        logger.info("verdict.filed", **about, id=done.id, source=source, destination=destination)
    elif done.state == "confirmed":
        logger.info("verdict.confirmed", **about, destination=log.printable(verdict.path))
    elif done.state == "left":
        logger.warning("verdict.left", **about, detail=log.printable(done.why or ""))
    else:
        logger.warning("verdict.failed", **about, detail=log.printable(done.why or ""))
