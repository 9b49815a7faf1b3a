"""Where the files that come with the product lie: in the repository, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def weights(name: str = "mednet-improved.safetensors") -> Path:
    """The path of a shipped file of ``weights/``."""
    installed = _PACKAGE / "_weights" / name
    return installed if installed.exists() else _PACKAGE.parent / "weights" / name
