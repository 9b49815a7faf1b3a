"""What is there: a scan of the directory is the truth. See :mod:`watcher.inbox.events` for what tells of it sooner."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import translate
from pathlib import Path

from watcher.core import safe_paths
from watcher.core.errors import Retry
from watcher.core.no_overwrite import CLAIMS, PARTIAL
from watcher.core.records import Folder, Identity

MOST_DEEP = 16
"""How many directories within each other are entered."""

LONGEST = 1024
"""How long the way to such a directory may be, in bytes: with any name in it, it is still a path."""


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

    def scan(self) -> Iterator[str]:
        """Every name that is there now, in no order, read as it is asked for.

        Raises:
            Retry: as :meth:`steps`.
        """
        return filter(None, self.steps())

    def steps(self) -> Iterator[str]:
        """The same, with an empty name between directories: so many of them are no long wait for the next name.

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
                    for name, entry in self._entries(below):
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
                if todo:
                    yield ""
        except OSError as error:
            raise Retry(f"the inbox {self.path} can not be listed: {error.strerror}") from error
        self.directories, self.folders = directories, frozenset(folders)

    def _entries(self, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """What is wanted of one directory, with its path."""
        with safe_paths.open_directory(self.path, below) as place, os.scandir(place) as entries:
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if self.wants(name):
                    yield name, entry

    def _enters(self, name: str, entry: os.DirEntry[str], device: int) -> bool:
        if not self.recursive or name.count("/") >= MOST_DEEP or len(os.fsencode(name)) > LONGEST:
            return False
        try:
            return entry.stat(follow_symlinks=False).st_dev == device
        except FileNotFoundError:  # it was removed since it was listed
            return False

    def look(self, name: str) -> Identity | None:
        """What ``name`` stands for just now (a link itself, not its target), or None.

        A name that can not be looked at stands for nothing; the next scan sees it again.
        """
        below, base = os.path.split(name)
        try:
            with safe_paths.open_directory(self.path, below) as place:
                found = os.lstat(place / base)
        except OSError:
            return None
        if stat.S_ISDIR(found.st_mode):
            return None
        return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
