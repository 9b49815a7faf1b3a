"""Numbers as several commands say them to people."""

from __future__ import annotations


def age(seconds: float) -> str:
    """A length of time in one unit: ``90s``, ``45min``, ``7h``, ``3d``."""
    for most, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < most:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"
