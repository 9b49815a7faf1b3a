"""``explain``: every decision about a file, in the order they were taken, and where it lies now."""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from watcher.config import loader, paths_and_limits
from watcher.core import no_overwrite
from watcher.core.errors import Exit, Fatal
from watcher.core.printable import printable
from watcher.inbox import claims
from watcher.ledger.reader import LedgerEntry, LedgerReader, Verdict

_DIGEST = re.compile(r"[0-9a-fA-F]{8,64}")

_NUMBER = re.compile(r"#?([0-9]{1,18})")

HINT = "Give a path, a name, the number of a decision, or 8 or more digits of a SHA-256."

NOW = {
    "there": "still there, unchanged",
    "changed": "there, but with other bytes",
    "unreadable": "there, but it can not be read",
    "gone": "no longer there",
    "restored": "put back by #{by}",
    "moved_on": "taken on by #{by}",
    "unended": "being moved by {by}, or that died at it",
    "stayed": "it was not moved",
}


def run(args: argparse.Namespace) -> int:
    """Print what is known. Exit code 1 if nothing is known of one of them."""
    if not args.what and not args.id:
        raise Fatal("explain what?", HINT, Exit.USAGE)
    settings = loader.load(args.config or loader.default_path(), os.environ)
    return about([*args.what, *(f"#{number}" for number in args.id)], settings, as_json=args.json)


def about(words: Sequence[str], settings: loader.Config, *, as_json: bool) -> int:
    """Print what is known of each word's files. Exit code 1 if nothing is known of one."""
    unknown = False
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        for word in words:
            found = {entry.id: entry for entry in _about(ledger_reader, word, settings.inbox.path)}
            if not found and (number := _NUMBER.fullmatch(word)):
                found = {entry.id: entry for entry in ledger_reader.entries("d.id = ?", (int(number[1]),))}
            if not found:
                hint = f"the last decision is #{ledger_reader.last_id()}" if _NUMBER.fullmatch(word) else HINT
                print(f"mednet-watcher: nothing is known of {printable(word)}: {hint}", file=sys.stderr)
                unknown = True
            for entry in sorted(found.values(), key=lambda each: (each.decided_at, each.id)):
                entry = _as_seen(entry)
                state, by = _now(ledger_reader, entry)
                said = ledger_reader.verdicts_on(entry)
                print(_json_line(entry, state, by, said) if as_json else _text(entry, state, by, said))
    return Exit.FAILED if unknown else Exit.OK


def _about(ledger_reader: LedgerReader, word: str, inbox: Path) -> Iterator[LedgerEntry]:
    """The decisions of the files that a word can mean, some more than once."""
    if word.startswith("#") and _NUMBER.fullmatch(word):
        return
    path = os.path.abspath(word)
    if os.path.lexists(path) or "/" in word:
        raw = os.fsencode(path)
        yield from ledger_reader.entries(
            "d.source in (?, ?) or e.destination = ?", (raw, os.fsencode(inbox / word), raw)
        )
        yield from ledger_reader.entries("d.digest = ?", (_digest(path),))
    if "/" not in word:
        name = os.fsencode(word)
        ending = b"/" + name
        tail = (-len(ending), ending)
        where = "d.name = ? or substr(e.destination, ?) = ? or substr(d.source, ?) = ?"
        yield from ledger_reader.entries(where, (name, *tail, *tail))
    if _DIGEST.fullmatch(word):
        yield from ledger_reader.entries("d.digest >= ? and d.digest < ?", (word.lower(), word.lower() + "g"))


def _digest(path: str) -> str | None:
    """SHA-256 of a regular file that can be read."""
    try:
        return no_overwrite.digest(Path(path)) if stat.S_ISREG(os.lstat(path).st_mode) else None
    except OSError:
        return None


def _as_seen(entry: LedgerEntry) -> LedgerEntry:
    """What was put back into the inbox lies there, under its name or the next free one; the ledger has how it came."""
    directory = claims.unclaimed_directory(Path(entry.directory))
    if str(directory) == entry.directory:
        return entry
    return replace(entry, directory=str(directory), destination=entry.destination and str(directory / entry.name))


def _now(ledger_reader: LedgerReader, entry: LedgerEntry) -> tuple[str, int | str | None]:
    """A key of ``NOW``, and who did it."""
    if entry.state is None:
        return "unended", entry.owner
    if entry.destination is None:
        return "stayed", None
    if entry.restored_by is not None:
        by = next(ledger_reader.entries("d.id = ?", (entry.restored_by,)))
        return ("restored" if by.outcome == "restored" else "moved_on"), by.id
    since = ledger_reader.entries(
        "d.source = ? and e.state = 'filed'", (os.fsencode(entry.destination),), after=entry.id
    )
    if (later := next(since, None)) is not None:
        return "moved_on", later.id
    if not os.path.lexists(entry.destination):
        return "gone", None
    if entry.digest is None:
        return "there", None
    digest = _digest(entry.destination)
    return ("unreadable" if digest is None else "there" if digest == entry.digest else "changed"), None


def _json_line(entry: LedgerEntry, state: str, by: int | str | None, said: list[Verdict]) -> str:
    told: dict[str, Any] = {
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
        "verdicts": [asdict(verdict) for verdict in said],
    }
    return json.dumps(told)


def _text(entry: LedgerEntry, state: str, by: int | str | None, said: list[Verdict]) -> str:
    judged = " ".join(filter(None, (entry.outcome, entry.label)))
    if entry.top:
        judged += f", {entry.confidence:.4f}: " + ", ".join(f"{label} {p:.4f}" for label, p in entry.top[:3])
    if entry.restores is not None:
        judged += f", {'takes back' if entry.outcome == 'restored' else 'instead of'} #{entry.restores}"
    lines = [
        f"#{entry.id}  {entry.decided_at}  {printable(entry.name)}  (batch {entry.batch})",
        f"    decided  {judged}",
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
    for verdict in said:
        word = f"of class {verdict.label}" if verdict.label else "of none of the classes"
        note = f': "{verdict.note}"' if verdict.note else ""
        told = f"#{verdict.decision} is {word}, says {verdict.user} ({verdict.uid}) at {verdict.given_at}{note}"
        end = (
            f"filed by #{verdict.filed_by}"
            if verdict.filed_by
            else ", ".join(filter(None, (verdict.state, verdict.why)))
        )
        if verdict.withdrawn_by:
            end = f"withdrawn by #{verdict.withdrawn_by}"
        lines.append(f"    verdict  {printable(told)}; {end}")
    return "\n".join(lines)


def _ended(entry: LedgerEntry) -> str:
    note = f": {printable(entry.note)}" if entry.note else ""
    return f"{entry.state} {entry.ended_at}{note}" if entry.state else "not yet"
