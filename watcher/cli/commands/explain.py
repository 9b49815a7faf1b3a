"""``explain``: show every decision about a file, in the order in which they were made, and where the file lies now."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from watcher.cli import file_history
from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Fatal
from watcher.core.printable import printable
from watcher.ledger.reader import LedgerEntry, LedgerReader, Verdict

HINT = "Give a path, a name, the number of a decision, or 8 or more digits of a SHA-256."

NOW = {
    "there": "still there, unchanged",
    "changed": "there, but with other bytes",
    "unreadable": "there, but it can not be read",
    "gone": "no longer there",
    "restored": "put back by #{by}",
    "moved_on": "moved on by #{by}",
    "unended": "being moved by {by}, or {by} died while moving it",
    "stayed": "it was not moved",
}
"""Text for each state of :func:`watcher.cli.file_history.present_state`."""


def run(args: argparse.Namespace) -> int:
    """Print all that is known of the files. Return exit code 1 if nothing is known of one of them."""
    if not args.what and not args.id:
        raise Fatal("explain which file?", HINT, Exit.USAGE)
    settings = loader.load(args.config or loader.default_path(), os.environ)
    return print_history([*args.what, *(f"#{number}" for number in args.id)], settings, as_json=args.json)


def print_history(references: Sequence[str], settings: loader.Config, *, as_json: bool) -> int:
    """Print all that is known of the files that are meant. Return exit code 1 if nothing is known of one of them."""
    unknown = False
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        for reference in references:
            entries = file_history.find(ledger_reader, reference, settings.inbox.path)
            if not entries:
                is_number = file_history.NUMBER.fullmatch(reference)
                hint = f"the last decision is #{ledger_reader.last_id()}" if is_number else HINT
                print(f"mednet-watcher: nothing is known of {printable(reference)}: {hint}", file=sys.stderr)
                unknown = True
            for entry in map(file_history.with_inbox_path, entries):
                state, by = file_history.present_state(ledger_reader, entry)
                verdicts = ledger_reader.verdicts_on(entry)
                print(_json_line(entry, state, by, verdicts) if as_json else _text(entry, state, by, verdicts))
    return Exit.FAILED if unknown else Exit.OK


def _json_line(entry: LedgerEntry, state: str, by: int | str | None, verdicts: list[Verdict]) -> str:
    fields: dict[str, Any] = {
        "id": entry.id,
        "batch": entry.batch,
        "time": entry.decided_at,
        "name": entry.name,
        "digest": entry.digest,
        "outcome": entry.outcome,
        "class": entry.label,
        "confidence": entry.confidence,
        "top": entry.top,
        "reason": entry.reason,
        "detail": entry.detail,
        "model": entry.model,
        "source": entry.source,
        "directory": entry.directory,
        "restores": entry.restores,
        "state": entry.state,
        "destination": entry.destination,
        "note": entry.note,
        "ended_at": entry.ended_at,
        "now": state,
        "now_by": by,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    return json.dumps(fields)


def _text(entry: LedgerEntry, state: str, by: int | str | None, verdicts: list[Verdict]) -> str:
    decided = " ".join(filter(None, (entry.outcome, entry.label)))
    if entry.top:
        decided += f", {entry.confidence:.4f}: " + ", ".join(f"{label} {p:.4f}" for label, p in entry.top[:3])
    if entry.restores is not None:
        decided += f", {'takes back' if entry.outcome == 'restored' else 'instead of'} #{entry.restores}"
    lines = [
        f"#{entry.id}  {entry.decided_at}  {printable(entry.name)}  (batch {entry.batch})",
        f"    decided  {decided}",
    ]
    if entry.reason:
        lines.append(f"    because  {printable(': '.join(filter(None, (entry.reason, entry.detail))))}")
    lines += [
        f"    model    {entry.model or 'none: a person decided'}",
        f"    digest   {entry.digest or 'unknown: it could not be read'}",
        f"    from     {printable(entry.source)}",
        f"    to       {printable(entry.destination or entry.directory)}",
        f"    ended    {_ended(entry)}",
        f"    now      {NOW[state].format(by=by)}",
    ]
    lines += [f"    verdict  {_verdict_text(verdict)}" for verdict in verdicts]
    return "\n".join(lines)


def _verdict_text(verdict: Verdict) -> str:
    label = f"of class {verdict.label}" if verdict.label else "of none of the classes"
    note = f': "{verdict.note}"' if verdict.note else ""
    text = f"#{verdict.decision} is {label}, says {verdict.user} ({verdict.uid}) at {verdict.given_at}{note}"
    if verdict.withdrawn_by:
        end = f"withdrawn by #{verdict.withdrawn_by}"
    elif verdict.filed_by:
        end = f"filed by #{verdict.filed_by}"
    else:
        end = ", ".join(filter(None, (verdict.state, verdict.why)))
    return f"{printable(text)}; {end}"


def _ended(entry: LedgerEntry) -> str:
    note = f": {printable(entry.note)}" if entry.note else ""
    return f"{entry.state} {entry.ended_at}{note}" if entry.state else "not yet"
