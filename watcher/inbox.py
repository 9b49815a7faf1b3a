"""What is there. A scan of the directory is the truth; events only tell of it sooner."""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from pathlib import Path

from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import InotifyConstants, InotifyFD, Mask

from watcher.errors import Retry
from watcher.records import Identity


class Inbox:
    """The watched directory, by its names."""

    def __init__(self, path: Path, ignore: Sequence[str] = ()) -> None:
        self.path = path
        self._ignored = re.compile("|".join(translate(pattern) for pattern in ignore) or r"(?!)")
        self.directories = 0
        """Directories that the last whole sweep passed over: files in them are not looked at."""

    def wants(self, name: str) -> bool:
        """False for names that producers use for files in flight, and for junk."""
        return not self._ignored.match(name)

    def sweep(self) -> Iterator[str]:
        """Every name that is there now, in no order, read as it is asked for.

        Raises:
            Retry: the directory is gone or can not be read. An absent inbox is
                not an empty one.
        """
        directories = 0
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if not self.wants(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories += 1
                        continue
                    yield entry.name
        except OSError as error:
            raise Retry(f"the inbox {self.path} can not be listed: {error.strerror}") from error
        self.directories = directories

    def look(self, name: str) -> Identity | None:
        """What ``name`` stands for just now (a link itself, not its target), or None.

        A name that can not be looked at stands for nothing; the next scan sees it again.
        """
        try:
            found = os.lstat(self.path / name)
        except OSError:
            return None
        if stat.S_ISDIR(found.st_mode):
            return None
        return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class _ArrivalEmitter(InotifyFullEmitter):
    """Asks the kernel for arrivals alone.

    watchdog would also subscribe to files moved out (by this daemon, mostly)
    and hold the queue 0.5 s for each, to pair the two ends of a move.
    """

    def get_event_mask_from_filter(self) -> Mask:
        arrivals = InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_MOVED_TO
        return Mask(arrivals | InotifyConstants.IN_DELETE_SELF)


class _ArrivalObserver(BaseObserver):
    def __init__(self) -> None:
        self._inotify_fd = InotifyFD()
        self._inotify_fd.start()
        super().__init__(_ArrivalEmitter, inotify_fd=self._inotify_fd)

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self._inotify_fd.stop()
        self._inotify_fd.join()


class Watch(FileSystemEventHandler):
    """Collects the names of files closed after writing or moved into the inbox.

    ``wake`` is called, from a thread of its own, when there is something new.
    At most ``capacity`` names are kept; more than that, and events that the
    kernel itself dropped, are told by :meth:`lost`, and a scan makes good for them.
    """

    def __init__(self, path: Path, wake: Callable[[], None], capacity: int = 65536) -> None:
        self._path, self._wake, self._capacity = path, wake, capacity
        self._names: deque[str] = deque()
        self._lost = threading.Event()
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self._overflow = _OverflowHandler(self._lost, wake)

    def start(self) -> None:
        """Begin to watch.

        Raises:
            Retry: the directory is not there, or the kernel has no watch left.
        """
        self._watched = _which(self._path)
        observer: BaseObserver | None = None
        try:
            observer = _ArrivalObserver()
            observer.schedule(self, str(self._path), event_filter=[FileClosedEvent, FileMovedEvent])
            observer.start()
        except OSError as error:
            if observer is not None:
                observer.on_thread_stop()
            raise Retry(f"the inbox {self._path} can not be watched: {error.strerror or error}") from error
        self._observer = observer
        logging.getLogger("watchdog.observers.inotify_c").addHandler(self._overflow)

    def stop(self) -> None:
        """End watching. Harmless when it never began."""
        logging.getLogger("watchdog.observers.inotify_c").removeHandler(self._overflow)
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5)
            self._observer = None

    @property
    def current(self) -> bool:
        """False once the directory was deleted, replaced by another, or its file system unmounted."""
        alive = self._observer is not None and any(emitter.is_alive() for emitter in self._observer.emitters)
        return alive and self._watched == _which(self._path)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """One arrival. Called by watchdog, in its thread."""
        if event.is_directory:
            return
        path = event.dest_path if isinstance(event, FileMovedEvent) else event.src_path
        if len(self._names) >= self._capacity:
            self._lost.set()
        else:
            self._names.append(os.path.basename(os.fsdecode(path)))
        self._wake()

    def take(self) -> Iterator[str]:
        """The names collected since the last call."""
        for _ in range(len(self._names)):
            yield self._names.popleft()

    def lost(self) -> bool:
        """True once after events were lost: time for a scan."""
        was = self._lost.is_set()
        self._lost.clear()
        return was


def _which(path: Path) -> tuple[int, int] | None:
    """Device and inode of a directory: whether it is still the same one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _OverflowHandler(logging.Handler):
    """watchdog only logs that the kernel's event queue overflowed; this hears it."""

    def __init__(self, lost: threading.Event, wake: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._lost_events, self._wake = lost, wake

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage().lower():
            self._lost_events.set()
            self._wake()
