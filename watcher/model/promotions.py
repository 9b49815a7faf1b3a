"""Which weights were put in force on this host, and which before: a small file beside the ledger.

``promote`` adds to it, and ``rollback`` marks the last one as taken back: so it
is also the record. The daemon asks it at its start and at every reload, unless
the config names weights itself.
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
from watcher.model import promotions

DIRECTORY = "weights"
FILE = "in-force.json"


@dataclass(frozen=True)
class Promotion:
    """Weights that were put in force: their digest, when (ISO 8601, UTC) and by whom; and the same of a rollback."""

    digest: str
    when: str
    who: str
    taken_back: str | None = None
    taken_back_by: str | None = None


def history(state: Path) -> list[Promotion]:
    """All that were ever promoted, in that order.

    Raises:
        Fatal: exit code 5; the file is there and can not be read.
    """
    place = state / DIRECTORY / FILE
    try:
        return [Promotion(**entry) for entry in json.loads(place.read_text("utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        advice = "Mend the file, or remove it to go back to the weights that were shipped."
        if isinstance(error, PermissionError):
            advice = "Run this as the daemon's user, or as root."
        raise Fatal(
            f"which weights are in force can not be read from {place}: {error}", advice, Exit.DIRECTORY
        ) from error


def standing(entries: Sequence[Promotion]) -> list[Promotion]:
    """Those that are in force, or would be after rollbacks, the present ones last. Empty: those shipped."""
    return [entry for entry in entries if entry.taken_back is None]


def in_force(state: Path) -> Path | None:
    """The file of the weights put in force last, or None: those shipped."""
    entries = standing(history(state))
    return place_of(state, entries[-1].digest) if entries else None


def place_of(state: Path, digest: str) -> Path:
    """Where promoted weights lie."""
    return state / DIRECTORY / f"{digest}.safetensors"


def make_directory(state: Path) -> Path:
    """Where promoted weights lie and all about them, made if missing, for everybody to read whatever the umask.

    Raises:
        OSError: it can not be made.
    """
    directory = state / DIRECTORY
    if not directory.is_dir():
        directory.mkdir(parents=True)
        directory.chmod(0o755)
    return directory


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Nobody else changes the list meanwhile: whoever wants to waits.

    Raises:
        Fatal: exit code 5; the directory can not be written.
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
    """Put the list on disk whole or not at all, synced. The daemon's user may read it, whatever the umask.

    Raises:
        Fatal: exit code 5; it can not be written.
    """
    place = state / DIRECTORY / FILE
    try:
        make_directory(state)
        with atomic_write.replacing(place) as partial:
            partial.write_text(json.dumps([asdict(entry) for entry in entries], indent=1) + "\n", "utf-8")
    except OSError as error:
        raise _unwritable(place, error) from error


def _unwritable(place: Path, error: OSError) -> Fatal:
    return Fatal(
        f"{place} can not be written: {error.strerror}",
        "Give yourself the right to write in the state directory, and make room there.",
        Exit.DIRECTORY,
    )


def refuse_named_weights(settings: loader.Config) -> None:
    """Where the config names weights, those promoted are not asked for.

    Raises:
        Fatal: exit code 3; it does.
    """
    if settings.model.weights is not None:
        raise Fatal(
            f"model.weights names {settings.model.weights}, which stays in force whatever is promoted or taken back",
            "Set model.weights to null, or replace that file.",
            Exit.CONFIG,
        )


def weights_path(wanted: Path | None, settings: loader.Config) -> Path:
    """The weights named on the command line, else in the config, else those promoted here, else those shipped."""
    return wanted or settings.model.weights or promotions.in_force(settings.state.path) or shipped_files.weights()
