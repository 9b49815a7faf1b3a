"""Starts the daemon: log, config, lock, build, loop. Tells whatever prevents it."""

from __future__ import annotations

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
from watcher.service.pipeline import Route
from watcher.service.reload import Fresh, Maker, Reload
from watcher.service.systemd import Service


def serve(path: Path, load: build.Loader, *, replaced: bool = False) -> int:
    """Run the daemon with the settings in ``path`` and the network that ``load`` makes."""
    faulthandler.enable()  # the watchdog's SIGABRT tells on standard error where each thread is
    to_journal = log_output.is_journal(sys.stdout, os.environ.get("JOURNAL_STREAM"))
    journal = log.Journal(log_output.Output(sys.stdout), priorities=to_journal)
    journal.use("auto", "info")  # until the config has told
    service = Service(systemd.from_environment(os.environ), journal)
    service.notify.status("starting")
    try:
        return _serve(path, load, journal, service, replaced=replaced)
    except Fatal as error:
        journal.logger.critical("daemon.failed", problem=error.problem, advice=error.advice)
        service.notify.status(f"failed: {error.problem}")
        raise
    except Exception:
        # The edge of the start, as that of `daemon.run`: what nobody foresaw is told like everything else.
        journal.logger.critical("daemon.crashed", exc_info=True)
        return Exit.FAILED


def _serve(path: Path, load: build.Loader, journal: log.Journal, service: Service, *, replaced: bool) -> int:
    started, logger = time.monotonic(), journal.logger
    settings = loader.load(path, os.environ)
    _use(journal, settings, log_output.log_file(settings))
    seat = build.take_seat(settings)
    logger.info("daemon.starting", config=str(path), inbox=str(settings.inbox.path), pid=os.getpid(), owner=seat.owner)
    wake, stop = signals.Wake(), signals.Stop()
    stop.install(wake, hangup_ends=sys.stdout.isatty())
    route = build.build(settings, seat, wake, logger, load, replaced=replaced)
    stop_metrics = build.serve_metrics(settings, route, logger)
    reload = Reload(settings, Maker(path, os.environ, seat, wake, load), service.notify, logger, wake)
    at = datetime.now(UTC).isoformat(timespec="seconds")

    def renewed(fresh: Fresh) -> None:
        _use(journal, fresh.settings, fresh.log_file)
        now = datetime.now(UTC).isoformat()
        seat.lock.describe({**_facts(route, settings), "started_at": at, "reloaded_at": now})

    reload.done = renewed
    seat.lock.describe({**_facts(route, settings), "started_at": at})
    logger.info("daemon.ready", **_facts(route, settings), start_ms=round((time.monotonic() - started) * 1000))
    service.notify.ready()
    code = loop.run(route, wake, stop, logger, service, reload)
    stop_metrics()
    seat.leave()
    return code


def _facts(route: Route, settings: loader.Config) -> dict[str, object]:
    """What this daemon is, for the log and for ``status``."""
    return {
        "pid": os.getpid(),
        "model": route.clerk.model,
        "device": route.device(),
        "mode": settings.mode,
        "inbox": str(settings.inbox.path),
    }


def _use(journal: log.Journal, settings: loader.Config, file: log_output.File | None) -> None:
    journal.use(settings.log.format, settings.log.level, file, paths_and_limits.last_error_path(settings))
