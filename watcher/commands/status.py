"""``status``: is it running, on what, and how much has it done. Reads the lock and the ledger only."""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime
from typing import Any

from watcher import annals, claims, composition, config, lock, seat
from watcher.errors import Exit, Retry


def run(args: argparse.Namespace) -> int:
    """Print the state. Exit code 0 if the daemon runs, else 1."""
    settings = config.load(args.config or config.DEFAULT, os.environ)
    told = _state(settings)
    print(json.dumps(told) if args.json else _text(told))
    return Exit.OK if told["running"] else Exit.FAILED


def _state(settings: config.Config) -> dict[str, Any]:
    holder = lock.holder(composition.lock_path(settings))
    sharing = {name: facts for name, path in seat.workers(settings.state.path).items() if (facts := lock.holder(path))}
    path = composition.ledger_path(settings)
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    tally = annals.tally(path, midnight) if path.exists() else annals.Tally({}, {}, {}, None, 0)
    return {
        "running": holder is not None or bool(sharing),
        "daemon": holder,
        "workers": sharing,
        "inbox": str(settings.inbox.path),
        "waiting": _waiting(settings),
        "today": tally.since,
        "total": tally.total,
        "classes": tally.classes,
        "unended": tally.unended,
        "last_filed_at": tally.last_filed_at,
    }


def _waiting(settings: config.Config) -> int | None:
    try:
        waiting = sum(1 for _ in composition.inbox(settings).sweep())
        return waiting + claims.held(settings.inbox.path)
    except Retry:
        return None


def _text(told: dict[str, Any]) -> str:
    workers = told["workers"]
    daemon: dict[str, Any] = told["daemon"] or next(iter(workers.values()), {})
    processes = [f"{name} {facts.get('pid')}" for name, facts in workers.items()] or [f"process {daemon.get('pid')}"]
    waiting = "can not be listed" if told["waiting"] is None else f"{told['waiting']} files waiting"
    lines = [
        f"running     {'yes, ' + ', '.join(processes) if told['running'] else 'no'}",
        f"since       {daemon.get('started_at', '-')}",
        f"model       {str(daemon.get('model', '-'))[:12]} on {daemon.get('device', '-')}",
        f"inbox       {told['inbox']}: {waiting}",
        f"today       {_counts(told['today'])}",
        f"all time    {_counts(told['total'])}",
        f"classes     {_counts(told['classes'])}",
        f"last filed  {told['last_filed_at'] or '-'}",
    ]
    if told["unended"] and not told["running"]:
        lines.append(f"unended     {told['unended']} moves that the next start will reconcile")
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"
