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

from watcher import beneath, mounts
from watcher.errors import Retry
from watcher.records import Identity
from watcher.unique import CLAIMS, PARTIAL

# It reports what the callbacks below are told as well. Without a handler Python writes that to standard error.
logging.getLogger("watchdog.observers.inotify_c").addHandler(logging.NullHandler())


MOST_DEEP = 16
"""How many directories within each other are entered."""

LONGEST = 1024
"""How long the way to such a directory may be, in bytes: with any name in it, it is still a path."""

Folder = tuple[str, int]
"""A directory below the inbox: its path there, and its inode."""


class Inbox:
    """The watched directory, by its names; if ``recursive``, by paths relative to it.

    ``own``: a place that we made in it, never reached through a link.
    """

    def __init__(
        self,
        path: Path,
        ignore: Sequence[str] = (),
        sentinel: str | None = None,
        *,
        own: bool = False,
        recursive: bool = False,
    ) -> None:
        self.path, self.recursive, self._own = path, recursive, own
        self._sentinel = sentinel
        self._ignored = re.compile("|".join(translate(pattern) for pattern in ignore) or r"(?!)")
        self.directories = 0
        """Directories that the last whole sweep passed over: files in them are not looked at."""
        self.folders: frozenset[Folder] = frozenset()
        """Directories that the last whole sweep entered, but for the inbox itself."""

    def wants(self, name: str) -> bool:
        """False for names that producers use for files in flight (as `undo` does), for junk, and for all below such."""
        if name == self._sentinel or name.endswith(PARTIAL):
            return False
        return not any(part == CLAIMS or self._ignored.match(part) for part in name.split("/"))

    def sweep(self) -> Iterator[str]:
        """Every name that is there now, in no order, read as it is asked for.

        A directory below that can not be entered is passed over. So is another
        file system: while it is not mounted, nobody could tell that it is missing.

        Raises:
            Retry: the directory is gone or can not be read, or its sentinel is
                not in it. An absent inbox is not an empty one.
        """
        if self._sentinel is not None and self.look(self._sentinel) is None:
            raise Retry(f"the inbox {self.path} has no file {self._sentinel}, its sentinel: has its mount gone?")
        if self._own and any(map(os.path.islink, (self.path, self.path.parent))):
            raise Retry(f"{self.path} is a link")
        directories, folders, todo = 0, set(), [""]
        try:
            device = os.stat(self.path).st_dev
            while todo:
                below = todo.pop()
                try:
                    with beneath.held(self.path, below) as place, os.scandir(place) as entries:
                        for entry in entries:
                            name = f"{below}/{entry.name}" if below else entry.name
                            if not self.wants(name):
                                continue
                            if not entry.is_dir(follow_symlinks=False):
                                yield name
                            elif self._enters(name, entry, device):
                                folders.add((name, entry.inode()))
                                todo.append(name)
                            else:
                                directories += 1
                except OSError as error:
                    if not below:
                        raise
                    directories += error.errno != errno.ENOENT
        except OSError as error:
            raise Retry(f"the inbox {self.path} can not be listed: {error.strerror}") from error
        self.directories, self.folders = directories, frozenset(folders)

    def _enters(self, name: str, entry: os.DirEntry[str], device: int) -> bool:
        if not self.recursive or name.count("/") >= MOST_DEEP or len(os.fsencode(name)) > LONGEST:
            return False
        return entry.stat(follow_symlinks=False).st_dev == device

    def look(self, name: str) -> Identity | None:
        """What ``name`` stands for just now (a link itself, not its target), or None.

        A name that can not be looked at stands for nothing; the next scan sees it again.
        """
        below, base = os.path.split(name)
        try:
            with beneath.held(self.path, below) as place:
                found = os.lstat(place / base)
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

        Raises:
            Retry: not all of them can be watched.
        """
        if self._reader is None:
            return False
        with self._lock:
            fresh = sorted(folders - self._folders.keys())
            gone = [self._folders.pop(folder) for folder in self._folders.keys() - folders]
        self._reader.remove_callbacks([(each.wd, CallbackId(id(each))) for each in gone])
        for folder in fresh:
            below = _Below(self, folder)
            try:
                with beneath.held(self._path, folder[0]) as place:
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

    def __init__(self, watch: Watch, folder: Folder) -> None:
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
