"""``tail``: show the JSON log in a form for people, from the log file, another file or standard input."""

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
    """Print the last lines that match the filters, and with --follow the new lines as they come."""
    show = print_json if args.json else print_text
    if args.file == "-":
        for line in sys.stdin:
            show(line, args)
        return Exit.OK
    path = _path(args)
    with _open(path) as file:
        last_lines = deque((line for line in file if _matches(line, args)), maxlen=args.lines)
        for line in last_lines:
            show(line, args)
        sys.stdout.flush()
        if not last_lines and not args.follow:
            print(f"No line of {path} matches the options.", file=sys.stderr)
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
            "Give a file, or read the journal: journalctl -u mednet-watcher -o cat | mednet-watcher tail -",
            Exit.USAGE,
        )
    return path


def _open(path: Path) -> IO[str]:
    try:
        return path.open(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise Fatal(
            f"the log file {path} can not be read: {error.strerror}",
            "Check the path and its access rights, or give another file.",
            Exit.DIRECTORY,
        ) from error


def _follow(path: Path, file: IO[str]) -> Iterator[str]:
    """Yield complete lines as they are written, also after the file was moved away or truncated."""
    part = ""
    with contextlib.ExitStack() as files:
        while True:
            part += file.readline()
            if part.endswith("\n"):
                yield part
                part = ""
                continue
            with contextlib.suppress(FileNotFoundError):
                named, opened = os.stat(path), os.fstat(file.fileno())
                if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
                    file, part = files.enter_context(path.open(encoding="utf-8", errors="backslashreplace")), ""
                    continue
                if named.st_size < file.tell():
                    file.seek(0)
                    part = ""
                    continue
            time.sleep(POLL_S)


def _matches(line: str, args: argparse.Namespace) -> bool:
    entry = parse(line)
    if entry is None:
        return not (args.event or args.label or args.reason or args.name or args.level != "debug")
    level = str(entry.get("level", "info"))
    return (
        (level not in LEVELS or LEVELS.index(level) >= LEVELS.index(args.level))
        and (not args.event or any(fnmatchcase(entry["event"], pattern) for pattern in args.event))
        and (args.label is None or entry.get("class") == args.label)
        and (args.reason is None or entry.get("reason") == args.reason)
        and (args.name is None or fnmatchcase(str(entry.get("name", "")), args.name))
    )


def parse(line: str) -> dict[str, Any] | None:
    """Return the entry that a line of the log holds, or None if it is another output of the process."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("event"), str) else None


def print_json(line: str, args: argparse.Namespace) -> None:
    """Print a line as it is, if it matches the filters."""
    if _matches(line, args):
        print(line.rstrip("\n"))


def print_text(line: str, args: argparse.Namespace) -> None:
    """Print a line in a form for people, if it matches the filters."""
    if _matches(line, args):
        entry = parse(line)
        print(printable(line.rstrip("\n")) if entry is None else text(entry, colour=sys.stdout.isatty()))


def text(entry: dict[str, Any], *, colour: bool = False) -> str:
    """Return an entry as one line for people: the local time, the event or outcome, and the other fields."""
    event, level = str(entry["event"]), str(entry.get("level", ""))
    rest = _file_fields(entry) if event in _OUTCOMES else _all_fields(entry)
    title = f"{_OUTCOMES.get(event, event):10}"
    code = _COLOURS.get(event) or {"warning": "33", "error": "31", "critical": "1;31"}.get(level)
    if colour and code:
        title = f"\x1b[{code}m{title}\x1b[0m"
    return f"{_time(entry.get('timestamp'))}  {title}  {printable(rest)}"


def _file_fields(entry: dict[str, Any]) -> str:
    label = "" if entry.get("class") is None else f"{entry['class']} {float(entry.get('confidence') or 0):.4f}  "
    reason = "" if entry.get("reason") is None else f"{entry['reason']}  "
    return (
        f"{label}{reason}{entry.get('name')} -> {entry.get('destination')}  {float(entry.get('total_ms') or 0):.0f} ms"
    )


def _all_fields(entry: dict[str, Any]) -> str:
    left_out = ("event", "level", "timestamp")
    return "  ".join(f"{key}={value}" for key, value in entry.items() if key not in left_out and value is not None)


def _time(at: object) -> str:
    try:
        return datetime.fromisoformat(str(at)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return "-" * 19
