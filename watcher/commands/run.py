"""``run``: the daemon."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from watcher import composition, config, daemon, log
from watcher.errors import Fatal
from watcher.lock import Lock, claim_directory


def run(args: argparse.Namespace) -> int:
    """Watch, sort, log, until SIGTERM or SIGINT."""
    return serve(args.config or config.DEFAULT, composition.load_network)


def serve(path: Path, load: composition.Loader) -> int:
    """Run the daemon with the settings in ``path`` and the network that ``load`` makes."""
    started = time.monotonic()
    settings = config.load(path, os.environ)
    logger = log.configure(settings.log.format, settings.log.level, log.Output(sys.stdout))
    lock = Lock(composition.lock_path(settings))
    lock.acquire()
    claim_directory(settings.inbox.path)  # until this process ends
    logger.info("daemon.starting", config=str(path), inbox=str(settings.inbox.path), pid=os.getpid())
    wake, stop = daemon.Wake(), daemon.Stop()
    stop.install(wake)
    try:
        route = composition.build(settings, wake, logger, load)
    except Fatal as error:
        logger.critical("daemon.failed", problem=error.problem, advice=error.advice)
        raise
    facts = {
        "pid": os.getpid(),
        "model": route.clerk.model,
        "device": route.device(),
        "inbox": str(settings.inbox.path),
    }
    lock.describe({**facts, "started_at": datetime.now(UTC).isoformat(timespec="seconds")})
    logger.info("daemon.ready", **facts, start_ms=round((time.monotonic() - started) * 1000))
    code = daemon.run(route, wake, stop, logger)
    lock.release()
    return code
