"""``review``: list and show the images that wait for a person, record people's verdicts, and export them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from watcher.cli import durations, waiting_files
from watcher.cli.commands import explain
from watcher.cli.put_back_files import print_reconciled
from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.printable import printable
from watcher.filing import destinations, put_back, recovery
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.mover import Mover
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger
from watcher.model import checkpoint, promotions
from watcher.review import export, judged_files, verdicts, wake_pipe

PATIENCE_S = 30.0
"""Seconds to wait until a running daemon has moved the files. The verdicts are recorded before, and stay."""

POLL_S = 0.05

STATE_TEXTS = {"filed": "filed", "confirmed": "it lies there already", "left": "left alone", "open": "recorded"}


def run(args: argparse.Namespace) -> int:
    """Run one action of the command. Return exit code 1 if a part of it could not be done."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    actions = {"list": _list, "show": _show, "accept": _judge, "reject": _judge, "export": _export}
    return actions[args.action](args, settings)


def _list(args: argparse.Namespace, settings: loader.Config) -> int:
    now, count = datetime.now(UTC), 0
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        for fields in waiting_files.find(ledger_reader, settings.output.review, now):
            count += 1
            print(json.dumps(fields) if args.json else _waiting_text(fields))
    if not args.json:
        print(f"{count} wait for a person" if count != 1 else "1 waits for a person")
    return Exit.OK


def _waiting_text(fields: dict[str, Any]) -> str:
    number = f"#{fields['id']}" if fields["id"] is not None else "-"
    top = ", ".join(f"{label} {probability:.4f}" for label, probability in fields["top"][:3])
    reason = printable(": ".join(filter(None, (fields["reason"], fields["detail"]))))
    age = "-" if fields["age_s"] is None else durations.age(fields["age_s"])
    lines = [f"{number:>8}  {age:>5}  {printable(fields['path'])}", f"{'':17}{top + '; ' if top else ''}{reason}"]
    if verdict := fields["verdict"]:
        lines.append(f"{'':17}{_verdict_text(verdict['label'])} by {printable(verdict['user'])}, not yet filed")
    return "\n".join(lines)


def _verdict_text(label: str | None) -> str:
    return "rejected" if label is None else f"accepted as {label}"


def _show(args: argparse.Namespace, settings: loader.Config) -> int:
    """Print every decision about the files, and every verdict on them."""
    files = [file if os.path.lexists(file) or "/" in file else _in_review(file, settings) for file in args.files]
    return explain.print_history(files, settings, as_json=args.json)


def _in_review(name: str, settings: loader.Config) -> str:
    """Return the path of the file with this name in review, or the name itself if there is none."""
    path = settings.output.review / name
    return str(path) if os.path.lexists(path) else name


def _judge(args: argparse.Namespace, settings: loader.Config) -> int:
    """Record verdicts. Then let the running daemon move the files, or move them here if none runs."""
    label = None
    if args.action == "accept":
        label = verdicts.class_named(checkpoint.load(promotions.weights_path(None, settings)).classes, args.label)
    path, places = paths_and_limits.ledger_path(settings), destinations.places(settings)
    with LedgerReader(path) as ledger_reader:
        put_back.refuse_root(path)
        found = (judged_files.find(ledger_reader, file, places) for file in args.files)
        judged = {file.path: file for file in found}
        with contextlib.closing(Ledger(path, owner=put_back.OWNER)) as ledger:
            numbers = [_record(ledger, file, label, args.note) for file in judged.values()]
        _carry_out(numbers, ledger_reader, settings)
        states = [_print_result(ledger_reader, number, as_json=args.json) for number in numbers]
    daemon_runs = put_back.is_daemon_running(settings.state.path)
    return Exit.FAILED if "left" in states or ("open" in states and not daemon_runs) else Exit.OK


def _record(ledger: Ledger, judged: judged_files.JudgedFile, label: str | None, note: str | None) -> int:
    try:
        return verdicts.record(ledger, judged, label, verdicts.current_reviewer(os.environ), note)
    except Retry as error:
        raise Fatal(str(error), "No verdict was recorded on it, nor on the files after it.") from error


def _carry_out(numbers: list[int], ledger_reader: LedgerReader, settings: loader.Config) -> None:
    """Let the daemon carry the verdicts out, if one listens. Otherwise do it here, as ``retry`` does."""
    until = time.monotonic() + PATIENCE_S
    while wake_pipe.wake_daemon(settings.state.path):
        for _ in range(20):
            if not _any_open(ledger_reader, numbers):
                return
            if time.monotonic() > until:
                print("mednet-watcher: recorded; the daemon has not filed it yet, and will", file=sys.stderr)
                return
            time.sleep(POLL_S)
    ledger_path = paths_and_limits.ledger_path(settings)
    with put_back.open_executor(ledger_path, settings.inbox.path, print_reconciled) as executor:
        _refuse_lost_mounts(executor.ledger, settings)
        mover = Mover(settings.inbox.path, paths_and_limits.file_mode(settings))
        verdict_executor = DecisionExecutor(executor.ledger, mover, destinations.places(settings), None)
        while results := verdicts.carry_out_open(verdict_executor):
            failed = [result for result in results if result.state == "later"]
            for result in failed:
                problem = printable(f"{result.verdict.path} can not be moved: {result.why}")
                print(f"mednet-watcher: {problem}; the verdict is recorded, and tried again", file=sys.stderr)
            if failed:
                return


def _refuse_lost_mounts(ledger: Ledger, settings: loader.Config) -> None:
    """Check that no output directory is missing, as the start of the daemon does.

    All class directories are checked: one that nothing was ever filed to lies on the same mount as the others.
    """
    roots = vars(destinations.places(settings)).values()
    try:
        outputs = [path for path in ledger.recorded_directories() if any(map(path.is_relative_to, roots))]
        recovery.refuse_lost_mounts(ledger, outputs)
    except Fatal as error:
        raise Fatal(
            f"{error.problem}; the verdicts are recorded, and carried out once it is mounted", error.advice, error.code
        ) from error


def _any_open(ledger_reader: LedgerReader, numbers: list[int]) -> bool:
    return any(ledger_reader.verdicts("id = ? and state = 'open'", number) for number in numbers)


def _print_result(ledger_reader: LedgerReader, number: int, *, as_json: bool) -> str:
    """Print what has become of a verdict, and return its state."""
    [verdict] = ledger_reader.verdicts("id = ?", number)
    filed = next(ledger_reader.entries("d.id = ?", (verdict.filed_by,)), None) if verdict.filed_by is not None else None
    destination = filed.destination if filed else verdict.path if verdict.state == "confirmed" else None
    with contextlib.suppress(BrokenPipeError):
        if as_json:
            print(json.dumps({**asdict(verdict), "class": verdict.label, "destination": destination}))
        else:
            end = f" -> {printable(destination)}" if filed and destination else ""
            why = f": {verdict.why}" if verdict.why else ""
            print(
                f"{_verdict_text(verdict.label)}  {printable(verdict.path)}{end}  ({STATE_TEXTS[verdict.state]}{why})"
            )
    return verdict.state


def _export(args: argparse.Namespace, settings: loader.Config) -> int:
    """Copy the images that people judged.

    Return exit code 1 if an image is no longer there, or a verdict was withdrawn after its image was exported.
    """
    target = Path(os.path.realpath(args.to))
    outputs = (path for _, path in settings.output if isinstance(path, Path))
    for directory in map(os.path.realpath, (settings.inbox.path, settings.state.path, *outputs)):
        if target.is_relative_to(directory):
            raise Fatal(
                f"{args.to} lies in {directory}, which the daemon uses",
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
    summary = f"{counts['copied']} copied to {args.to}, {counts['there']} were there, {counts['left']} left alone"
    summary += f", {counts['withdrawn']} withdrawn since" if counts["withdrawn"] else ""
    print(json.dumps(counts) if args.json else summary)
    return Exit.FAILED if counts["left"] or counts["withdrawn"] else Exit.OK
