"""What is there. A scan of the directory is the truth; events only tell of it sooner."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from pathlib import Path

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from watcher import mounts
from watcher.errors import Retry
from watcher.records import Identity
from watcher.unique import PARTIAL

# It reports what the callbacks below are told as well. Without a handler Python writes that to standard error.
logging.getLogger("watchdog.observers.inotify_c").addHandler(logging.NullHandler())


class Inbox:
    """The watched directory, by its names. ``own``: a place that we made in it, never reached through a link."""

    def __init__(
        self, path: Path, ignore: Sequence[str] = (), sentinel: str | None = None, *, own: bool = False
    ) -> None:
        self.path, self._own = path, own
        self._sentinel = sentinel
        self._ignored = re.compile("|".join(translate(pattern) for pattern in ignore) or r"(?!)")
        self.directories = 0
        """Directories that the last whole sweep passed over: files in them are not looked at."""

    def wants(self, name: str) -> bool:
        """False for names that producers use for files in flight (as `undo` does), and for junk."""
        return not self._ignored.match(name) and name != self._sentinel and not name.endswith(PARTIAL)

    def sweep(self) -> Iterator[str]:
        """Every name that is there now, in no order, read as it is asked for.

        Raises:
            Retry: the directory is gone or can not be read, or its sentinel is
                not in it. An absent inbox is not an empty one.
        """
        directories = 0
        if self._sentinel is not None and self.look(self._sentinel) is None:
            raise Retry(f"the inbox {self.path} has no file {self._sentinel}, its sentinel: has its mount gone?")
        if self._own and any(map(os.path.islink, (self.path, self.path.parent))):
            raise Retry(f"{self.path} is a link")
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


class Watch:
    """Collects the names of files closed after writing or moved into the inbox.

    ``wake`` is called, from a thread of its own, when there is something new.
    At most ``capacity`` names are kept; more than that, and events that the
    kernel itself dropped, are told by :meth:`lost`, and a scan makes good for them.

    This is a callback of watchdog's inotify reader, without its observer: that
    also asks for files moved out (by this daemon, mostly), holds its queue 0.5 s
    for each to pair the two ends of a move, and only logs an overflow.

    On file systems that others write to from beyond this kernel it does not
    watch, unless ``anywhere``: it would tell of some arrivals and not of others.
    """

    _ARRIVALS = Mask(InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_MOVED_TO | InotifyConstants.IN_ONLYDIR)

    def __init__(self, path: Path, wake: Callable[[], None], capacity: int = 65536, *, anywhere: bool = True) -> None:
        self._path, self._wake, self._capacity, self._anywhere = path, wake, capacity, anywhere
        self._names: deque[bytes] = deque()
        self._lost = threading.Event()
        self._reader: InotifyFD | None = None
        self._alive = False
        self._watched: tuple[int, int] | None = None

    def start(self) -> None:
        """Begin to watch.

        Raises:
            Retry: the directory is not there, the kernel has no watch left, or it would not tell of everything.
        """
        self._watched = _which(self._path)
        mount = None if self._anywhere else mounts.of(self._path)
        if mount is not None and mount.remote:
            raise Retry(f"the inbox {self._path} is on {mount.kind}: what others write there is not told of")
        reader: InotifyFD | None = None
        try:
            reader = InotifyFD()
            reader.start()
            reader.add_callback(os.fsencode(self._path), self._ARRIVALS, self, CallbackId(id(self)))
        except OSError as error:
            if reader is not None:
                reader.stop()
                reader.join(timeout=5)
            raise Retry(f"the inbox {self._path} can not be watched: {_why(error)}") from error
        self._reader, self._alive = reader, True

    def stop(self) -> None:
        """End watching. Harmless when it never began."""
        if self._reader is not None:
            self._reader.stop()
            self._reader.join(timeout=5)
            self._reader = None

    @property
    def current(self) -> bool:
        """False once the directory was deleted, replaced by another, or its file system unmounted."""
        return self._alive and self._watched == _which(self._path)

    def on_event(self, event: InotifyEvent) -> None:
        """One arrival. Called by watchdog, in its thread."""
        if event.is_directory or not event.name:
            return
        if len(self._names) >= self._capacity:
            self._lost.set()
        else:
            self._names.append(os.fsencode(event.name))
        if len(self._names) == 1 or self._lost.is_set():  # otherwise whoever takes them is awake already
            self._wake()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The directory is gone, or we stopped. Called by watchdog, in its thread."""
        self._alive = False
        self._wake()

    def on_queue_overflow(self) -> None:
        """The kernel dropped events. Called by watchdog, in its thread."""
        self._lost.set()
        self._wake()

    def take(self) -> Iterator[str]:
        """The names collected since the last call."""
        while self._names:
            yield os.fsdecode(self._names.popleft())

    def lost(self) -> bool:
        """True once after events were lost: time for a scan."""
        was = self._lost.is_set()
        self._lost.clear()
        return was


def _why(error: OSError) -> str:
    """In words. inotify_add_watch(2) calls its own limit a full disk."""
    if error.errno == errno.ENOSPC:
        return "no inotify watch is left, raise fs.inotify.max_user_watches"
    if error.errno == errno.EMFILE:
        return "no inotify instance or file is left, raise fs.inotify.max_user_instances"
    return error.strerror or str(error)


def _which(path: Path) -> tuple[int, int] | None:
    """Device and inode of a directory: whether it is still the same one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
