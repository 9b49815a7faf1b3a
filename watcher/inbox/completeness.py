"""Hold a file until it is complete.

A file is complete when the kernel said so (closed after writing, or moved in),
or else once its size and times have not changed for ``settle_s``. One that
settled but does not decode may still be growing: :meth:`PendingFiles.doubt` gives it
until ``patience_s`` after its last change, then one last try.

Time is an argument everywhere; the loop owns the clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from watcher.core.records import Identity

LONGEST_PAUSE_S = 300.0
"""However often a file's surroundings fail it, it is tried again this often."""

Look = Callable[[str], Identity | None]
"""What a name stands for just now, or None when nothing has that name."""


@dataclass(frozen=True, slots=True)
class CompleteFile:
    """A file to decode now. ``last_try``: it has had its patience, what fails now is final."""

    name: str
    seen_s: float
    last_try: bool


@dataclass(slots=True)
class _Waiting:
    seen_s: float
    changed_s: float
    due_s: float
    stamp: Identity | None = None
    closed: bool = False
    doubted: bool = False
    paused: bool = False
    held: bool = False
    pauses: int = 0
    closed_while_held: float | None = None


class PendingFiles:
    """The files that wait, and those handed out and not yet answered for.

    Remembers at most ``capacity`` names, so that memory does not grow with the
    inbox: :meth:`arrived` and :meth:`seen` refuse more, and a later scan finds
    them again.
    """

    def __init__(self, settle_s: float, patience_s: float, capacity: int) -> None:
        self._settle_s, self._patience_s, self._capacity = settle_s, patience_s, capacity
        self._files: dict[str, _Waiting] = {}
        self._queue: list[tuple[float, str]] = []
        self.admitted = 0
        """Files taken in so far."""
        self.withdrawn = 0
        """Files that left by another hand than ours. Always: admitted = filed + withdrawn + len(self)."""
        self.looked = 0
        """How often a file that was due has been looked at."""

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def room(self) -> int:
        """How many more names it takes."""
        return self._capacity - len(self._files)

    def retime(self, settle_s: float, patience_s: float) -> None:
        """Other times, from now on."""
        self._settle_s, self._patience_s = settle_s, patience_s

    @property
    def oldest_s(self) -> float | None:
        """When the file that has waited longest was first seen, or None."""
        return min((file.seen_s for file in self._files.values()), default=None)

    def arrived(self, name: str, now: float, seen_s: float | None = None) -> bool:
        """The kernel reports the file closed after writing, or moved in. False when there is no room.

        ``seen_s`` is when it was first seen, if not now.
        """
        file = self._files.get(name)
        if file is None:
            if self.room <= 0:
                return False
            file = self._admit(name, now, seen_s)
        elif file.held:
            file.closed_while_held = now
            return True
        file.closed, file.doubted, file.paused = True, False, False
        self._at(name, file, now)
        return True

    def seen(self, name: str, now: float) -> bool:
        """A scan found the file. False when there is no room."""
        if name in self._files:
            return True
        if self.room <= 0:
            return False
        self._at(name, self._admit(name, now), now)
        return True

    def _admit(self, name: str, now: float, seen_s: float | None = None) -> _Waiting:
        self.admitted += 1
        file = self._files[name] = _Waiting(now if seen_s is None else seen_s, now, now)
        return file

    def ready(self, now: float, look: Look, limit: int) -> Iterator[CompleteFile]:
        """Hand out at most ``limit`` files that are complete.

        Each must be answered for: :meth:`filed`, :meth:`forget`, :meth:`doubt` or :meth:`pause`.
        """
        while limit > 0 and self._queue and self._queue[0][0] <= now:
            due_s, name = heapq.heappop(self._queue)
            self.looked += 1
            file = self._files.get(name)
            if file is None or file.held or file.due_s != due_s:
                continue  # answered for, or due at another time by now
            if (file.closed and not file.paused) or self._is_quiet(name, file, now, look):
                file.held = True
                limit -= 1
                last_try = file.doubted and now - file.changed_s >= self._patience_s
                yield CompleteFile(name, file.seen_s, last_try)

    def _is_quiet(self, name: str, file: _Waiting, now: float, look: Look) -> bool:
        stamp = look(name)
        if stamp is None:
            self.forget(name)
            return False
        if stamp != file.stamp:
            file.stamp, file.changed_s, file.doubted = stamp, now, False
        wait_s = self._patience_s if file.doubted else self._settle_s
        quiet_at = file.changed_s + max(wait_s, self._settle_s)
        if now < quiet_at:
            self._at(name, file, min(quiet_at, now + max(self._settle_s, 0.05)))
            return False
        return True

    def filed(self, name: str) -> None:
        """The file has left the inbox, as it should."""
        self._leave(name)

    def forget(self, name: str) -> None:
        """The file has left the inbox by another hand."""
        self.withdrawn += name in self._files
        self._leave(name)

    def _leave(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file and file.closed_while_held is not None:
            # Another file of that name arrived meanwhile.
            self.arrived(name, file.closed_while_held)

    def doubt(self, name: str, stamp: Identity | None, now: float) -> None:
        """The file did not decode: wait for it to change, or for its patience to end."""
        file = self._files[name]
        file.held, file.doubted, file.paused = False, True, False
        if stamp != file.stamp:
            file.stamp, file.changed_s = stamp, now
        self._again(name, file, now, self._settle_s)

    def pause(self, name: str, now: float, pause_s: float) -> None:
        """Nothing is wrong with the file: try again after ``pause_s``, and twice as long each time after."""
        file = self._files[name]
        file.held, file.paused = False, pause_s > 0
        doublings = min(file.pauses, 20)  # far beyond the longest pause, and never too large for a float
        wait_s = min(pause_s * 2**doublings, max(pause_s, LONGEST_PAUSE_S))
        file.pauses = file.pauses + 1 if pause_s > 0 else 0
        self._again(name, file, now, wait_s)

    def _again(self, name: str, file: _Waiting, now: float, wait_s: float) -> None:
        file.closed = file.closed_while_held is not None
        if file.closed:
            file.closed_while_held, file.doubted, file.paused, wait_s = None, False, False, 0.0
        self._at(name, file, now + wait_s)

    def due_s(self) -> float | None:
        """When :meth:`ready` next has something to look at, or None."""
        return self._queue[0][0] if self._queue else None

    def _at(self, name: str, file: _Waiting, due_s: float) -> None:
        file.due_s = due_s
        heapq.heappush(self._queue, (due_s, name))
