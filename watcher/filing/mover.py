"""Move files. No other module moves files.

Within a file system a file moves by ``renameat2(RENAME_NOREPLACE)``: at every
instant it has exactly one name, and a taken name makes the move fail instead of
overwriting. A file system without that call gets a hard link and an unlink. One
without links gets an empty file that reserves the name and is then replaced.

To another file system the file is copied under a hidden name, synced, compared
by digest and published without overwriting. Only then is the source removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path

from watcher.core import failpoints, mounts, no_overwrite, safe_paths
from watcher.core.errors import Exit, Fatal, Retry, Vanished
from watcher.core.records import Identity

_GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTCONN)
_REPLACED = (errno.ENOTDIR, errno.ELOOP, errno.EACCES)


class Mover:
    """Moves files, mostly out of ``inbox``, and remembers which directories :meth:`flush` must sync.

    ``mode`` is the mode that regular files get before they move, such as ``0o640``. None leaves their mode.
    """

    def __init__(self, inbox: Path, mode: int | None = None) -> None:
        self.inbox = inbox
        self._mode = mode
        self._left: set[Path] = set()
        self._entered: dict[Path, Path] = {}
        self._expected: dict[Path, tuple[int, int]] = {}

    def expect(self, directory: Path) -> None:
        """Remember the device and inode of a directory, so that no file is moved beneath its mount point later."""
        status = os.stat(directory)
        self._expected[directory] = status.st_dev, status.st_ino

    def move(
        self,
        source: str,
        identity: Identity | None,
        digest: str | None,
        directory: Path,
        name: str | None = None,
        below: str = "",
    ) -> Path:
        """Move a file without overwriting any, and return its new path.

        ``source`` is its name in the inbox, or its path. ``identity`` is the file
        that was decided on: if the name stands for another file now, that file
        stays. ``below`` is the path from ``directory`` to the target directory,
        which is made if missing. ``name`` is the new name, by default the old one.

        Raises:
            Vanished: the file does not exist, or is another one.
            Retry: the file system failed (disk full, no permission, ...). The
                file is still where it was.
        """
        folder, base = os.path.split(source)
        left, entered = self.inbox / folder, directory / below
        root, inner = (left, "") if os.path.isabs(source) else (self.inbox, folder)
        try:
            with safe_paths.open_directory(root, inner) as source_directory:
                path = source_directory / base
                no_overwrite.check_unchanged(path, identity)
                self.refuse_lost_mount(directory)
                if self._mode is not None:
                    no_overwrite.set_mode(path, self._mode, identity)
                with safe_paths.make_directory(directory, below) as target_directory:
                    touched = (left, entered, directory)
                    target = self._move(path, identity, digest, target_directory, name or base, touched)
            return entered / target.name
        except Vanished as error:
            raise (Vanished(f"{left / base} has changed since it was read") if inner else error) from error
        except FileNotFoundError as error:
            raise Vanished(f"{left / base if inner else error.filename}: no longer there") from error
        except OSError as error:
            raise Retry(f"{entered}: {error.strerror or error}") from error

    def refuse_lost_mount(self, directory: Path) -> None:
        """Check that a directory is on the file system that :meth:`expect` saw.

        After a remount the device may have another number, so the same inode is enough.

        Raises:
            OSError: it is on another file system.
        """
        device, inode = self._expected.get(directory, (None, None))
        if device is None:
            return
        try:
            status = os.stat(directory)
            same = status.st_dev == device or status.st_ino == inode
        except FileNotFoundError:
            same = os.stat(next(path for path in directory.parents if path.exists())).st_dev == device
        if not same:
            raise OSError(errno.ENODEV, "on another file system than at the start: has its mount gone?")

    def _move(
        self,
        source: Path,
        identity: Identity | None,
        digest: str | None,
        directory: Path,
        name: str,
        touched: tuple[Path, Path, Path],
    ) -> Path:
        for candidate in no_overwrite.candidates(name, digest):
            target = directory / candidate
            try:
                no_overwrite.rename_noreplace(source, target)
            except FileExistsError:
                continue
            except FileNotFoundError:
                if directory.is_dir():
                    raise
                directory.mkdir(parents=True)  # somebody removed it while we ran
                return self._move(source, identity, digest, directory, name, touched)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._touch(*touched)
                return _move_across(source, target, identity, digest)
            failpoints.reach("renamed")
            self._touch(*touched)
            self._undo_unless_same(source, target, identity)
            return target
        raise AssertionError("candidates() does not end")

    def _undo_unless_same(self, source: Path, target: Path, identity: Identity | None) -> None:
        """Move a file back if it is not the one that was decided on: it was swapped between check and rename."""
        try:
            no_overwrite.check_unchanged(target, identity)
        except Vanished:
            for candidate in no_overwrite.candidates(source.name, None):
                with contextlib.suppress(FileExistsError):
                    no_overwrite.rename_noreplace(target, source.with_name(candidate))
                    raise

    def _touch(self, left: Path, entered: Path, directory: Path) -> None:
        """Remember the directories of a move for :meth:`flush`. ``entered`` lies in or below ``directory``."""
        self._left.add(left)
        self._entered[entered] = directory

    def flush(self) -> None:
        """Sync the directories of all moves since the last call, so that the moves survive a power cut.

        Raises:
            Retry: a directory can not be synced.
        """
        left, entered = self._left, self._entered
        self._left, self._entered = set(), {}
        for directory in sorted(left | entered.keys()):
            try:
                no_overwrite.sync_directory(directory)
            except OSError as error:
                if error.errno in _GONE and directory not in entered:
                    continue  # unmounted just now, which wrote it to disk; the files taken from it have arrived
                if error.errno in _REPLACED and directory not in entered and self.inbox in directory.parents:
                    continue  # its producer has replaced it, or withdrawn our permission
                if error.errno == errno.ENOENT and self._was_removed(directory, entered.get(directory, directory)):
                    continue
                raise Retry(f"{directory} can not be synced: {error.strerror}") from error

    def _was_removed(self, subdirectory: Path, directory: Path) -> bool:
        """Return True if a directory below ``directory`` was removed, with our files, and that is on disk.

        A consumer may take whole subdirectories.
        """
        try:
            if subdirectory == directory or directory not in subdirectory.parents:
                return False
            self.refuse_lost_mount(directory)
            no_overwrite.sync_directory(directory)
        except OSError:
            return False
        return True


def copy(source: Path, identity: Identity | None, digest: str | None, directory: Path) -> Path:
    """Copy a file into a directory without overwriting any, and return the path of the copy.

    If a copy with this digest is there already, under a name that this file could get, return its path instead.

    Raises:
        Vanished: the file does not exist, or is another one than ``identity``.
        Retry: the file system failed.
    """
    try:
        no_overwrite.check_unchanged(source, identity)
        for candidate in no_overwrite.candidates(source.name, digest):
            target = directory / candidate
            if not os.path.lexists(target):
                return no_overwrite.copy(source, target, identity, digest)
            if digest is not None and target.is_file() and no_overwrite.digest(target) == digest:
                return target
        raise AssertionError("candidates() does not end")
    except FileNotFoundError as error:
        raise Vanished(f"{source}: no such file") from error
    except OSError as error:
        raise Retry(f"{source}: {error.strerror or error}") from error


def prepare(directory: Path) -> None:
    """Make a directory for files, and check that files can be moved into it.

    Raises:
        Fatal: exit code 5; it can not be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        no_overwrite.sync_directory(directory.parent)
    except OSError as error:
        raise Fatal(
            f"the directory {directory} can not be made: {error.strerror}",
            f"Remove what may be in its way. {mounts.write_advice(directory)}",
            Exit.DIRECTORY,
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise Fatal(f"the directory {directory} can not be written", mounts.write_advice(directory), Exit.DIRECTORY)


def clear_partials(directory: Path, untouched_s: float = 0.0) -> None:
    """Remove the unfinished copies that a crash left in a directory. Their sources are still in the inbox.

    If others may be copying now, remove only those that were not touched for ``untouched_s`` seconds.
    """
    for partial in directory.glob(f".*{no_overwrite.PARTIAL}"):
        with contextlib.suppress(OSError):
            if not untouched_s or time.time() - partial.lstat().st_ctime >= untouched_s:
                partial.unlink()


def _move_across(source: Path, target: Path, identity: Identity | None, digest: str | None) -> Path:
    """Move a file to another file system: copy it, then remove the source."""
    if not os.access(source.parent, os.W_OK | os.X_OK):  # copying would be in vain: the source can not be removed
        code = errno.EROFS if os.statvfs(source.parent).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, f"{source.parent}: {os.strerror(code)}")
    regular = stat.S_ISREG(os.lstat(source).st_mode)
    final = no_overwrite.copy(source, target, identity, digest) if regular else no_overwrite.recreate(source, target)
    failpoints.reach("published")
    with contextlib.suppress(Vanished):  # a new file has taken the name meanwhile: it stays
        try:
            no_overwrite.check_unchanged(source, identity)
        except FileNotFoundError:  # it may have been renamed: then it comes again under its new name
            final.unlink()
            raise
        no_overwrite.unlink_or_undo(source, final)
    return final
