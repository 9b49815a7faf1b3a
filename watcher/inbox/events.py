"""Watch the inbox for files that arrive, by inotify.

Events report files sooner than a scan (see :mod:`watcher.inbox.scan`) finds them. They need not report all.
"""

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

# It logs what it also reports to the callbacks below. Without a handler Python writes that to standard error.
logging.getLogger("watchdog.observers.inotify_c").addHandler(logging.NullHandler())


WATCH_CHUNK = 2000
"""Directories watched anew in one turn, so that very many do not hold up other work."""


class EventWatcher:
    """Collects the names of files that are closed after writing, or moved, in the inbox.

    Calls ``wake``, from a thread of its own, when there is something new. Keeps at
    most ``capacity`` names. :meth:`has_lost_events` tells when there were more, or
    when the kernel dropped events; a scan must find those files.

    This class is a callback of watchdog's inotify reader. It does not use watchdog's
    observer, which also asks for files moved out (mostly by this daemon), holds its
    queue for 0.5 s after each to pair the two ends of a move, and only logs an
    overflow.

    If ``anywhere`` is false, it refuses file systems that other hosts write to:
    there the kernel reports only some of the arrivals.

    If ``recursive`` is true, it also watches the directories given to
    :meth:`watch_subdirectories`, and :meth:`has_new_directory` tells of new ones.
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
        self._subdirectories: dict[Folder, _Subdirectory] = {}
        self._lock = threading.Lock()
        self._new_directory = threading.Event()
        self._names: deque[bytes] = deque()
        self._lost = threading.Event()
        self._reader: InotifyFD | None = None
        self._alive = False
        self._watched: tuple[int, int] | None = None

    def start(self) -> None:
        """Begin to watch.

        Raises:
            Retry: the directory does not exist, the kernel has no watch left, or it would not report every arrival.
        """
        self._watched = _device_and_inode(self._path)
        mount = None if self._anywhere else mounts.of(self._path)
        if mount is not None and mount.remote:
            raise Retry(
                f"the inbox {self._path} is on {mount.kind}: the kernel does not report what others write there"
            )
        reader: InotifyFD | None = None
        try:
            reader = InotifyFD()
            reader.start()
            reader.add_callback(os.fsencode(self._path), self._mask, self, CallbackId(id(self)))
        except OSError as error:
            if reader is not None:
                reader.stop()
                reader.join(timeout=5)
            raise Retry(f"the inbox {self._path} can not be watched: {_describe(error)}") from error
        self._reader, self._alive = reader, True

    def stop(self) -> None:
        """Stop watching. Do nothing if it was not started."""
        if self._reader is not None:
            self._reader.stop()
            self._reader.join(timeout=5)
            self._reader = None
        with self._lock:
            self._subdirectories.clear()

    def watch_subdirectories(self, folders: frozenset[Folder]) -> bool:
        """Watch these directories below the inbox, and no others.

        Return True if one was not watched before: a scan must find the files that were in it already. Of very many
        new directories it watches only a part; the next call goes on.

        Raises:
            Retry: not all of them can be watched.
        """
        if self._reader is None:
            return False
        with self._lock:
            new = sorted(folders - self._subdirectories.keys())
            removed = [self._subdirectories.pop(folder) for folder in self._subdirectories.keys() - folders]
        self._reader.remove_callbacks([(directory.wd, CallbackId(id(directory))) for directory in removed])
        for folder in new[:WATCH_CHUNK]:
            directory = _Subdirectory(self, folder)
            callback = CallbackId(id(directory))
            try:
                with safe_paths.open_directory(self._path, folder[0]) as path:
                    directory.wd = self._reader.add_callback(os.fsencode(path), self._mask, directory, callback)
            except FileNotFoundError:
                continue  # it is gone again; the next scan drops it
            except OSError as error:
                raise Retry(f"not all directories in {self._path} can be watched: {_describe(error)}") from error
            with self._lock:
                self._subdirectories[folder] = directory
        return bool(new)

    def subdirectory_deleted(self, folder: Folder, directory: _Subdirectory) -> None:
        """Forget a directory that the kernel no longer watches. Called by watchdog, in its thread."""
        with self._lock:
            if self._subdirectories.get(folder) is directory:
                del self._subdirectories[folder]

    def has_new_directory(self) -> bool:
        """Return True once after a directory was made or moved in: no event reports the files that it holds."""
        is_set = self._new_directory.is_set()
        self._new_directory.clear()
        return is_set

    @property
    def is_current(self) -> bool:
        """False after the directory was deleted or replaced, or its file system was unmounted."""
        return self._alive and self._watched == _device_and_inode(self._path)

    def on_event(self, event: InotifyEvent) -> None:
        """Handle an event of the inbox. Called by watchdog, in its thread."""
        self.handle(event, b"")

    def handle(self, event: InotifyEvent, prefix: bytes) -> None:
        """Handle an event of a directory. Called by watchdog, in its thread.

        ``prefix`` is the directory's relative path with a slash at the end, or empty for the inbox itself.
        """
        if event.is_directory:
            if event.is_create or event.is_moved_to:
                self._new_directory.set()
                self._wake()
            return
        if not event.name or event.is_create:  # another event follows when the file is closed
            return
        if len(self._names) >= self._capacity:
            self._lost.set()
        else:
            self._names.append(prefix + os.fsencode(event.name))
        if len(self._names) == 1 or self._lost.is_set():  # otherwise the loop was woken already
            self._wake()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Note that the directory is gone, or that watching was stopped. Called by watchdog, in its thread."""
        self._alive = False
        self._wake()

    def on_queue_overflow(self) -> None:
        """Note that the kernel dropped events. Called by watchdog, in its thread."""
        self._lost.set()
        self._wake()

    def take_names(self) -> Iterator[str]:
        """Yield the names collected since the last call."""
        while self._names:
            yield os.fsdecode(self._names.popleft())

    def has_lost_events(self) -> bool:
        """Return True once after events were lost. Then a scan is needed."""
        is_set = self._lost.is_set()
        self._lost.clear()
        return is_set


class _Subdirectory:
    """The callback for one directory below the inbox."""

    def __init__(self, watcher: EventWatcher, folder: Folder) -> None:
        self._watcher, self._folder = watcher, folder
        self._prefix = os.fsencode(folder[0]) + b"/"
        self.wd = WatchDescriptor(-1)

    def on_event(self, event: InotifyEvent) -> None:
        self._watcher.handle(event, self._prefix)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        self._watcher.subdirectory_deleted(self._folder, self)

    def on_queue_overflow(self) -> None:
        self._watcher.on_queue_overflow()


_ARRIVALS = InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_MOVED_TO | InotifyConstants.IN_ONLYDIR


def _describe(error: OSError) -> str:
    """Describe an error in words. inotify_add_watch(2) reports its own limit as a full disk."""
    if error.errno == errno.ENOSPC:
        return "no inotify watch is left, raise fs.inotify.max_user_watches"
    if error.errno == errno.EMFILE:
        return "no inotify instance or file is left, raise fs.inotify.max_user_instances"
    return error.strerror or str(error)


def _device_and_inode(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a directory, or None if it can not be reached."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
