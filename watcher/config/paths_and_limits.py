"""Where things lie by the settings, and what they are worth: what the daemon and the commands both ask."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from watcher.config import loader
from watcher.core import mounts, shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.filing import mover
from watcher.filing.decision_executor import Places
from watcher.model import promotions
from watcher.monitoring import log_output


def lock_path(settings: loader.Config) -> Path:
    """The lock of the daemon with these settings."""
    return settings.state.path / "daemon.lock"


def ledger_path(settings: loader.Config) -> Path:
    """The ledger of the daemon with these settings."""
    return settings.state.path / "ledger.sqlite3"


def last_error_path(settings: loader.Config) -> Path:
    """Where the last error is kept for ``status``."""
    return settings.state.path / "last-error.json"


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


def places(settings: loader.Config) -> Places:
    """Where files go."""
    output = settings.output
    return Places(output.sorted, output.review, output.quarantine, output.rejected)


def file_mode(settings: loader.Config) -> int | None:
    """What files get when they are filed; None leaves them theirs."""
    mode = settings.output.file_mode
    return None if mode is None else int(mode, 8)


def log_file(settings: loader.Config) -> log_output.File | None:
    """The file that the log is written to as well, if any.

    Raises:
        Fatal: exit code 5; it can not be opened.
    """
    path = settings.log.file
    if path is None:
        return None
    try:
        return log_output.File(path)
    except OSError as error:
        raise Fatal(
            f"the log file {path} can not be written: {error.strerror}",
            f"Make its directory, or set log.file. {mounts.let_write(path)}",
            Exit.DIRECTORY,
        ) from error


def optional_config(path: Path | None) -> loader.Config:
    """The settings of a file, or the defaults where none is given and none lies here."""
    return loader.load(path or loader.default(), os.environ, optional=path is None)


def weights_path(wanted: Path | None, settings: loader.Config) -> Path:
    """The weights named on the command line, else in the config, else those promoted here, else those shipped."""
    return wanted or settings.model.weights or promotions.in_force(settings.state.path) or shipped_files.weights()


def decoder_limits(settings: loader.Config) -> dict[str, int]:
    """What one decoder process is allowed."""
    d = settings.decode
    return {"max_bytes": d.max_bytes, "max_pixels": d.max_pixels, "memory_mb": d.memory_mb}


def backlog(where: Places) -> dict[str, int | None]:
    """Files that wait for a person; None where the place can not be listed."""
    return {"review": mover.count(where.review), "quarantine": mover.count(where.quarantine)}


def free_space(settings: loader.Config, where: Places) -> dict[str, float]:
    """Bytes left on the disk of each place; none of one that can not be reached."""
    paths = {"inbox": settings.inbox.path, "state": settings.state.path, **vars(where)}
    free = {}
    for place, path in paths.items():
        with contextlib.suppress(OSError):
            free[place] = float(shutil.disk_usage(path).free)
    return free
