"""``review``: what waits for a person, what is known of it, and what people say of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from watcher.cli import durations
from watcher.cli.commands import explain
from watcher.cli.put_back_files import print_reconciled
from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.printable import printable
from watcher.filing import destinations, put_back, recovery
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.mover import Mover
from watcher.ledger.reader import IN_PLACE, LedgerEntry, LedgerReader, Verdict
from watcher.ledger.writer import Ledger
from watcher.model import checkpoint, promotions
from watcher.review import export, judged_files, verdicts, wake_pipe

PATIENCE_S = 30.0
"""How long a running daemon is waited for. The verdict is on record before, and stays."""

POLL_S = 0.05

SHOWN = {"filed": "filed", "confirmed": "it lies there already", "left": "left alone", "open": "recorded"}


def run(args: argparse.Namespace) -> int:
    """Do what was asked. Exit code 1 if something of it could not be done."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    doing = {"list": _list, "show": _show, "accept": _judge, "reject": _judge, "export": _export}
    return doing[args.doing](args, settings)


def _list(args: argparse.Namespace, settings: loader.Config) -> int:
    """What waits in review, longest first."""
    now, count = datetime.now(UTC), 0
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        for told in _waiting(ledger_reader, settings, now):
            count += 1
            print(json.dumps(told) if args.json else _text(told))
    if not args.json:
        print(f"{count} wait for a person" if count != 1 else "1 waits for a person")
    return Exit.OK


def _waiting(ledger_reader: LedgerReader, settings: loader.Config, now: datetime) -> Iterator[dict[str, Any]]:
    review = settings.output.review
    entries = {e.destination: e for e in ledger_reader.entries(f"{IN_PLACE} and outcome = 'review'") if e.destination}
    given = {verdict.path: verdict for verdict in ledger_reader.verdicts("state = 'open'")}
    for path, entry in entries.items():  # what somebody took away by hand is not missed
        if os.path.lexists(path):
            yield _told(path, entry, given.get(path), now)
    with contextlib.suppress(OSError), os.scandir(review) as found:
        unknown = sorted(e.path for e in found if destinations.is_waiting_file(e) and e.path not in entries)
        moving = {entry.name for entry in ledger_reader.unended()}
        for path in unknown:
            if os.path.basename(path) not in moving:
                yield _told(path, None, given.get(path), now)


def _told(path: str, entry: LedgerEntry | None, open_verdict: Verdict | None, now: datetime) -> dict[str, Any]:
    since = datetime.fromisoformat(entry.ended_at) if entry and entry.ended_at else None
    if since is None:
        with contextlib.suppress(OSError):
            since = datetime.fromtimestamp(os.lstat(path).st_ctime, UTC)
    return {
        "id": entry.id if entry else None,
        "path": path,
        "name": entry.name if entry else os.path.basename(path),
        "digest": entry.digest if entry else None,
        "class": entry.label if entry else None,
        "confidence": entry.confidence if entry else None,
        "top": entry.top if entry else [],
        "reason": entry.reason if entry else "unknown",
        "detail": entry.detail if entry else "nobody filed it: a person put it there",
        "model": entry.model if entry else None,
        "since": since.isoformat(timespec="seconds") if since else None,
        "age_s": round(max(0.0, (now - since).total_seconds()), 1) if since else None,
        "verdict": asdict(open_verdict) if open_verdict else None,
    }


def _text(told: dict[str, Any]) -> str:
    number = f"#{told['id']}" if told["id"] is not None else "-"
    top = ", ".join(f"{label} {probability:.4f}" for label, probability in told["top"][:3])
    why = printable(": ".join(filter(None, (told["reason"], told["detail"]))))
    age = "-" if told["age_s"] is None else durations.age(told["age_s"])
    lines = [f"{number:>8}  {age:>5}  {printable(told['path'])}", f"{'':17}{top + '; ' if top else ''}{why}"]
    if told["verdict"]:
        lines.append(f"{'':17}{_said(told['verdict']['label'])} by {printable(told['verdict']['user'])}, to be filed")
    return "\n".join(lines)


def _said(label: str | None) -> str:
    return "rejected" if label is None else f"accepted as {label}"


def _show(args: argparse.Namespace, settings: loader.Config) -> int:
    """All that is known of files: every decision and every verdict."""
    files = [word if os.path.lexists(word) or "/" in word else _in_review(word, settings) for word in args.files]
    return explain.about(files, settings, as_json=args.json)


def _in_review(word: str, settings: loader.Config) -> str:
    path = settings.output.review / word
    return str(path) if os.path.lexists(path) else word


def _judge(args: argparse.Namespace, settings: loader.Config) -> int:
    """Record verdicts, and have the files moved: by the daemon that runs, else here."""
    label = None
    if args.doing == "accept":
        label = verdicts.class_named(checkpoint.load(promotions.weights_path(None, settings)).classes, args.label)
    path, places = paths_and_limits.ledger_path(settings), destinations.places(settings)
    with LedgerReader(path) as ledger_reader:
        put_back.refuse_root(path)
        judged = {each.path: each for each in (judged_files.find(ledger_reader, file, places) for file in args.files)}
        with contextlib.closing(Ledger(path, owner=put_back.OWNER)) as book:
            given = [_give(book, each, label, args.note) for each in judged.values()]
        _have_filed(given, ledger_reader, settings)
        states = [_tell(ledger_reader, number, as_json=args.json) for number in given]
    daemon = put_back.is_daemon_running(settings.state.path)
    return Exit.FAILED if "left" in states or ("open" in states and not daemon) else Exit.OK


def _give(book: Ledger, judged: judged_files.JudgedFile, label: str | None, note: str | None) -> int:
    try:
        return verdicts.record(book, judged, label, verdicts.current_reviewer(os.environ), note)
    except Retry as error:
        raise Fatal(str(error), "Nothing was recorded of it, nor of those named after it.") from error


def _have_filed(given: list[int], ledger_reader: LedgerReader, settings: loader.Config) -> None:
    """Let the daemon do it, if one listens; else do it, as ``retry`` does."""
    until = time.monotonic() + PATIENCE_S
    while wake_pipe.wake_daemon(settings.state.path):
        for _ in range(20):
            if not _open(ledger_reader, given):
                return
            if time.monotonic() > until:
                print("mednet-watcher: recorded; the daemon has not filed it yet, and will", file=sys.stderr)
                return
            time.sleep(POLL_S)
    with put_back.open_executor(
        paths_and_limits.ledger_path(settings), settings.inbox.path, print_reconciled
    ) as executor:
        _refuse_missing(executor.ledger, settings)
        mover = Mover(settings.inbox.path, paths_and_limits.file_mode(settings))
        persons = DecisionExecutor(executor.ledger, mover, destinations.places(settings), None)
        while done := verdicts.carry_out_open(persons):
            failed = [each for each in done if each.state == "later"]
            for each in failed:
                told = printable(f"{each.verdict.path} can not be moved: {each.why}")
                print(f"mednet-watcher: {told}; it is on record, and tried again", file=sys.stderr)
            if failed:
                return


def _refuse_missing(ledger: Ledger, settings: loader.Config) -> None:
    """As the daemon's start does, and for every class: one that was never filed to lies where the others do."""
    roots = vars(destinations.places(settings)).values()
    try:
        recovery.refuse_lost_mounts(
            ledger, [path for path in ledger.recorded_directories() if any(map(path.is_relative_to, roots))]
        )
    except Fatal as error:
        raise Fatal(
            f"{error.problem}; what was said is on record, and filed once it is mounted", error.advice, error.code
        ) from error


def _open(ledger_reader: LedgerReader, given: list[int]) -> bool:
    return any(ledger_reader.verdicts("id = ? and state = 'open'", number) for number in given)


def _tell(ledger_reader: LedgerReader, number: int, *, as_json: bool) -> str:
    [verdict] = ledger_reader.verdicts("id = ?", number)
    filed = next(ledger_reader.entries("d.id = ?", (verdict.filed_by,)), None) if verdict.filed_by is not None else None
    destination = filed.destination if filed else verdict.path if verdict.state == "confirmed" else None
    with contextlib.suppress(BrokenPipeError):
        if as_json:
            print(json.dumps({**asdict(verdict), "class": verdict.label, "destination": destination}))
        else:
            end = f" -> {printable(destination)}" if filed and destination else ""
            why = f": {verdict.why}" if verdict.why else ""
            print(f"{_said(verdict.label)}  {printable(verdict.path)}{end}  ({SHOWN[verdict.state]}{why})")
    return verdict.state


def _export(args: argparse.Namespace, settings: loader.Config) -> int:
    """Copy what people judged. Exit code 1 if something is no longer there, or was withdrawn after it was exported."""
    target = Path(os.path.realpath(args.to))
    own = (settings.inbox.path, settings.state.path, *(p for _, p in settings.output if isinstance(p, Path)))
    for place in map(os.path.realpath, own):
        if target.is_relative_to(place):
            raise Fatal(
                f"{args.to} lies in {place}, which the daemon sorts from or into",
                "Export to a directory of its own.",
                Exit.DIRECTORY,
            )
    counts = {"copied": 0, "there": 0, "left": 0, "withdrawn": 0}
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        for result in export.export(ledger_reader, Path(os.path.abspath(args.to))):
            counts[result.state] += 1
            if result.why:
                path = result.path if result.state == "left" else str(result.destination)
                print(f"{result.state}  {printable(path)}: {printable(result.why)}", file=sys.stderr)
    copied = f"{counts['copied']} copied to {args.to}, {counts['there']} were there, {counts['left']} left alone"
    copied += f", {counts['withdrawn']} withdrawn since" if counts["withdrawn"] else ""
    print(json.dumps(counts) if args.json else copied)
    return Exit.FAILED if counts["left"] or counts["withdrawn"] else Exit.OK
