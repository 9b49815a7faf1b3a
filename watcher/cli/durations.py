"""Format lengths of time for people."""

from __future__ import annotations


def age(seconds: float) -> str:
    """Return a length of time in one unit: ``90s``, ``45min``, ``7h``, ``3d``."""
    for limit_s, unit, unit_s in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit_s:
            return f"{seconds / unit_s:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"
