"""Scan the inbox for files.

A scan finds every file. Events (see :mod:`watcher.inbox.events`) report files sooner, but need not report all.
"""

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
"""The number of levels below the inbox that a scan enters."""

LONGEST = 1024
"""The longest path of a directory that a scan enters, in bytes. With any file name added, it is still a valid path."""


class Inbox:
    """A directory that receives files. Files are known by name, or if ``recursive`` is true by relative path.

    ``own`` says that we made the directory ourselves. Then it is never reached through a link.
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
        self.directories_ignored = 0
        """Directories that the last complete scan did not enter. Files in them are not sorted."""
        self.folders: frozenset[Folder] = frozenset()
        """Directories below the inbox that the last complete scan entered."""

    def wants(self, name: str) -> bool:
        """Return False for an unfinished file (of a producer, or of ``undo``), for junk, and for all below either."""
        if name == self._sentinel or name.endswith(PARTIAL):
            return False
        return not any(part == CLAIMS or self._ignored.match(part) for part in name.split("/"))

    def scan(self) -> Iterator[str]:
        """Yield the name of every file in the inbox, in no order. The directories are read on demand.

        Raises:
            Retry: as :meth:`scan_in_steps`.
        """
        return filter(None, self.scan_in_steps())

    def scan_in_steps(self) -> Iterator[str]:
        """Yield the name of every file, and an empty name between directories.

        Because of the empty names, the next step comes soon even if there are many directories without files.

        A directory below the inbox that can not be entered is passed over. So is
        another file system: if it were not mounted, nobody could see that it is
        missing.

        Raises:
            Retry: the directory is gone or can not be read, or its sentinel is
                not in it. An absent inbox is not an empty one.
        """
        if self._sentinel is not None and self.identify(self._sentinel) is None:
            raise Retry(f"the inbox {self.path} has no file {self._sentinel}, its sentinel: has its mount gone?")
        if self._own and any(map(os.path.islink, (self.path, self.path.parent))):
            raise Retry(f"{self.path} is a link")
        ignored, folders, todo = 0, set(), [""]
        try:
            device = os.stat(self.path).st_dev
            while todo:
                below = todo.pop()
                try:
                    for name, entry in self._entries(below):
                        if not entry.is_dir(follow_symlinks=False):
                            yield name
                        elif self._may_enter(name, entry, device):
                            folders.add((name, entry.inode()))
                            todo.append(name)
                        else:
                            ignored += 1
                except OSError as error:
                    if not below:
                        raise
                    ignored += error.errno != errno.ENOENT
                if todo:
                    yield ""
        except OSError as error:
            raise Retry(f"the inbox {self.path} can not be listed: {error.strerror}") from error
        self.directories_ignored, self.folders = ignored, frozenset(folders)

    def _entries(self, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield the wanted entries of one directory, each with its path relative to the inbox."""
        with safe_paths.open_directory(self.path, below) as directory, os.scandir(directory) as entries:
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if self.wants(name):
                    yield name, entry

    def _may_enter(self, name: str, entry: os.DirEntry[str], device: int) -> bool:
        if not self.recursive or name.count("/") >= MOST_DEEP or len(os.fsencode(name)) > LONGEST:
            return False
        try:
            return entry.stat(follow_symlinks=False).st_dev == device
        except FileNotFoundError:  # it was removed after it was listed
            return False

    def identify(self, name: str) -> Identity | None:
        """Return the identity of the file with this name, or None if there is none. A link is not followed.

        Return None also if the file can not be examined: the next scan finds it again.
        """
        below, base = os.path.split(name)
        try:
            with safe_paths.open_directory(self.path, below) as directory:
                status = os.lstat(directory / base)
        except OSError:
            return None
        if stat.S_ISDIR(status.st_mode):
            return None
        return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
