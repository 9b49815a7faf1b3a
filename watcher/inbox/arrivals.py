"""Collect the files that arrive in a directory, from its events and its scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from watcher.core.errors import Retry
from watcher.core.records import Level, Notice
from watcher.inbox.completeness import PendingFiles
from watcher.inbox.events import EventWatcher
from watcher.inbox.scan import Inbox

SCAN_CHUNK = 1024
"""Steps of a scan in one turn, so that a large inbox does not hold up other work."""

NEW_DIRECTORY_SCAN_S = 1.0
"""Seconds until the next scan after a directory was made in the inbox, or was watched for the first time."""


@dataclass
class Arrivals:
    """Reports every file in ``inbox`` to ``pending``. Call :meth:`look` in each turn of the loop.

    ``notices`` holds lines for the log.
    """

    inbox: Inbox
    watch: EventWatcher | None
    pending: PendingFiles
    scan_interval_s: float = 5.0

    def __post_init__(self) -> None:
        self.notices: list[Notice] = []
        self.unreachable = False
        self.scans = 0
        """Scans completed so far."""
        self.looked = 0
        """Steps of scans so far. It grows as long as a scan makes progress."""
        self.losses = 0
        """Times that events were lost so far. A scan follows each."""
        self._losing = self._lost_in_scan = self._scan_again = False
        self._watch_error = self._subdirectory_error = ""
        self._has_new_directory = False
        self._scan: Iterator[str] | None = None
        self._next_scan_s = float("-inf")
        self._reported_directories = 0

    def _notice(self, level: Level, event: str, **fields: object) -> None:
        self.notices.append(Notice(level, event, fields))

    def look(self, now: float) -> None:
        """Report the files of new events, and go on with the scan or begin one if it is due."""
        if self.watch is not None:
            for name in self.watch.take_names():
                if self.inbox.wants(name) and not self.pending.arrived(name, now):
                    self._scan_soon(now)
            if self.watch.has_lost_events():
                self._handle_lost_events(now)
            if self.watch.has_new_directory():
                self._has_new_directory = True
                self._next_scan_s = min(self._next_scan_s, now + NEW_DIRECTORY_SCAN_S)
        if self._scan is None and now >= self._next_scan_s and self.pending.room > 0:
            self._scan, self._has_new_directory = self.inbox.scan_in_steps(), False
        if self._scan is not None:
            self._continue_scan(now)

    def _handle_lost_events(self, now: float) -> None:
        """Scan at once. Log a burst of losses once: it ends with the first scan during which no event was lost."""
        self.losses += 1
        if not self._losing:
            self._notice("warning", "inbox.events_lost", losses=self.losses, note="too many at once; scanning instead")
        self._losing = self._lost_in_scan = True
        self._scan_soon(now)

    def _scan_soon(self, now: float) -> None:
        """Scan at once. If a scan is under way, scan again after it: it may have passed the new files already."""
        self._next_scan_s, self._scan_again = now, self._scan is not None

    def _continue_scan(self, now: float) -> None:
        assert self._scan is not None
        try:
            for _ in range(min(SCAN_CHUNK, self.pending.room)):
                name = next(self._scan, None)
                self.looked += 1
                if name is None:
                    return self._finish_scan(now)
                if name:
                    self.pending.found_by_scan(name, now)
        except Retry as error:
            self._scan, self._next_scan_s = None, now + self.scan_interval_s
            self.looked += 1
            if not self.unreachable:
                self._notice("error", "inbox.unreachable", detail=str(error), note="waiting for it to come back")
            self.unreachable = True

    def _finish_scan(self, now: float) -> None:
        pause_s = NEW_DIRECTORY_SCAN_S if self._has_new_directory else self.scan_interval_s
        self._scan = None
        self.scans += 1
        self._losing, self._lost_in_scan = self._lost_in_scan, False
        if self.unreachable:
            self._notice("info", "inbox.reachable")
            if self.watch is not None:
                self.watch.stop()
        self.unreachable = False
        self.keep_watched()
        if self.inbox.recursive and self._watch_subdirectories():
            pause_s = NEW_DIRECTORY_SCAN_S
        self._next_scan_s = now + (0 if self._scan_again else min(pause_s, self.scan_interval_s))
        self._scan_again = False
        if self.inbox.directories_ignored != self._reported_directories:
            self._reported_directories = self.inbox.directories_ignored
            self._notice("warning", "inbox.directories_ignored", count=self._reported_directories)

    def keep_watched(self) -> None:
        """Watch the inbox, if it is not watched or is another directory now.

        If it can not be watched, the scans alone find the files. This is logged once, and tried again after each scan.
        """
        if self.watch is None or self.watch.is_current:
            return
        self.watch.stop()
        try:
            self.watch.start()
        except Retry as error:
            if self._watch_error != str(error):
                self._notice("warning", "inbox.not_watched", detail=str(error), note="only scans find new files")
            self._watch_error = str(error)
        else:
            if self._watch_error:
                self._notice("info", "inbox.watched")
            self._watch_error = ""

    def _watch_subdirectories(self) -> bool:
        """Watch the directories that the scan has found. Return True if one of them was not watched before."""
        if self.watch is None:
            return False
        try:
            has_new = self.watch.watch_subdirectories(self.inbox.folders)
        except Retry as error:
            if self._subdirectory_error != str(error):
                self._notice("warning", "inbox.not_watched", detail=str(error), note="only scans find new files")
            self._subdirectory_error = str(error)
            return False
        if self._subdirectory_error:
            self._notice("info", "inbox.watched")
        self._subdirectory_error = ""
        return has_new

    @property
    def scanning(self) -> bool:
        """True while a scan is under way and ``pending`` has room for its files."""
        return self._scan is not None and self.pending.room > 0

    def due_s(self) -> float | None:
        """Return the time of the next scan step, or None while ``pending`` has no room."""
        if self.pending.room <= 0:
            return None
        return self._next_scan_s if self._scan is None else float("-inf")

    def close(self) -> None:
        """Stop watching."""
        if self.watch is not None:
            self.watch.stop()
