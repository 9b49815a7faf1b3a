"""``tail``: the JSON log for people, with filters; of the log file, any file, or standard input."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from watcher.config import loader
from watcher.core.errors import Exit, Fatal
from watcher.core.printable import printable

POLL_S = 0.2
LEVELS = ("debug", "info", "warning", "error", "critical")
_COLOURS = {"image.sorted": "32", "image.review": "33", "image.quarantined": "35"}
_OUTCOMES = {"image.sorted": "sorted", "image.review": "review", "image.quarantined": "quarantine"}


def run(args: argparse.Namespace) -> int:
    """Print the last lines that pass the filters, and with --follow those that come."""
    show = print_json if args.json else print_text
    if args.file == "-":
        for line in sys.stdin:
            show(line, args)
        return Exit.OK
    path = _path(args)
    with _opened(path) as file:
        kept = deque((line for line in file if _passes(line, args)), maxlen=args.lines)
        for line in kept:
            show(line, args)
        sys.stdout.flush()
        if not kept and not args.follow:
            print(f"No line of {path} is what was asked for.", file=sys.stderr)
        if args.follow:
            for line in _follow(path, file):
                show(line, args)
                sys.stdout.flush()
    return Exit.OK


def _path(args: argparse.Namespace) -> Path:
    path = Path(args.file) if args.file else loader.load_or_default(args.config).log.file
    if path is None:
        raise Fatal(
            "the config has no log.file, so there is no file to read",
            "Name a file, or read the journal: journalctl -u mednet-watcher -o cat | mednet-watcher tail -",
            Exit.USAGE,
        )
    return path


def _opened(path: Path) -> IO[str]:
    try:
        return path.open(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise Fatal(
            f"the log file {path} can not be read: {error.strerror}",
            "See that the path is right and who may read it, or name another.",
            Exit.DIRECTORY,
        ) from error


def _follow(path: Path, file: IO[str]) -> Iterator[str]:
    """Whole lines as they are written, also after the file was moved away or cut."""
    part = ""
    with contextlib.ExitStack() as opened:
        while True:
            part += file.readline()
            if part.endswith("\n"):
                yield part
                part = ""
                continue
            with contextlib.suppress(FileNotFoundError):
                found, here = os.stat(path), os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != (here.st_dev, here.st_ino):
                    file, part = opened.enter_context(path.open(encoding="utf-8", errors="backslashreplace")), ""
                    continue
                if found.st_size < file.tell():
                    file.seek(0)
                    part = ""
                    continue
            time.sleep(POLL_S)


def _passes(line: str, args: argparse.Namespace) -> bool:
    told = parse(line)
    if told is None:
        return not (args.event or args.label or args.reason or args.name or args.level != "debug")
    level = str(told.get("level", "info"))
    return (
        (level not in LEVELS or LEVELS.index(level) >= LEVELS.index(args.level))
        and (not args.event or any(fnmatchcase(told["event"], pattern) for pattern in args.event))
        and (args.label is None or told.get("class") == args.label)
        and (args.reason is None or told.get("reason") == args.reason)
        and (args.name is None or fnmatchcase(str(told.get("name", "")), args.name))
    )


def parse(line: str) -> dict[str, Any] | None:
    """A line of the log, or None: something else that was written beside it."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("event"), str) else None


def print_json(line: str, args: argparse.Namespace) -> None:
    """The line as it is, if it passes."""
    if _passes(line, args):
        print(line.rstrip("\n"))


def print_text(line: str, args: argparse.Namespace) -> None:
    """The line for people, if it passes."""
    if _passes(line, args):
        told = parse(line)
        print(printable(line.rstrip("\n")) if told is None else text(told, colour=sys.stdout.isatty()))


def text(told: dict[str, Any], *, colour: bool = False) -> str:
    """One line for people: local time, what happened, the rest."""
    event, level = str(told["event"]), str(told.get("level", ""))
    words = _file(told) if event in _OUTCOMES else _others(told)
    shown = f"{_OUTCOMES.get(event, event):10}"
    code = _COLOURS.get(event) or {"warning": "33", "error": "31", "critical": "1;31"}.get(level)
    if colour and code:
        shown = f"\x1b[{code}m{shown}\x1b[0m"
    return f"{_time(told.get('timestamp'))}  {shown}  {printable(words)}"


def _file(told: dict[str, Any]) -> str:
    sure = "" if told.get("class") is None else f"{told['class']} {float(told.get('confidence') or 0):.4f}  "
    why = "" if told.get("reason") is None else f"{told['reason']}  "
    return f"{sure}{why}{told.get('name')} -> {told.get('destination')}  {float(told.get('total_ms') or 0):.0f} ms"


def _others(told: dict[str, Any]) -> str:
    left_out = ("event", "level", "timestamp")
    return "  ".join(f"{key}={value}" for key, value in told.items() if key not in left_out and value is not None)


def _time(at: object) -> str:
    try:
        return datetime.fromisoformat(str(at)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return "-" * 19
