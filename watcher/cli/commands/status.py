"""``status``: is it running, on what, and how much has it done. Reads the lock and the ledger only."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from datetime import UTC, datetime
from typing import Any

from watcher.cli import durations
from watcher.config import loader, paths_and_limits
from watcher.core import lock
from watcher.core.errors import Exit, Retry
from watcher.core.printable import printable
from watcher.filing import destinations, shadow_agreement
from watcher.filing.destinations import Destinations
from watcher.inbox import claims, ownership
from watcher.ledger import reader, status_counts
from watcher.service import stations


def run(args: argparse.Namespace) -> int:
    """Print the state. Exit code 0 if the daemon runs, else 1."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    told = _state(settings)
    print(json.dumps(told) if args.json else _text(told))
    return Exit.OK if told["running"] else Exit.FAILED


def _state(settings: loader.Config) -> dict[str, Any]:
    path = paths_and_limits.ledger_path(settings)
    known = reader.exists(path)  # first: who may not look would be told that nothing runs
    holder = lock.holder(paths_and_limits.lock_path(settings))
    sharing = {
        name: facts for name, path in ownership.workers(settings.state.path).items() if (facts := lock.holder(path))
    }
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    tally = status_counts.count_for_status(path, midnight) if known else status_counts.StatusCounts({}, {}, {}, None, 0)
    places, waiting = destinations.places(settings), _waiting(settings)
    return {
        "running": holder is not None or bool(sharing),
        "daemon": holder,
        "workers": sharing,
        "inbox": str(settings.inbox.path),
        "waiting": None if waiting is None else waiting[0],
        "oldest_pending_s": None if waiting is None else waiting[1],
        "backlog": _to_see_to(destinations.backlog(places), places, settings),
        "disk_free_bytes": destinations.free_space(settings, places),
        **told_of_error(_last_error(settings), _daemon(holder, sharing), tally.last_work_at, datetime.now(UTC)),
        "today": tally.since,
        "total": tally.total,
        "classes": tally.classes,
        "verdicts": tally.verdicts,
        "shadow": _shadow(settings) if path.exists() else None,
        "unended": tally.unended,
        "last_filed_at": tally.last_filed_at,
    }


def _shadow(settings: loader.Config) -> dict[str, Any] | None:
    """Shadow decisions, and where people put those files since. None where there are none."""
    with reader.LedgerReader(paths_and_limits.ledger_path(settings)) as book:
        found = shadow_agreement.compare(book, settings.output.sorted)
    if not found.decided:
        return None
    return {
        "decided": dict(found.decided),
        "found": found.found,
        "agreed": found.agreed,
        "classes": {
            name: {"files": counts.total(), "agreed": counts[name], "decided": dict(counts)}
            for name, counts in sorted(found.classes.items())
        },
    }


def _to_see_to(counts: dict[str, int | None], places: Destinations, settings: loader.Config) -> dict[str, int | None]:
    """Without the directories that a trial in shadow mode does not make."""
    absent = [place for place in counts if settings.mode == "shadow" and not getattr(places, place).exists()]
    return {place: 0 if place in absent else count for place, count in counts.items()}


def _waiting(settings: loader.Config) -> tuple[int, float | None] | None:
    """How many files wait in the inbox, and for how long the oldest has; None: it can not be listed."""
    count, oldest = 0, float("inf")
    try:
        for name in stations.new_inbox(settings).scan():
            count += 1
            with contextlib.suppress(OSError):
                oldest = min(oldest, os.lstat(settings.inbox.path / name).st_ctime)
        count += claims.count_files(settings.inbox.path)
    except Retry:
        return None
    return count, None if oldest == float("inf") else round(max(0.0, time.time() - oldest), 1)


def _last_error(settings: loader.Config) -> dict[str, Any] | None:
    """The last line of level error or above that the daemon logged, in this life or before."""
    try:
        told = json.loads(paths_and_limits.last_error_path(settings).read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _text(told: dict[str, Any]) -> str:
    workers = told["workers"]
    daemon = _daemon(told["daemon"], workers) or {}
    processes = [f"{name} {facts.get('pid')}" for name, facts in workers.items()] or [f"process {daemon.get('pid')}"]
    waiting = "can not be listed" if told["waiting"] is None else f"{told['waiting']} waiting"
    lines = [
        f"running     {'yes, ' + ', '.join(processes) if told['running'] else 'no'}",
        f"mode        {daemon.get('mode', '-')}",
        f"since       {daemon.get('started_at', '-')}",
        f"model       {str(daemon.get('model', '-'))[:12]} on {daemon.get('device', '-')}",
        f"inbox       {told['inbox']}: {waiting}",
        f"oldest      {_since(told['oldest_pending_s'])}",
        f"today       {_counts(told['today'])}",
        f"all time    {_counts(told['total'])}",
        f"classes     {_counts(told['classes'])}",
        f"verdicts    {_counts(told['verdicts'])}",
        f"last filed  {told['last_filed_at'] or '-'}",
        f"to see to   {_backlog(told['backlog'])}",
        f"disk left   {', '.join(f'{place} {free / 1e9:.1f} GB' for place, free in told['disk_free_bytes'].items())}",
        f"last error  {last_error_text(told)}",
    ]
    lines += _shadow_lines(told["shadow"]) if told["shadow"] else []
    if told["unended"] and not told["running"]:
        lines.append(f"unended     {told['unended']} moves that the next start will reconcile")
    return "\n".join(lines)


def _shadow_lines(told: dict[str, Any]) -> list[str]:
    """What was decided in the shadow, and a row for each class that people put such files into."""
    found = f"people have put {told['found']} of them into class directories since, {told['agreed']} as decided"
    lines = [f"in shadow   {_counts(told['decided'])}; {found}"]
    if told["classes"]:
        lines.append(f"{'':12}{'put into':16} {'files':>7} {'as decided':>11}  what was decided")
    for name, row in told["classes"].items():
        lines.append(f"{'':12}{name:16} {row['files']:7} {row['agreed']:11}  {_counts(row['decided'])}")
    return lines


def _since(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"waiting for {seconds:.0f} s" if seconds < 120 else f"waiting for {seconds / 60:.0f} min"


def _daemon(holder: dict[str, Any] | None, workers: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The facts of the daemon, or of one of several."""
    return holder or next(iter(workers.values()), None)


def told_of_error(
    line: dict[str, Any] | None, daemon: dict[str, Any] | None, worked_at: str | None, now: datetime
) -> dict[str, Any]:
    """The last error, its age, and whether it is over: since then a file was done, or the daemon was started.

    A config that was refused is so until one is taken, however many files are done by the old one.
    """
    facts = daemon or {}
    at, worked, started, reloaded = (
        _time(each)
        for each in ((line or {}).get("timestamp"), worked_at, facts.get("started_at"), facts.get("reloaded_at"))
    )
    refused = (line or {}).get("event") == "reload.refused"
    past = None
    if refused and at is not None and reloaded is not None and reloaded > at:
        past = f"the config was taken since, at {facts['reloaded_at']}"
    elif not refused and at is not None and worked is not None and worked > at:
        past = f"work went on since, the last at {worked_at}"
    elif at is not None and started is not None and started > at:
        past = f"the daemon was started since, at {facts['started_at']}"
    age_s = None if at is None else round(max(0.0, (now - at).total_seconds()), 1)
    return {"last_error": line, "last_error_age_s": age_s, "last_error_over": past}


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, TypeError):
        return None


def last_error_text(told: dict[str, Any]) -> str:
    """What :func:`told_of_error` says, in words."""
    line, age_s, over = told["last_error"], told["last_error_age_s"], told["last_error_over"]
    if line is None:
        return "none"
    about = line.get("detail") or line.get("problem") or line.get("station") or ""
    ago = "" if age_s is None else f"{durations.age(age_s)} ago, "
    told_line = f"{line.get('timestamp', '')}  {line.get('event', '')}  {about}".rstrip()
    lasting = "no config taken since" if line.get("event") == "reload.refused" else "no file done since"
    return printable(f"{'over, ' if over else ''}{ago}{told_line}; {over or lasting}")


def _backlog(counts: dict[str, int | None]) -> str:
    words = [f"{place} {'can not be listed' if n is None else n}" for place, n in counts.items() if n != 0]
    return ", ".join(words) or "nothing"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"
