"""Collect the state of the daemon for ``status``, from its locks, its directories and the ledger."""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import UTC, datetime
from typing import Any

from watcher.config import loader, paths_and_limits
from watcher.core import lock
from watcher.core.errors import Retry
from watcher.filing import destinations, shadow_agreement
from watcher.filing.destinations import Destinations
from watcher.inbox import claims, ownership
from watcher.ledger import reader, status_counts
from watcher.service import stations


def collect(settings: loader.Config) -> dict[str, Any]:
    """Return the object that ``status --json`` prints.

    Raises:
        Fatal: exit code 5; the state directory or the ledger can not be read.
    """
    path = paths_and_limits.ledger_path(settings)
    # First, because it raises: a user who may not enter the state directory would read that no daemon runs.
    ledger_exists = reader.exists(path)
    holder = lock.holder(paths_and_limits.lock_path(settings))
    workers = {
        name: facts for name, path in ownership.workers(settings.state.path).items() if (facts := lock.holder(path))
    }
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    none = status_counts.StatusCounts({}, {}, {}, None, 0)
    counts = status_counts.count_for_status(path, midnight) if ledger_exists else none
    places, waiting = destinations.places(settings), _waiting(settings)
    daemon = any_daemon(holder, workers)
    return {
        "running": holder is not None or bool(workers),
        "daemon": holder,
        "workers": workers,
        "inbox": str(settings.inbox.path),
        "waiting": None if waiting is None else waiting[0],
        "oldest_pending_s": None if waiting is None else waiting[1],
        "backlog": _backlog(places, settings),
        "disk_free_bytes": destinations.free_space(settings, places),
        **last_error(_last_error_line(settings), daemon, counts.last_work_at, datetime.now(UTC)),
        "today": counts.since,
        "total": counts.total,
        "classes": counts.classes,
        "verdicts": counts.verdicts,
        "shadow": _shadow(settings) if path.exists() else None,
        "unended": counts.unended,
        "last_filed_at": counts.last_filed_at,
    }


def any_daemon(holder: dict[str, Any] | None, workers: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the facts of the daemon, or of one of several workers, or None if none runs."""
    return holder or next(iter(workers.values()), None)


def _shadow(settings: loader.Config) -> dict[str, Any] | None:
    """Compare the decisions of shadow mode with where people put the files since. None if there are no decisions."""
    with reader.LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        agreement = shadow_agreement.compare(ledger_reader, settings.output.sorted)
    if not agreement.decided:
        return None
    return {
        "decided": dict(agreement.decided),
        "found": agreement.found,
        "agreed": agreement.agreed,
        "classes": {
            name: {"files": counts.total(), "agreed": counts[name], "decided": dict(counts)}
            for name, counts in sorted(agreement.classes.items())
        },
    }


def _backlog(places: Destinations, settings: loader.Config) -> dict[str, int | None]:
    """Count the files that wait for a person. Directories that shadow mode does not make count as empty."""
    counts = destinations.backlog(places)
    absent = [place for place in counts if settings.mode == "shadow" and not getattr(places, place).exists()]
    return {place: 0 if place in absent else count for place, count in counts.items()}


def _waiting(settings: loader.Config) -> tuple[int, float | None] | None:
    """Return the number of files in the inbox, and the seconds that the oldest has waited. None: it can not be listed.

    The second is None if the inbox is empty.
    """
    count, oldest_s = 0, float("inf")
    try:
        for name in stations.new_inbox(settings).scan():
            count += 1
            with contextlib.suppress(OSError):
                oldest_s = min(oldest_s, os.lstat(settings.inbox.path / name).st_ctime)
        count += claims.count_files(settings.inbox.path)
    except Retry:
        return None
    return count, None if oldest_s == float("inf") else round(max(0.0, time.time() - oldest_s), 1)


def _last_error_line(settings: loader.Config) -> dict[str, Any] | None:
    """Return the last line of level error or above that this daemon logged, in this run or before."""
    try:
        line = json.loads(paths_and_limits.last_error_path(settings).read_text())
    except (OSError, ValueError):
        return None
    return line if isinstance(line, dict) else None


def last_error(
    line: dict[str, Any] | None, daemon: dict[str, Any] | None, worked_at: str | None, now: datetime
) -> dict[str, Any]:
    """Return the last error, its age, and the reason why it is over, or None if it is not.

    An error is over if a file was done since, at ``worked_at``, or the daemon was started since. A refused config is
    over only when a config was taken since, however many files were done with the old one.
    """
    facts = daemon or {}
    at, worked, started, reloaded = (
        _time(text)
        for text in ((line or {}).get("timestamp"), worked_at, facts.get("started_at"), facts.get("reloaded_at"))
    )
    refused = (line or {}).get("event") == "reload.refused"
    over = None
    if refused and at is not None and reloaded is not None and reloaded > at:
        over = f"the config was taken since, at {facts['reloaded_at']}"
    elif not refused and at is not None and worked is not None and worked > at:
        over = f"work went on since, the last at {worked_at}"
    elif at is not None and started is not None and started > at:
        over = f"the daemon was started since, at {facts['started_at']}"
    age_s = None if at is None else round(max(0.0, (now - at).total_seconds()), 1)
    return {"last_error": line, "last_error_age_s": age_s, "last_error_over": over}


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, TypeError):
        return None
