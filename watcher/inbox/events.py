"""Events: the kernel tells of files sooner than a scan of :mod:`watcher.inbox.scan` finds them, if not of all."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from watcher.core import mounts, safe_paths
from watcher.core.errors import Retry
from watcher.core.records import Folder

# It reports what the callbacks below are told as well. Without a handler Python writes that to standard error.
logging.getLogger("watchdog.observers.inotify_c").addHandler(logging.NullHandler())


COVER_CHUNK = 2000
"""Directories newly watched in one turn, so that very many do not hold up what is under way."""


class EventWatcher:
    """Collects the names of files closed after writing or moved into the inbox.

    ``wake`` is called, from a thread of its own, when there is something new.
    At most ``capacity`` names are kept; more than that, and events that the
    kernel itself dropped, are told by :meth:`lost`, and a scan makes good for them.

    This is a callback of watchdog's inotify reader, without its observer: that
    also asks for files moved out (by this daemon, mostly), holds its queue 0.5 s
    for each to pair the two ends of a move, and only logs an overflow.

    On file systems that others write to from beyond this kernel it does not
    watch, unless ``anywhere``: it would tell of some arrivals and not of others.

    If ``recursive`` it also watches the directories that it is told of by
    :meth:`cover`, and :meth:`stirred` tells of new ones.
    """

    def __init__(
        self,
        path: Path,
        wake: Callable[[], None],
        capacity: int = 65536,
        *,
        anywhere: bool = True,
        recursive: bool = False,
    ) -> None:
        self._path, self._wake, self._capacity, self._anywhere = path, wake, capacity, anywhere
        self._mask = Mask(_ARRIVALS | (InotifyConstants.IN_CREATE if recursive else 0))
        self._folders: dict[Folder, _Below] = {}
        self._lock = threading.Lock()
        self._stirred = threading.Event()
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
            reader.add_callback(os.fsencode(self._path), self._mask, self, CallbackId(id(self)))
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
        with self._lock:
            self._folders.clear()

    def cover(self, folders: frozenset[Folder]) -> bool:
        """Watch these directories below the inbox too, and no others. True if one is new: what came before is not told.

        Of very many it takes a part; the next call goes on.

        Raises:
            Retry: not all of them can be watched.
        """
        if self._reader is None:
            return False
        with self._lock:
            fresh = sorted(folders - self._folders.keys())
            gone = [self._folders.pop(folder) for folder in self._folders.keys() - folders]
        self._reader.remove_callbacks([(each.wd, CallbackId(id(each))) for each in gone])
        for folder in fresh[:COVER_CHUNK]:
            below = _Below(self, folder)
            try:
                with safe_paths.open_directory(self._path, folder[0]) as place:
                    below.wd = self._reader.add_callback(os.fsencode(place), self._mask, below, CallbackId(id(below)))
            except FileNotFoundError:
                continue  # gone again: the next scan tells
            except OSError as error:
                raise Retry(f"not all directories in {self._path} can be watched: {_why(error)}") from error
            with self._lock:
                self._folders[folder] = below
        return bool(fresh)

    def uncover(self, folder: Folder, below: _Below) -> None:
        """The kernel watches it no longer: it is gone. Called by watchdog, in its thread."""
        with self._lock:
            if self._folders.get(folder) is below:
                del self._folders[folder]

    def stirred(self) -> bool:
        """True once after a directory was made or moved in: nobody has told of what is in it."""
        was = self._stirred.is_set()
        self._stirred.clear()
        return was

    @property
    def current(self) -> bool:
        """False once the directory was deleted, replaced by another, or its file system unmounted."""
        return self._alive and self._watched == _which(self._path)

    def on_event(self, event: InotifyEvent) -> None:
        """One arrival. Called by watchdog, in its thread."""
        self.tell(event, b"")

    def tell(self, event: InotifyEvent, below: bytes) -> None:
        """One arrival in a directory whose path, with a slash, is ``below``. Called by watchdog, in its thread."""
        if event.is_directory:
            if event.is_create or event.is_moved_to:
                self._stirred.set()
                self._wake()
            return
        if not event.name or event.is_create:  # it is told again when it is closed
            return
        if len(self._names) >= self._capacity:
            self._lost.set()
        else:
            self._names.append(below + os.fsencode(event.name))
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


class _Below:
    """The same for one directory below, as watchdog's inotify reader calls it."""

    def __init__(self, watch: EventWatcher, folder: Folder) -> None:
        self._watch, self._folder = watch, folder
        self._prefix = os.fsencode(folder[0]) + b"/"
        self.wd = WatchDescriptor(-1)

    def on_event(self, event: InotifyEvent) -> None:
        self._watch.tell(event, self._prefix)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        self._watch.uncover(self._folder, self)

    def on_queue_overflow(self) -> None:
        self._watch.on_queue_overflow()


_ARRIVALS = InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_MOVED_TO | InotifyConstants.IN_ONLYDIR


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
