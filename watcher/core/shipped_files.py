"""Find the files that come with the product, in the repository or inside the installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def weights(name: str = "mednet-general.safetensors") -> Path:
    """Return the path of a shipped file of ``weights/``."""
    return _shipped(f"weights/{name}")


def config() -> Path:
    """Return the path of the shipped config.yaml, which has every key with its default."""
    return _shipped("config.yaml")


def systemd(name: str) -> Path:
    """Return the path of a shipped file of ``systemd/``."""
    return _shipped(f"systemd/{name}")


def _shipped(name: str) -> Path:
    installed = _PACKAGE / f"_{name}"
    return installed if installed.exists() else _PACKAGE.parent / name
