"""Rate limit: the same trouble again and again is told once a minute, with how often it came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WINDOW_S = 60.0
"""How often one kind of trouble is told."""

EACH = ("image.", "file.", "daemon.", "reload.", "metrics.", "log.", "verdict.left", "drift.")
"""What is told every time: each file's fate, and the daemon's own life, and what the log lacks."""


@dataclass
class _Kind:
    until_s: float
    held: int = 0
    method: str = ""
    last: dict[str, Any] | None = None


class RateLimiter:
    """Lets the first of a kind through, holds the others back for a window, then gives the last with their number.

    ``clock`` gives monotonic seconds. Kinds are names of events: few.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def hold(self, method: str, line: dict[str, Any]) -> bool:
        """Whether to write this line later, if at all."""
        event, now = str(line["event"]), self._clock()
        if method not in ("warning", "error", "critical") or event.startswith(EACH):
            return False
        kind = self._kinds.get(event)
        if kind is None or (now >= kind.until_s and not kind.held):
            self._kinds[event] = _Kind(now + WINDOW_S)
            return False
        kind.held, kind.method, kind.last = kind.held + 1, method, line
        return True

    def due(self, *, all: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """Lines whose window is over (or ``all``), each with ``repeated``: how many it stands for."""
        now, told = self._clock(), []
        for event, kind in self._kinds.items():
            if kind.last is not None and (all or now >= kind.until_s):
                told.append((kind.method, {**kind.last, "repeated": kind.held}))
                self._kinds[event] = _Kind(now + WINDOW_S)
        return told
