"""Starts the daemon: log, config, lock, build, loop. Tells whatever prevents it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Fatal
from watcher.monitoring import log, log_output
from watcher.service import build, loop, signals, systemd
from watcher.service.pipeline import Pipeline
from watcher.service.reload import Reload, ReloadBuilder, Reloaded
from watcher.service.systemd import SystemdReporter


def serve(path: Path, load: build.Loader, *, replaced: bool = False) -> int:
    """Run the daemon with the settings in ``path`` and the network that ``load`` makes."""
    faulthandler.enable()  # the watchdog's SIGABRT tells on standard error where each thread is
    to_journal = log_output.is_journal(sys.stdout, os.environ.get("JOURNAL_STREAM"))
    daemon_log = log.DaemonLog(log_output.LineOutput(sys.stdout), priorities=to_journal)
    daemon_log.use("auto", "info")  # until the config has told
    service = SystemdReporter(systemd.from_environment(os.environ), daemon_log)
    service.notifier.status("starting")
    try:
        with contextlib.ExitStack() as at_end:
            return _serve(path, load, daemon_log, service, at_end, replaced=replaced)
    except Fatal as error:
        daemon_log.logger.critical("daemon.failed", problem=error.problem, advice=error.advice)
        service.notifier.status(f"failed: {error.problem}")
        raise
    except Exception:
        # The edge of the start, as that of `daemon.run`: what nobody foresaw is told like everything else.
        daemon_log.logger.critical("daemon.crashed", exc_info=True)
        return Exit.FAILED


def _serve(
    path: Path,
    load: build.Loader,
    daemon_log: log.DaemonLog,
    service: SystemdReporter,
    at_end: contextlib.ExitStack,
    *,
    replaced: bool,
) -> int:
    started, logger = time.monotonic(), daemon_log.logger
    settings = loader.load(path, os.environ)
    _use(daemon_log, settings, log_output.log_file(settings))
    owned = build.take_inbox(settings)
    logger.info("daemon.starting", config=str(path), inbox=str(settings.inbox.path), pid=os.getpid(), owner=owned.owner)
    wake, stop = signals.LoopWaker(), signals.Signals()
    stop.install(wake, hangup_ends=sys.stdout.isatty())
    pipeline = build.build(settings, owned, wake, logger, load, replaced=replaced)
    at_end.callback(pipeline.stations.executor.ledger.close)
    stop_metrics = build.serve_metrics(settings, pipeline, logger)
    reload = Reload(settings, ReloadBuilder(path, os.environ, owned, wake, load), service.notifier, logger, wake)
    at = datetime.now(UTC).isoformat(timespec="seconds")

    def renewed(fresh: Reloaded) -> None:
        _use(daemon_log, fresh.settings, fresh.log_file)
        now = datetime.now(UTC).isoformat()
        owned.lock.describe({**_facts(pipeline, settings), "started_at": at, "reloaded_at": now})

    reload.done = renewed
    owned.lock.describe({**_facts(pipeline, settings), "started_at": at})
    logger.info("daemon.ready", **_facts(pipeline, settings), start_ms=round((time.monotonic() - started) * 1000))
    service.notifier.ready()
    code = loop.run(pipeline, wake, stop, logger, service, reload)
    stop_metrics()
    owned.release()
    return code


def _facts(pipeline: Pipeline, settings: loader.Config) -> dict[str, object]:
    """What this daemon is, for the log and for ``status``."""
    return {
        "pid": os.getpid(),
        "model": pipeline.stations.executor.model,
        "device": pipeline.stations.device(),
        "mode": settings.mode,
        "inbox": str(settings.inbox.path),
    }


def _use(daemon_log: log.DaemonLog, settings: loader.Config, file: log_output.LogFile | None) -> None:
    daemon_log.use(settings.log.format, settings.log.level, file, paths_and_limits.last_error_path(settings))
