"""Copies of the images that people judged, by class, for training: ``review export``.

What lies in the ledger's directories is only read. Bytes are compared with what
was judged, nothing is overwritten, and whoever is killed at it or asks again
later goes on where the manifest ends.
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
"""One JSON object for each image exported, added at the end: of several with one digest the last counts."""

OUTLIER = "outlier"
"""The directory of what is of none of the classes."""


@dataclass(frozen=True)
class ExportResult:
    """What became of one image. ``path`` is where it was taken from. Of ``withdrawn`` ones a copy is still there."""

    path: str
    state: Literal["copied", "there", "left", "withdrawn"]
    destination: Path | None = None
    why: str | None = None


def export(ledger_reader: LedgerReader, to: Path) -> Iterator[ExportResult]:
    """Copy every image with a verdict in force to ``to/<class>/``, rejected ones to ``to/outlier/``.

    Of equal images the last verdict counts. One that was exported under another class before is moved there; one
    whose verdict was withdrawn since is told.

    Raises:
        Fatal: exit code 5; the directory can not be written.
    """
    mover.prepare(to)
    before = manifest(to)
    latest = {verdict.digest: (verdict, entry) for verdict, entry in verdicts.in_force(ledger_reader)}
    with _appending(to / MANIFEST) as write:
        for digest, (verdict, entry) in latest.items():
            source = verdict.path if entry is None else entry.destination
            assert source is not None  # it was filed
            known = before.get(digest)
            here = to / known["path"] if known else None
            if known is not None and here is not None and known["id"] == verdict.id and os.path.lexists(here):
                if _has(here, digest):
                    yield ExportResult(source, "there", here)
                else:
                    told = f"its copy {here} was changed since, or can not be read: remove that and export again"
                    yield ExportResult(source, "left", why=told)
                continue
            try:
                made = _put(Path(source), here, digest, to / (verdict.label or OUTLIER))
            except (Vanished, Retry) as error:
                yield ExportResult(source, "left", why=str(error))
                continue
            write(_line(ledger_reader, verdict, entry, made.relative_to(to)))
            yield ExportResult(source, "copied", made)
    for verdict in ledger_reader.verdicts("state = 'withdrawn'"):
        known = before.get(verdict.digest) if verdict.digest not in latest else None
        if known is not None and known["id"] == verdict.id and os.path.lexists(to / known["path"]):
            why = f"what {verdict.user} said of it is withdrawn; remove this copy"
            yield ExportResult(verdict.path, "withdrawn", to / known["path"], why)


def manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """What was exported there before, by digest. A line that a crash cut short does not count.

    Raises:
        Fatal: exit code 5; it is there and can not be read.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = (directory / MANIFEST).read_bytes().splitlines()
    except FileNotFoundError:
        return found
    except OSError as error:
        raise _unusable(directory / MANIFEST, "read", error) from error
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a UnicodeDecodeError is a ValueError
            told = json.loads(line)
            path = Path(told["path"])
            if not path.is_absolute() and ".." not in path.parts:
                found[told["digest"]] = {**told, "path": str(path), "id": told["id"]}
    return found


def _put(source: Path, exported: Path | None, digest: str, directory: Path) -> Path:
    mover.prepare(directory)
    if exported is not None and exported.parent != directory and _has(exported, digest):
        with contextlib.suppress(OSError):
            return _move(exported, directory, digest)
    return mover.copy(source, None, digest, directory)


def _has(path: Path, digest: str) -> bool:
    """Whether a file can be read and has these bytes."""
    with contextlib.suppress(OSError):
        return no_overwrite.digest(path) == digest
    return False


def _move(exported: Path, directory: Path, digest: str) -> Path:
    for name in no_overwrite.candidates(exported.name, digest):
        with contextlib.suppress(FileExistsError):
            no_overwrite.rename_noreplace(exported, directory / name)
            return directory / name
    raise AssertionError("candidates() does not end")


def _line(ledger_reader: LedgerReader, verdict: Verdict, entry: LedgerEntry | None, path: Path) -> dict[str, Any]:
    """What ``adapt`` reads. Without the note: what people write there may name a patient."""
    model = verdicts.models_word(ledger_reader, verdict, entry)
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
    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")  # after what a crash cut short

    def __call__(self, told: dict[str, Any]) -> None:
        self._file.write(json.dumps(told).encode() + b"\n")
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


def _unusable(path: Path, what: str, error: OSError) -> Fatal:
    return Fatal(
        f"{printable(str(path))} can not be {what}: {error.strerror}",
        "Put that right, or export to another directory.",
        Exit.DIRECTORY,
    )
