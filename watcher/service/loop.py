"""Turn the pipeline until the daemon is told to stop, and wait in between. The only place that catches everything."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Protocol

from watcher.core.errors import Exit, Fatal
from watcher.monitoring.log import Logger
from watcher.service.pipeline import Pipeline
from watcher.service.signals import LoopWaker, Signals
from watcher.service.systemd import SystemdReporter


class Reloader(Protocol):
    """The part of :class:`watcher.service.reload.Reload` that the loop uses."""

    def ask(self) -> None: ...  # noqa: D102

    def turn(self, pipeline: Pipeline) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def run(
    pipeline: Pipeline,
    wake: LoopWaker,
    signals: Signals,
    log: Logger,
    systemd: SystemdReporter,
    reload: Reloader,
    clock: Callable[[], float] = time.monotonic,
) -> Exit:
    """Turn the pipeline until a signal ends it, and return the exit code.

    Whatever happens, the files that are under way stay in the inbox.
    """
    end = functools.partial(_end, pipeline, log, systemd, reload, clock)
    try:
        while signals.signal is None:
            if signals.reload:
                signals.reload = False
                reload.ask()
            reload.turn(pipeline)
            due, wanted = pipeline.step(clock()), systemd.turn(pipeline, clock())
            timeout = max(0.0, (wanted if due is None else min(due, wanted)) - clock())
            if timeout > 0:
                wait([wake.fileno(), *pipeline.connections], timeout)
            wake.clear()
        return end(Exit.OK, signal=signal.Signals(signals.signal).name)
    except Fatal as error:
        log.critical("daemon.failed", problem=error.problem, advice=error.advice)
        return end(error.code)
    except Exception:
        # The edge: nothing was expected to get here. systemd restarts the daemon, recovery reconciles.
        log.critical("daemon.crashed", exc_info=True)
        return end(Exit.FAILED)


def _end(
    pipeline: Pipeline,
    log: Logger,
    systemd: SystemdReporter,
    reload: Reloader,
    clock: Callable[[], float],
    code: Exit,
    **why: str,
) -> Exit:
    """Close everything and log it. Return the exit code, another one if closing fails."""
    systemd.notifier.stopping()
    systemd.daemon_log.flush(all=True)
    log.info("daemon.stopping", **why)
    try:
        pipeline.close(clock())
        reload.close()  # a load under way is waited for: by now nothing else is
    except Fatal as error:
        log.critical("daemon.failed", problem=error.problem, advice=error.advice)
        code = error.code
    log.info("daemon.stopped", **pipeline.counters.filed, exit_code=int(code))
    return code
