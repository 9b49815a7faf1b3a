"""Where things lie by the settings, and what they are worth: what the daemon and the commands both ask."""

from __future__ import annotations

from pathlib import Path

from watcher.config import loader


def lock_path(settings: loader.Config) -> Path:
    """The lock of the daemon with these settings."""
    return settings.state.path / "daemon.lock"


def ledger_path(settings: loader.Config) -> Path:
    """The ledger of the daemon with these settings."""
    return settings.state.path / "ledger.sqlite3"


def last_error_path(settings: loader.Config) -> Path:
    """Where the last error is kept for ``status``."""
    return settings.state.path / "last-error.json"


def file_mode(settings: loader.Config) -> int | None:
    """What files get when they are filed; None leaves them theirs."""
    mode = settings.output.file_mode
    return None if mode is None else int(mode, 8)


def decoder_limits(settings: loader.Config) -> dict[str, int]:
    """What one decoder process is allowed."""
    d = settings.decode
    return {"max_bytes": d.max_bytes, "max_pixels": d.max_pixels, "memory_mb": d.memory_mb}
