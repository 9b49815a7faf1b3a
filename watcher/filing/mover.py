"""The only module that moves files.

A file moves by ``renameat2(RENAME_NOREPLACE)``: at every instant it has exactly
one name, and a taken name makes the move fail instead of overwriting. Where the
file system does not know that call, by hard link and unlink, and where it knows
no links either, over an empty file made for it. To another file system: copied
beside its target under a hidden name, synced, its digest compared, published
without overwriting, and only then unlinked here.
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
_SWAPPED = (errno.ENOTDIR, errno.ELOOP, errno.EACCES)


class Mover:
    """Moves files, mostly out of ``inbox``. Remembers which directories to sync: :meth:`flush`.

    ``mode`` is what regular files get before they move (``0o640``), None leaves them theirs.
    """

    def __init__(self, inbox: Path, mode: int | None = None) -> None:
        self.inbox = inbox
        self._mode = mode
        self._left: set[Path] = set()
        self._entered: dict[Path, Path] = {}
        self._expected: dict[Path, tuple[int, int]] = {}

    def expect(self, directory: Path) -> None:
        """Remember the file system of a directory: a mount that goes away must not be filled underneath."""
        found = os.stat(directory)
        self._expected[directory] = found.st_dev, found.st_ino

    def move(
        self,
        source: str,
        identity: Identity | None,
        digest: str | None,
        directory: Path,
        name: str | None = None,
        below: str = "",
    ) -> Path:
        """Move one file and say where it lies now.

        ``source`` is its name in the inbox, or its path; ``name`` what it is to
        be called, if not as before; ``below`` the way from ``directory`` down to
        where it goes, made if missing. ``identity`` is the file that was decided
        upon: another one that has its name by now stays where it is.

        Raises:
            Vanished: no such file, or another one.
            Retry: the surroundings failed (disk full, no permission, ...). The
                file is still where it was.
        """
        folder, base = os.path.split(source)
        left, entered = self.inbox / folder, directory / below
        root, inner = (left, "") if os.path.isabs(source) else (self.inbox, folder)
        try:
            with safe_paths.open_directory(root, inner) as here:
                path = here / base
                no_overwrite.check_unchanged(path, identity)
                self.refuse_lost_mount(directory)
                if self._mode is not None:
                    no_overwrite.set_mode(path, self._mode, identity)
                with safe_paths.make_directory(directory, below) as there:
                    landed = self._move(path, identity, digest, there, name or base, (left, entered, directory))
            return entered / landed.name
        except Vanished as error:
            raise (Vanished(f"{left / base} has changed since it was read") if inner else error) from error
        except FileNotFoundError as error:
            raise Vanished(f"{left / base if inner else error.filename}: no longer there") from error
        except OSError as error:
            raise Retry(f"{entered}: {error.strerror or error}") from error

    def refuse_lost_mount(self, directory: Path) -> None:
        """Raise OSError where ``directory`` is expected on another file system. A remount may renumber that."""
        device, inode = self._expected.get(directory, (None, None))
        if device is None:
            return
        try:
            found = os.stat(directory)
            same = found.st_dev == device or found.st_ino == inode
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
        """A swap between look and rename moved a file nobody decided upon: give it back."""
        try:
            no_overwrite.check_unchanged(target, identity)
        except Vanished:
            for candidate in no_overwrite.candidates(source.name, None):
                with contextlib.suppress(FileExistsError):
                    no_overwrite.rename_noreplace(target, source.with_name(candidate))
                    raise

    def _touch(self, left: Path, entered: Path, directory: Path) -> None:
        self._left.add(left)
        self._entered[entered] = directory

    def flush(self) -> None:
        """Make the moves since the last call survive a power cut.

        Raises:
            Retry: a directory could not be synced.
        """
        left, entered = self._left, self._entered
        self._left, self._entered = set(), {}
        for directory in sorted(left | entered.keys()):
            try:
                no_overwrite.sync_directory(directory)
            except OSError as error:
                if error.errno in _GONE and directory not in entered:
                    continue  # unmounted just now: that wrote it to disk; what was taken from it has arrived
                if error.errno in _SWAPPED and directory not in entered and self.inbox in directory.parents:
                    continue  # its producer has put something else in its place, or shut it
                if error.errno == errno.ENOENT and self._taken(directory, entered.get(directory, directory)):
                    continue
                raise Retry(f"{directory} can not be synced: {error.strerror}") from error

    def _taken(self, below: Path, directory: Path) -> bool:
        """Whether a directory below ``directory`` went with what we put in, and its going is on disk.

        A consumer may take whole subdirectories.
        """
        try:
            if below == directory or directory not in below.parents:
                return False
            self.refuse_lost_mount(directory)
            no_overwrite.sync_directory(directory)
        except OSError:
            return False
        return True


def copy(source: Path, identity: Identity | None, digest: str | None, directory: Path) -> Path:
    """Copy a file into a directory, overwriting nothing, and say where the copy lies.

    A copy that is there already, under a name this file would get and with its digest, serves.

    Raises:
        Vanished: no such file, or another one than ``identity``.
        Retry: the surroundings failed.
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
    """Make a directory that files are to land in, and see that they can.

    Raises:
        Fatal: exit code 5.
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
    """Remove what a crash left of copies from another file system. Their sources are still in the inbox.

    Only those untouched for so long, where others may be copying just now.
    """
    for partial in directory.glob(f".*{no_overwrite.PARTIAL}"):
        with contextlib.suppress(OSError):
            if not untouched_s or time.time() - partial.lstat().st_ctime >= untouched_s:
                partial.unlink()


def _move_across(source: Path, target: Path, identity: Identity | None, digest: str | None) -> Path:
    if not os.access(source.parent, os.W_OK | os.X_OK):  # what can not be removed is not copied in vain, try after try
        code = errno.EROFS if os.statvfs(source.parent).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, f"{source.parent}: {os.strerror(code)}")
    regular = stat.S_ISREG(os.lstat(source).st_mode)
    final = no_overwrite.copy(source, target, identity, digest) if regular else no_overwrite.recreate(source, target)
    failpoints.reach("published")
    with contextlib.suppress(Vanished):  # a new file has taken the name meanwhile: it stays
        try:
            no_overwrite.check_unchanged(source, identity)
        except FileNotFoundError:  # renamed, maybe: it will come again under its new name
            final.unlink()
            raise
        no_overwrite.unlink_or_undo(source, final)
    return final
