"""Read and append the results of runs: one JSON object a line, never changed. This module does not import torch."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal

Row = dict[str, Any]


def read(*paths: Path) -> list[Row]:
    """Read the rows of several files, each run once by its ``digest``. An absent file has no rows.

    A last line that a crash cut short is left out: that run is not finished.

    Raises:
        Fatal: A file cannot be read, or a line before the last is no row (exit code 5).
    """
    rows: dict[str, Row] = {}
    for path in paths:
        for row in _rows(path):
            rows.setdefault(row["digest"], row)
    return list(rows.values())


def read_named(paths: Sequence[Path] | None, default: Path) -> list[Row]:
    """Read the rows of the files that somebody named, or else of the default file, which may be absent.

    Raises:
        Fatal: A file that was named is absent, or :func:`read` fails (exit code 5).
    """
    for path in paths or ():
        if not path.exists():
            raise Fatal(f"{path} does not exist, so no row of it can count", "Give another --runs.", Exit.DIRECTORY)
    return read(*(paths or [default]))


def append(path: Path, row: Row) -> None:
    """Append a row to a file, and sync it. Several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file, _locked(file.fileno()):
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            os.ftruncate(file.fileno(), _end_of_whole_lines(file.fileno(), size))
        file.write(json.dumps(row, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write a file of these rows, completely or not at all."""
    with atomic_write.replacing(path) as partial:
        partial.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), "utf-8")


def _rows(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Fatal(f"{path} can not be read: {error.strerror}", "Give another --runs.", Exit.DIRECTORY) from error
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty, or was cut short
        try:
            row = json.loads(line)
            row["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise Fatal(
                f"{path}:{number} is no row of a study",
                "Take the line out, its run is then done again.",
                Exit.DIRECTORY,
            ) from error
        yield row


def _end_of_whole_lines(handle: int, size: int) -> int:
    return os.pread(handle, size, 0).rfind(b"\n") + 1


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
