"""Start the daemon: log, config, lock, build, loop. Log any error that prevents it."""

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
    """Run the daemon with the settings in ``path`` and the network that ``load`` returns. Return the exit code.

    ``replaced``: the directories were replaced for good since the last run, so no mount is missing.
    """
    faulthandler.enable()  # on the watchdog's SIGABRT, writes the stack of each thread to standard error
    to_journal = log_output.is_journal(sys.stdout, os.environ.get("JOURNAL_STREAM"))
    daemon_log = log.DaemonLog(log_output.LineOutput(sys.stdout), priorities=to_journal)
    daemon_log.use("auto", "info")  # until the config is read
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
        # The outermost frame of the start, like that of `loop.run`: unforeseen errors are logged like all others.
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
    began_s, logger = time.monotonic(), daemon_log.logger
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
    started_at = datetime.now(UTC).isoformat(timespec="seconds")

    def after_reload(fresh: Reloaded) -> None:
        _use(daemon_log, fresh.settings, fresh.log_file)
        reloaded_at = datetime.now(UTC).isoformat()
        owned.lock.describe({**_facts(pipeline, settings), "started_at": started_at, "reloaded_at": reloaded_at})

    reload.done = after_reload
    owned.lock.describe({**_facts(pipeline, settings), "started_at": started_at})
    logger.info("daemon.ready", **_facts(pipeline, settings), start_ms=round((time.monotonic() - began_s) * 1000))
    service.notifier.ready()
    code = loop.run(pipeline, wake, stop, logger, service, reload)
    stop_metrics()
    owned.release()
    return code


def _facts(pipeline: Pipeline, settings: loader.Config) -> dict[str, object]:
    """Return the facts about this daemon for the log and for ``status``."""
    return {
        "pid": os.getpid(),
        "model": pipeline.stations.executor.model,
        "device": pipeline.stations.device(),
        "mode": settings.mode,
        "inbox": str(settings.inbox.path),
    }


def _use(daemon_log: log.DaemonLog, settings: loader.Config, file: log_output.LogFile | None) -> None:
    daemon_log.use(settings.log.format, settings.log.level, file, paths_and_limits.last_error_path(settings))
