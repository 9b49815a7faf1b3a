"""Derive paths and limits from the settings, for the daemon and the commands alike."""

from __future__ import annotations

from pathlib import Path

from watcher.config import loader


def lock_path(settings: loader.Config) -> Path:
    """Return the path of the daemon's lock."""
    return settings.state.path / "daemon.lock"


def ledger_path(settings: loader.Config) -> Path:
    """Return the path of the ledger."""
    return settings.state.path / "ledger.sqlite3"


def last_error_path(settings: loader.Config) -> Path:
    """Return the path of the file that keeps the last error for ``status``."""
    return settings.state.path / "last-error.json"


def file_mode(settings: loader.Config) -> int | None:
    """Return the mode that filed files get, or None if they keep their own."""
    mode = settings.output.file_mode
    return None if mode is None else int(mode, 8)


def decoder_limits(settings: loader.Config) -> dict[str, int]:
    """Return the limits of one decoder process."""
    limits = settings.decode
    return {"max_bytes": limits.max_bytes, "max_pixels": limits.max_pixels, "memory_mb": limits.memory_mb}
