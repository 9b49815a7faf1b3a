"""Limit the rate of repeated warnings: each kind is logged once a minute, with the number of its repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WINDOW_S = 60.0
"""Seconds between two lines of one kind."""

UNLIMITED = ("image.", "file.", "daemon.", "reload.", "metrics.", "log.", "verdict.left", "drift.")
"""Beginnings of the events that are logged every time: those of single files, of the daemon and of lost lines."""


@dataclass
class _Kind:
    """The lines of one event that are held back until a time in monotonic seconds."""

    until_s: float
    held: int = 0
    method: str = ""
    last: dict[str, Any] | None = None


class RateLimiter:
    """Lets the first line of a kind pass, and holds the others back for a window.

    After the window the last of them passes, with their number. The kind of a line is its event, so there are few.
    ``clock`` returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def hold(self, method: str, line: dict[str, Any]) -> bool:
        """Return True if this line is held back, and must not be written now."""
        event, now = str(line["event"]), self._clock()
        if method not in ("warning", "error", "critical") or event.startswith(UNLIMITED):
            return False
        kind = self._kinds.get(event)
        if kind is None or (now >= kind.until_s and not kind.held):
            self._kinds[event] = _Kind(now + WINDOW_S)
            return False
        kind.held, kind.method, kind.last = kind.held + 1, method, line
        return True

    def due(self, *, all: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """Return the lines whose window is over, or ``all``, each with its log method.

        Their field ``repeated`` is the number of lines that each stands for.
        """
        now, lines = self._clock(), []
        for event, kind in self._kinds.items():
            if kind.last is not None and (all or now >= kind.until_s):
                lines.append((kind.method, {**kind.last, "repeated": kind.held}))
                self._kinds[event] = _Kind(now + WINDOW_S)
        return lines
