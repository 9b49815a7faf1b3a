"""``status``: show if the daemon runs, with which model, what it has done and what waits."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from watcher.cli import daemon_state, durations
from watcher.config import loader
from watcher.core.errors import Exit
from watcher.core.printable import printable


def run(args: argparse.Namespace) -> int:
    """Print the state. Return exit code 0 if the daemon runs, else 1."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    state = daemon_state.collect(settings)
    print(json.dumps(state) if args.json else _text(state))
    return Exit.OK if state["running"] else Exit.FAILED


def _text(state: dict[str, Any]) -> str:
    workers = state["workers"]
    daemon = daemon_state.any_daemon(state["daemon"], workers) or {}
    processes = [f"{name} {facts.get('pid')}" for name, facts in workers.items()] or [f"process {daemon.get('pid')}"]
    waiting = "can not be listed" if state["waiting"] is None else f"{state['waiting']} waiting"
    lines = [
        f"running     {'yes, ' + ', '.join(processes) if state['running'] else 'no'}",
        f"mode        {daemon.get('mode', '-')}",
        f"since       {daemon.get('started_at', '-')}",
        f"model       {str(daemon.get('model', '-'))[:12]} on {daemon.get('device', '-')}",
        f"inbox       {state['inbox']}: {waiting}",
        f"oldest      {_waiting_time(state['oldest_pending_s'])}",
        f"today       {_counts(state['today'])}",
        f"all time    {_counts(state['total'])}",
        f"classes     {_counts(state['classes'])}",
        f"verdicts    {_counts(state['verdicts'])}",
        f"last filed  {state['last_filed_at'] or '-'}",
        f"backlog     {backlog_text(state['backlog'])}",
        f"disk free   {', '.join(f'{place} {free / 1e9:.1f} GB' for place, free in state['disk_free_bytes'].items())}",
        f"last error  {last_error_text(state)}",
    ]
    lines += _shadow_lines(state["shadow"]) if state["shadow"] else []
    if state["unended"] and not state["running"]:
        lines.append(f"unended     {state['unended']} moves that the next start will reconcile")
    return "\n".join(lines)


def _shadow_lines(shadow: dict[str, Any]) -> list[str]:
    """Return the decisions of shadow mode, and a row for each class that people put their files into."""
    agreed = f"people have put {shadow['found']} of them into class directories since, {shadow['agreed']} as decided"
    lines = [f"in shadow   {_counts(shadow['decided'])}; {agreed}"]
    if shadow["classes"]:
        lines.append(f"{'':12}{'put into':16} {'files':>7} {'as decided':>11}  decisions")
    for name, row in shadow["classes"].items():
        lines.append(f"{'':12}{name:16} {row['files']:7} {row['agreed']:11}  {_counts(row['decided'])}")
    return lines


def _waiting_time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"waiting for {seconds:.0f} s" if seconds < 120 else f"waiting for {seconds / 60:.0f} min"


def last_error_text(error: dict[str, Any]) -> str:
    """Return the result of :func:`watcher.cli.daemon_state.last_error` as text."""
    line, age_s, over = error["last_error"], error["last_error_age_s"], error["last_error_over"]
    if line is None:
        return "none"
    detail = line.get("detail") or line.get("problem") or line.get("station") or ""
    ago = "" if age_s is None else f"{durations.age(age_s)} ago, "
    event = f"{line.get('timestamp', '')}  {line.get('event', '')}  {detail}".rstrip()
    lasting = "no config taken since" if line.get("event") == "reload.refused" else "no file done since"
    return printable(f"{'over, ' if over else ''}{ago}{event}; {over or lasting}")


def backlog_text(counts: dict[str, int | None]) -> str:
    """Return the numbers of files that wait for a person in each directory, as text."""
    words = [f"{place} {'can not be listed' if n is None else n}" for place, n in counts.items() if n != 0]
    return ", ".join(words) or "nothing"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"
