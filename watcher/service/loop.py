"""The loop: signals, waiting, stopping. The only place that catches everything."""

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
    """What a reload looks like from here, see :class:`watcher.service.reload.Reload`."""

    def ask(self) -> None: ...  # noqa: D102

    def turn(self, pipeline: Pipeline) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def run(
    pipeline: Pipeline,
    wake: LoopWaker,
    stop: Signals,
    log: Logger,
    service: SystemdReporter,
    reload: Reloader,
    clock: Callable[[], float] = time.monotonic,
) -> Exit:
    """Turn the pipeline until told to stop. Whatever happens, what it holds stays in the inbox."""
    end = functools.partial(_end, pipeline, log, service, reload, clock)
    try:
        while stop.signal is None:
            if stop.reload:
                stop.reload = False
                reload.ask()
            reload.turn(pipeline)
            due, wanted = pipeline.step(clock()), service.turn(pipeline, clock())
            timeout = max(0.0, (wanted if due is None else min(due, wanted)) - clock())
            if timeout > 0:
                wait([wake.fileno(), *pipeline.connections], timeout)
            wake.clear()
        return end(Exit.OK, signal=signal.Signals(stop.signal).name)
    except Fatal as error:
        log.critical("daemon.failed", problem=error.problem, advice=error.advice)
        return end(error.code)
    except Exception:
        # The edge: nothing was expected to get here. systemd restarts, recover reconciles.
        log.critical("daemon.crashed", exc_info=True)
        return end(Exit.FAILED)


def _end(
    pipeline: Pipeline,
    log: Logger,
    service: SystemdReporter,
    reload: Reloader,
    clock: Callable[[], float],
    code: Exit,
    **why: str,
) -> Exit:
    service.notifier.stopping()
    service.daemon_log.flush(all=True)
    log.info("daemon.stopping", **why)
    try:
        pipeline.close(clock())
        reload.close()  # a load under way is waited for: by now nothing else is
    except Fatal as error:
        log.critical("daemon.failed", problem=error.problem, advice=error.advice)
        code = error.code
    log.info("daemon.stopped", **pipeline.counters.filed, exit_code=int(code))
    return code
