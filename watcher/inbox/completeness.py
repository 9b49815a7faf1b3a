"""Hold files until they are complete.

A file is complete when the kernel reports that it was closed after writing or
moved in. Without such an event it is complete when its size and times have not
changed for ``settle_s`` seconds.

A file that does not decode may still be growing. :meth:`PendingFiles.doubt`
makes it wait until ``patience_s`` seconds after its last change, and then allows
one last try.

Every method takes the time as an argument, because the loop owns the clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from watcher.core.records import Identity

LONGEST_PAUSE_S = 300.0
"""The longest time between two tries of a file, in seconds, however often it fails."""

MOST_DOUBLINGS = 20
"""Doublings of a pause. They lead far beyond the longest pause, and never to a number too large for a float."""

SHORTEST_CHECK_S = 0.05
"""The shortest time between two checks of a file that is not complete, in seconds."""

Identify = Callable[[str], Identity | None]
"""A function that returns the identity of the file with a name now, or None if there is none."""


@dataclass(frozen=True, slots=True)
class CompleteFile:
    """A file to decode now. If ``last_try`` is true, a failure is final, because its patience has ended."""

    name: str
    seen_s: float
    last_try: bool


@dataclass(slots=True)
class _File:
    seen_s: float
    changed_s: float
    due_s: float
    identity: Identity | None = None
    closed: bool = False
    doubted: bool = False
    paused: bool = False
    handed_out: bool = False
    pauses: int = 0
    closed_while_handed_out_s: float | None = None


class PendingFiles:
    """Files that wait, and files that were handed out and not yet answered for.

    Holds at most ``capacity`` names, so that memory does not grow with the inbox.
    :meth:`arrived` and :meth:`found_by_scan` refuse more; a later scan finds those
    files again.
    """

    def __init__(self, settle_s: float, patience_s: float, capacity: int) -> None:
        self._settle_s, self._patience_s, self._capacity = settle_s, patience_s, capacity
        self._files: dict[str, _File] = {}
        self._queue: list[tuple[float, str]] = []
        self.admitted = 0
        """Files taken in so far."""
        self.withdrawn = 0
        """Files that somebody else took away so far. Always: admitted = filed + withdrawn + len(self)."""
        self.looked = 0
        """Checks of files that were due so far."""

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def room(self) -> int:
        """The number of names that can still be taken in."""
        return self._capacity - len(self._files)

    def set_times(self, settle_s: float, patience_s: float) -> None:
        """Use other times from now on, in seconds."""
        self._settle_s, self._patience_s = settle_s, patience_s

    @property
    def oldest_s(self) -> float | None:
        """The time at which the file that has waited longest was first seen. None if no file waits."""
        return min((file.seen_s for file in self._files.values()), default=None)

    def arrived(self, name: str, now: float, seen_s: float | None = None) -> bool:
        """Take in a file that the kernel reports as closed after writing or moved in.

        ``seen_s`` is the time at which it was first seen, if that was not now. Return False if there is no room.
        """
        file = self._files.get(name)
        if file is None:
            if self.room <= 0:
                return False
            file = self._admit(name, now, seen_s)
        elif file.handed_out:
            file.closed_while_handed_out_s = now
            return True
        file.closed, file.doubted, file.paused = True, False, False
        self._schedule(name, file, now)
        return True

    def found_by_scan(self, name: str, now: float) -> bool:
        """Take in a file that a scan has found. Return False if there is no room."""
        if name in self._files:
            return True
        if self.room <= 0:
            return False
        self._schedule(name, self._admit(name, now), now)
        return True

    def _admit(self, name: str, now: float, seen_s: float | None = None) -> _File:
        self.admitted += 1
        file = self._files[name] = _File(now if seen_s is None else seen_s, now, now)
        return file

    def ready(self, now: float, identify: Identify, limit: int) -> Iterator[CompleteFile]:
        """Hand out at most ``limit`` files that are complete.

        Answer for each by :meth:`filed`, :meth:`forget`, :meth:`doubt` or :meth:`pause`.
        """
        while limit > 0 and self._queue and self._queue[0][0] <= now:
            due_s, name = heapq.heappop(self._queue)
            self.looked += 1
            file = self._files.get(name)
            if file is None or file.handed_out or file.due_s != due_s:
                continue  # answered for, or due at another time by now
            if (file.closed and not file.paused) or self._is_quiet(name, file, now, identify):
                file.handed_out = True
                limit -= 1
                last_try = file.doubted and now - file.changed_s >= self._patience_s
                yield CompleteFile(name, file.seen_s, last_try)

    def _is_quiet(self, name: str, file: _File, now: float, identify: Identify) -> bool:
        """Return True if a file has not changed for long enough. If not, schedule its next check."""
        identity = identify(name)
        if identity is None:
            self.forget(name)
            return False
        if identity != file.identity:
            file.identity, file.changed_s, file.doubted = identity, now, False
        wait_s = self._patience_s if file.doubted else self._settle_s
        quiet_at = file.changed_s + max(wait_s, self._settle_s)
        if now < quiet_at:
            self._schedule(name, file, min(quiet_at, now + max(self._settle_s, SHORTEST_CHECK_S)))
            return False
        return True

    def filed(self, name: str) -> None:
        """Drop a file that was filed."""
        self._drop(name)

    def forget(self, name: str) -> None:
        """Drop a file that somebody else took away."""
        self.withdrawn += name in self._files
        self._drop(name)

    def _drop(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file and file.closed_while_handed_out_s is not None:
            # Another file of that name has arrived meanwhile.
            self.arrived(name, file.closed_while_handed_out_s)

    def doubt(self, name: str, identity: Identity | None, now: float) -> None:
        """Take back a file that did not decode. It waits until it changes or its patience ends."""
        file = self._files[name]
        file.handed_out, file.doubted, file.paused = False, True, False
        if identity != file.identity:
            file.identity, file.changed_s = identity, now
        self._retry(name, file, now, self._settle_s)

    def pause(self, name: str, now: float, pause_s: float) -> None:
        """Take back a file that failed by no fault of its own. It waits ``pause_s``, and twice as long each time."""
        file = self._files[name]
        file.handed_out, file.paused = False, pause_s > 0
        doublings = min(file.pauses, MOST_DOUBLINGS)
        wait_s = min(pause_s * 2**doublings, max(pause_s, LONGEST_PAUSE_S))
        file.pauses = file.pauses + 1 if pause_s > 0 else 0
        self._retry(name, file, now, wait_s)

    def _retry(self, name: str, file: _File, now: float, wait_s: float) -> None:
        """Schedule a file that was taken back: after ``wait_s``, or now if it was closed while it was handed out."""
        file.closed = file.closed_while_handed_out_s is not None
        if file.closed:
            file.closed_while_handed_out_s, file.doubted, file.paused, wait_s = None, False, False, 0.0
        self._schedule(name, file, now + wait_s)

    def due_s(self) -> float | None:
        """Return the time of the next check by :meth:`ready`, or None if no file waits."""
        return self._queue[0][0] if self._queue else None

    def _schedule(self, name: str, file: _File, due_s: float) -> None:
        file.due_s = due_s
        heapq.heappush(self._queue, (due_s, name))
