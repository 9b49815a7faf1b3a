"""What has arrived in a directory: its events and its scans, into settle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from watcher.core.errors import Retry
from watcher.core.records import Level, Notice
from watcher.inbox.completeness import PendingFiles
from watcher.inbox.events import EventWatcher
from watcher.inbox.scan import Inbox

SCAN_CHUNK = 1024
"""Names taken from a sweep in one turn, so that a large inbox does not hold up what is under way."""

STIR_S = 1.0
"""How soon the inbox is scanned again after a directory was made in it, and after a new one is watched."""


@dataclass
class Arrivals:
    """Tells ``settle`` of every file in ``inbox``, by :meth:`look`. ``notices`` holds what the log is to tell."""

    inbox: Inbox
    watch: EventWatcher | None
    pending: PendingFiles
    scan_interval_s: float = 5.0

    def __post_init__(self) -> None:
        self.notices: list[Notice] = []
        self.unreachable = False
        self.scans = 0
        self.looked = 0
        """Names that sweeps gave, and sweeps that ended, so far."""
        self.losses = 0
        """How often events were lost so far, and a scan made good for them."""
        self._losing = self._losing_still = self._again = False
        self._unwatched = self._uncovered = ""
        self._stirred = False
        self._scan: Iterator[str] | None = None
        self._next_scan_s = float("-inf")
        self._told_directories = 0

    def _notice(self, level: Level, event: str, **fields: object) -> None:
        self.notices.append(Notice(level, event, fields))

    def look(self, now: float) -> None:
        """Take what events and the sweep under way have to tell."""
        if self.watch is not None:
            for name in self.watch.take():
                if self.inbox.wants(name) and not self.pending.arrived(name, now):
                    self._scan_soon(now)
            if self.watch.lost():
                self._lost(now)
            if self.watch.stirred():
                self._stirred, self._next_scan_s = True, min(self._next_scan_s, now + STIR_S)
        if self._scan is None and now >= self._next_scan_s and self.pending.room > 0:
            self._scan, self._stirred = self.inbox.steps(), False
        if self._scan is not None:
            self._scan_on(now)

    def _lost(self, now: float) -> None:
        """Scan at once. A burst that loses events again and again is told once, until a whole scan lost none."""
        self.losses += 1
        if not self._losing:
            self._notice("warning", "inbox.events_lost", losses=self.losses, note="too many at once; scanning instead")
        self._losing = self._losing_still = True
        self._scan_soon(now)

    def _scan_soon(self, now: float) -> None:
        """At once, and also after the sweep under way: it may have passed what has come since."""
        self._next_scan_s, self._again = now, self._scan is not None

    def _scan_on(self, now: float) -> None:
        assert self._scan is not None
        try:
            for _ in range(min(SCAN_CHUNK, self.pending.room)):
                name = next(self._scan, None)
                self.looked += 1
                if name is None:
                    return self._scanned(now)
                if name:
                    self.pending.seen(name, now)
        except Retry as error:
            self._scan, self._next_scan_s = None, now + self.scan_interval_s
            self.looked += 1
            if not self.unreachable:
                self._notice("error", "inbox.unreachable", detail=str(error), note="waiting for it to come back")
            self.unreachable = True

    def _scanned(self, now: float) -> None:
        self._scan, pause_s = None, STIR_S if self._stirred else self.scan_interval_s
        self.scans += 1
        self._losing, self._losing_still = self._losing_still, False
        if self.unreachable:
            self._notice("info", "inbox.reachable")
            if self.watch is not None:
                self.watch.stop()
        self.unreachable = False
        self.keep_watched()
        if self.inbox.recursive and self._cover():
            pause_s = STIR_S
        self._next_scan_s, self._again = now + (0 if self._again else min(pause_s, self.scan_interval_s)), False
        if self.inbox.directories != self._told_directories:
            self._told_directories = self.inbox.directories
            self._notice("warning", "inbox.directories_ignored", count=self._told_directories)

    def keep_watched(self) -> None:
        """Watch, for the first time or anew: the inbox may be another directory by now, the old watch worth nothing.

        Where that can not be, the scan alone serves. It is told once, and tried again after each scan.
        """
        if self.watch is None or self.watch.current:
            return
        self.watch.stop()
        try:
            self.watch.start()
        except Retry as error:
            if self._unwatched != str(error):
                self._notice("warning", "inbox.not_watched", detail=str(error), note="the scan alone serves")
            self._unwatched = str(error)
        else:
            if self._unwatched:
                self._notice("info", "inbox.watched")
            self._unwatched = ""

    def _cover(self) -> bool:
        """Watch the directories below that the scan has found. True if one is new."""
        if self.watch is None:
            return False
        try:
            fresh = self.watch.cover(self.inbox.folders)
        except Retry as error:
            if self._uncovered != str(error):
                self._notice("warning", "inbox.not_watched", detail=str(error), note="the scan alone serves")
            self._uncovered = str(error)
            return False
        if self._uncovered:
            self._notice("info", "inbox.watched")
        self._uncovered = ""
        return fresh

    @property
    def scanning(self) -> bool:
        """Whether a sweep is under way, and not held up by want of room."""
        return self._scan is not None and self.pending.room > 0

    def due_s(self) -> float | None:
        """When :meth:`look` next has something to do by itself, or None: not before settle has room."""
        if self.pending.room <= 0:
            return None
        return self._next_scan_s if self._scan is None else float("-inf")

    def close(self) -> None:
        """End watching."""
        if self.watch is not None:
            self.watch.stop()
