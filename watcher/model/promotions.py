"""Keep the list of weights that were put in force on this host, in a small file beside the ledger.

``promote`` adds an entry, and ``rollback`` marks the last one as taken back, so that the list is also a record. The
daemon reads it at its start and at every reload, unless the config names weights.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from watcher.config import loader
from watcher.core import atomic_write, shipped_files
from watcher.core.errors import Exit, Fatal

DIRECTORY = "weights"
FILE = "in-force.json"


@dataclass(frozen=True)
class Promotion:
    """Weights that were put in force: their digest, the time (ISO 8601, UTC) and the person, also of a rollback."""

    digest: str
    when: str
    who: str
    taken_back: str | None = None
    taken_back_by: str | None = None


def history(state: Path) -> list[Promotion]:
    """Return all promotions, oldest first.

    Raises:
        Fatal: The file exists and cannot be read (exit code 5).
    """
    path = state / DIRECTORY / FILE
    try:
        return [Promotion(**entry) for entry in json.loads(path.read_text("utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        advice = "Mend the file, or remove it to go back to the shipped weights."
        if isinstance(error, PermissionError):
            advice = "Run this as the daemon's user, or as root."
        raise Fatal(
            f"the list of promoted weights, {path}, can not be read: {error}", advice, Exit.DIRECTORY
        ) from error


def not_taken_back(entries: Sequence[Promotion]) -> list[Promotion]:
    """Return the promotions that no rollback took back. The last one is in force, or the shipped weights if none is."""
    return [entry for entry in entries if entry.taken_back is None]


def in_force(state: Path) -> Path | None:
    """Return the file of the promoted weights in force, or None if the shipped ones are."""
    entries = not_taken_back(history(state))
    return weights_file(state, entries[-1].digest) if entries else None


def weights_file(state: Path, digest: str) -> Path:
    """Return the path of promoted weights."""
    return state / DIRECTORY / f"{digest}.safetensors"


def make_directory(state: Path) -> Path:
    """Make the directory of promoted weights if it is missing, readable by all whatever the umask, and return it.

    Raises:
        OSError: It cannot be made.
    """
    directory = state / DIRECTORY
    if not directory.is_dir():
        directory.mkdir(parents=True)
        directory.chmod(0o755)
    return directory


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Lock the list, so that other processes wait before they change it.

    Raises:
        Fatal: The directory cannot be written (exit code 5).
    """
    try:
        directory = os.open(make_directory(state), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(state / DIRECTORY, error) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def write(state: Path, entries: list[Promotion]) -> None:
    """Write the list completely or not at all, synced, and readable by the daemon's user whatever the umask.

    Raises:
        Fatal: It cannot be written (exit code 5).
    """
    path = state / DIRECTORY / FILE
    try:
        make_directory(state)
        with atomic_write.replacing(path) as partial:
            partial.write_text(json.dumps([asdict(entry) for entry in entries], indent=1) + "\n", "utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> Fatal:
    return Fatal(
        f"{path} can not be written: {error.strerror}",
        "Give yourself the right to write in the state directory, and make room there.",
        Exit.DIRECTORY,
    )


def refuse_named_weights(settings: loader.Config) -> None:
    """Refuse to promote or roll back if the config names weights, because these take precedence.

    Raises:
        Fatal: The config names weights (exit code 3).
    """
    if settings.model.weights is not None:
        raise Fatal(
            f"model.weights names {settings.model.weights}, which stays in force whatever is promoted or taken back",
            "Set model.weights to null, or replace that file.",
            Exit.CONFIG,
        )


def weights_path(named: Path | None, settings: loader.Config) -> Path:
    """Return the weights to use: those named on the command line, else in the config, else promoted, else shipped."""
    return named or settings.model.weights or in_force(settings.state.path) or shipped_files.weights()
