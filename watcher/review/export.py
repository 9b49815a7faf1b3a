"""Copy the images that people judged, by class, for training: ``review export``.

The directories that the daemon files into are only read. Each file must have the bytes that were judged, and no file
is overwritten. An export that was killed, or is run again later, goes on where the manifest ends.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from watcher.core import no_overwrite
from watcher.core.errors import Exit, Fatal, Retry, Vanished
from watcher.core.printable import printable
from watcher.filing import mover
from watcher.ledger.reader import LedgerEntry, LedgerReader, Verdict
from watcher.review import verdicts

MANIFEST = "manifest.jsonl"
"""File with one JSON object a line for each image exported. Of several lines with one digest the last counts."""

OUTLIER = "outlier"
"""Directory for images that are of none of the classes."""


@dataclass(frozen=True)
class ExportResult:
    """The result of exporting one image, which was taken from ``path``.

    ``there`` was exported before, ``left`` could not be copied. Of a ``withdrawn`` verdict a copy is still there.
    """

    path: str
    state: Literal["copied", "there", "left", "withdrawn"]
    destination: Path | None = None
    why: str | None = None


def export(ledger_reader: LedgerReader, to: Path) -> Iterator[ExportResult]:
    """Copy every image with a verdict in force to ``to/<class>/``, rejected ones to ``to/outlier/``.

    Of images with equal bytes the last verdict counts. A copy that was exported under another class before is moved
    to the new one. A copy whose verdict was withdrawn since is reported, and stays.

    Raises:
        Fatal: exit code 5; the directory can not be written.
    """
    mover.prepare(to)
    exported = manifest(to)
    latest = {verdict.digest: (verdict, entry) for verdict, entry in verdicts.in_force(ledger_reader)}
    with _appending(to / MANIFEST) as append:
        for digest, (verdict, entry) in latest.items():
            source = verdict.path if entry is None else entry.destination
            assert source is not None  # it was filed
            old_line = exported.get(digest)
            old_copy = to / old_line["path"] if old_line else None
            if old_line and old_copy and old_line["id"] == verdict.id and os.path.lexists(old_copy):
                if _has(old_copy, digest):
                    yield ExportResult(source, "there", old_copy)
                else:
                    why = f"its copy {old_copy} was changed since, or can not be read: remove that and export again"
                    yield ExportResult(source, "left", why=why)
                continue
            try:
                copy = _put(Path(source), old_copy, digest, to / (verdict.label or OUTLIER))
            except (Vanished, Retry) as error:
                yield ExportResult(source, "left", why=str(error))
                continue
            append(_line(ledger_reader, verdict, entry, copy.relative_to(to)))
            yield ExportResult(source, "copied", copy)
    for verdict in ledger_reader.verdicts("state = 'withdrawn'"):
        old_line = exported.get(verdict.digest) if verdict.digest not in latest else None
        if old_line and old_line["id"] == verdict.id and os.path.lexists(to / old_line["path"]):
            why = f"the verdict of {verdict.user} was withdrawn; remove this copy"
            yield ExportResult(verdict.path, "withdrawn", to / old_line["path"], why)


def manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of the manifest in a directory, by digest. Lines that a crash cut short are ignored.

    Raises:
        Fatal: exit code 5; there is a manifest, and it can not be read.
    """
    by_digest: dict[str, dict[str, Any]] = {}
    try:
        lines = (directory / MANIFEST).read_bytes().splitlines()
    except FileNotFoundError:
        return by_digest
    except OSError as error:
        raise _unusable(directory / MANIFEST, "read", error) from error
    for raw in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a UnicodeDecodeError is a ValueError
            line = json.loads(raw)
            path = Path(line["path"])
            if not path.is_absolute() and ".." not in path.parts:
                by_digest[line["digest"]] = {**line, "path": str(path), "id": line["id"]}
    return by_digest


def _put(source: Path, old_copy: Path | None, digest: str, directory: Path) -> Path:
    """Move the old copy into a directory if it has these bytes, else copy the source there. Return the copy's path."""
    mover.prepare(directory)
    if old_copy is not None and old_copy.parent != directory and _has(old_copy, digest):
        with contextlib.suppress(OSError):
            return _move(old_copy, directory, digest)
    return mover.copy(source, None, digest, directory)


def _has(path: Path, digest: str) -> bool:
    """Return True if a file can be read and its bytes have this digest."""
    with contextlib.suppress(OSError):
        return no_overwrite.digest(path) == digest
    return False


def _move(copy: Path, directory: Path, digest: str) -> Path:
    for name in no_overwrite.candidates(copy.name, digest):
        with contextlib.suppress(FileExistsError):
            no_overwrite.rename_noreplace(copy, directory / name)
            return directory / name
    raise AssertionError("candidates() does not end")


def _line(ledger_reader: LedgerReader, verdict: Verdict, entry: LedgerEntry | None, path: Path) -> dict[str, Any]:
    """Return a line of the manifest, which ``adapt`` reads. The note is left out, because it may name a patient."""
    model = verdicts.model_decision(ledger_reader, verdict, entry)
    return {
        "id": verdict.id,
        "path": str(path),
        "name": verdict.name,
        "digest": verdict.digest,
        "verdict": "rejected" if verdict.label is None else "accepted",
        "class": verdict.label,
        "model_class": model.label if model else None,
        "model_confidence": model.confidence if model else None,
        "model_outcome": model.outcome if model else None,
        "model_reason": model.reason if model else None,
        "model": model.model if model else None,
        "by": verdict.user,
        "uid": verdict.uid,
        "at": verdict.given_at,
    }


class _Appender:
    """Appends lines to the manifest."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")  # end a line that a crash cut short

    def __call__(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[_Appender]:
    try:
        appender = _Appender(path)
    except OSError as error:
        raise _unusable(path, "written", error) from error
    try:
        yield appender
    finally:
        appender.close()


def _unusable(path: Path, verb: str, error: OSError) -> Fatal:
    return Fatal(
        f"{printable(str(path))} can not be {verb}: {error.strerror}",
        "Correct that, or export to another directory.",
        Exit.DIRECTORY,
    )
