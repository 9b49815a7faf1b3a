"""The loop: signals, waiting, stopping. The only place that catches everything."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from types import FrameType

from watcher.errors import Exit, Fatal
from watcher.log import Logger
from watcher.route import Route
from watcher.service import Service


class Wake:
    """A pipe that ends a wait: written by threads and, through the wakeup fd, by signals."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self) -> None:
        """End the present wait, or the next."""
        with contextlib.suppress(BlockingIOError):  # full: the wait ends anyway
            os.write(self._writer, b"\0")

    def fileno(self) -> int:
        """Readable when there is something to do."""
        return self._reader

    @property
    def writer(self) -> int:
        """For ``signal.set_wakeup_fd``."""
        return self._writer

    def clear(self) -> None:
        """Forget what has been written."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 4096)) == 4096:
                pass


class Stop:
    """Set by SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self, wake: Wake) -> None:
        """Take over the signals of this process. Call from the main thread."""
        signal.set_wakeup_fd(wake.writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def run(
    route: Route,
    wake: Wake,
    stop: Stop,
    log: Logger,
    service: Service,
    clock: Callable[[], float] = time.monotonic,
) -> Exit:
    """Turn the route until told to stop. Whatever happens, what it holds stays in the inbox."""
    try:
        while stop.signal is None:
            due = route.step(clock())
            wanted = service.turn(route, clock())
            timeout = max(0.0, (wanted if due is None else min(due, wanted)) - clock())
            if timeout > 0:
                wait([wake.fileno(), *route.connections], timeout)
            wake.clear()
        return _end(route, log, service, Exit.OK, clock, signal=signal.Signals(stop.signal).name)
    except Fatal as error:
        log.critical("daemon.failed", problem=error.problem, advice=error.advice)
        return _end(route, log, service, error.code, clock)
    except Exception:
        # The edge: nothing was expected to get here. systemd restarts, recover reconciles.
        log.critical("daemon.crashed", exc_info=True)
        return _end(route, log, service, Exit.FAILED, clock)


def _end(route: Route, log: Logger, service: Service, code: Exit, clock: Callable[[], float], **why: str) -> Exit:
    service.notify.stopping()
    log.info("daemon.stopping", **why)
    try:
        route.close(clock())
    except Fatal as error:
        log.critical("daemon.failed", problem=error.problem, advice=error.advice)
        code = error.code
    log.info("daemon.stopped", **route.filed, exit_code=int(code))
    return code
