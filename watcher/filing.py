"""The only module that moves files.

A file moves by ``renameat2(RENAME_NOREPLACE)``: at every instant it has exactly
one name, and a taken name makes the move fail instead of overwriting. Where the
file system does not know that call, by hard link and unlink. To another file
system: copied beside its target under a hidden name, synced, its digest
compared, published without overwriting, and only then unlinked here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from watcher import failpoints
from watcher.errors import Exit, Fatal, Retry, Vanished
from watcher.records import Identity

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_UNKNOWN_CALL = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_NAME_MAX = 255
_EXTENSION_MAX = 32  # what is longer is no extension, and leaves no room for a mark
_libc = ctypes.CDLL(None, use_errno=True)


class Filing:
    """Moves files out of ``inbox``. Remembers which directories to sync: :meth:`flush`."""

    def __init__(self, inbox: Path) -> None:
        self._inbox = inbox
        self._touched: set[Path] = set()

    def move(self, name: str, identity: Identity | None, digest: str | None, directory: Path) -> Path:
        """Move one file and say where it lies now.

        ``identity`` is the file that was decided upon: another one that has its
        name by now stays where it is.

        Raises:
            Vanished: no such file, or another one.
            Retry: the surroundings failed (disk full, no permission, ...). The
                file is still in the inbox.
        """
        source = self._inbox / name
        try:
            _same(source, identity)
            return self._move(source, identity, digest, directory)
        except FileNotFoundError as error:
            raise Vanished(f"{error.filename}: no longer there") from error
        except OSError as error:
            raise Retry(f"{directory}: {error.strerror or error}") from error

    def _move(self, source: Path, identity: Identity | None, digest: str | None, directory: Path) -> Path:
        for candidate in candidates(source.name, digest):
            target = directory / candidate
            try:
                rename_noreplace(source, target)
            except FileExistsError:
                continue
            except FileNotFoundError:
                if directory.is_dir():
                    raise
                directory.mkdir(parents=True)  # somebody removed it while we ran
                return self._move(source, identity, digest, directory)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._touched.update((self._inbox, directory))
                return _move_across(source, target, identity, digest)
            failpoints.reach("renamed")
            self._touched.update((self._inbox, directory))
            self._undo_unless_same(source, target, identity)
            return target
        raise AssertionError("candidates() does not end")

    def _undo_unless_same(self, source: Path, target: Path, identity: Identity | None) -> None:
        """A swap between look and rename moved a file nobody decided upon: give it back."""
        try:
            _same(target, identity)
        except Vanished:
            for candidate in candidates(source.name, None):
                with contextlib.suppress(FileExistsError):
                    rename_noreplace(target, source.with_name(candidate))
                    raise

    def explain(self, destination: Path, reason: Mapping[str, Any]) -> None:
        """Put a JSON file with the reason beside a quarantined file. Best effort: the ledger has it too."""
        stem = os.fsencode(destination.name)[: _NAME_MAX - len(".reason.json")]
        beside = destination.with_name(os.fsdecode(stem) + ".reason.json")
        with contextlib.suppress(OSError), beside.open("x", encoding="utf-8") as file:
            json.dump(reason, file, indent=2)
            file.write("\n")

    def flush(self) -> None:
        """Make the moves since the last call survive a power cut.

        Raises:
            Retry: a directory could not be synced.
        """
        touched, self._touched = self._touched, set()
        for directory in sorted(touched):
            try:
                sync_directory(directory)
            except OSError as error:
                raise Retry(f"{directory} can not be synced: {error.strerror}") from error


def copy(source: Path, identity: Identity | None, digest: str | None, directory: Path) -> Path:
    """Copy a file into a directory, overwriting nothing, and say where the copy lies.

    A copy that is there already, under a name this file would get and with its digest, serves.

    Raises:
        Vanished: no such file, or another one than ``identity``.
        Retry: the surroundings failed.
    """
    try:
        _same(source, identity)
        for candidate in candidates(source.name, digest):
            target = directory / candidate
            if not os.path.lexists(target):
                return _copy(source, target, identity, digest)
            if digest is not None and target.is_file() and _digest(target) == digest:
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
        sync_directory(directory.parent)
    except OSError as error:
        raise Fatal(
            f"the directory {directory} can not be made: {error.strerror}",
            "Remove what is in its way, or give the daemon's user the right to write there.",
            Exit.DIRECTORY,
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise Fatal(
            f"the directory {directory} can not be written",
            "Give the daemon's user the right to write there.",
            Exit.DIRECTORY,
        )


def candidates(name: str, digest: str | None) -> Iterator[str]:
    """The names a file may get, best first, without end: its own, then with digest, then numbered.

    Recovery looks for a file under the same names.
    """
    yield name
    raw = os.fsencode(name)
    stem, dot, extension = raw.rpartition(b".")
    if not stem or len(extension) > _EXTENSION_MAX:
        stem, dot, extension = raw, b"", b""
    mark = f"-{digest[:8]}".encode() if digest else b""
    number = 1
    while True:
        end = mark + (f"-{number}".encode() if number > 1 or not mark else b"") + dot + extension
        yield os.fsdecode(stem[: _NAME_MAX - len(end)] + end)
        number += 1


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename in one step, failing with FileExistsError when the target's name is taken.

    Raises:
        OSError: as the kernel says, EXDEV for another file system.
    """
    status = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if status == 0:
        return
    code = ctypes.get_errno()
    if code not in _UNKNOWN_CALL:
        raise OSError(code, os.strerror(code), str(source), None, str(target))
    os.link(source, target, follow_symlinks=False)
    failpoints.reach("linked")
    _unlink_or_undo(source, target)


def sync_directory(directory: Path) -> None:
    """Sync a directory: its entries survive a power cut from here on."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _same(path: Path, identity: Identity | None) -> None:
    found = os.lstat(path)
    now = Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if identity is not None and now != identity:
        raise Vanished(f"{path} has changed since it was read")


def _unlink_or_undo(source: Path, copy: Path) -> None:
    """Remove the source of a finished copy. If that can not be done, the copy goes: one place, not two."""
    try:
        os.unlink(source)
    except OSError:
        os.unlink(copy)
        raise
    failpoints.reach("unlinked")


def _move_across(source: Path, target: Path, identity: Identity | None, digest: str | None) -> Path:
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        final = target
    else:
        final = _copy(source, target, identity, digest)
    failpoints.reach("published")
    with contextlib.suppress(Vanished):  # a new file has taken the name meanwhile: it stays
        _same(source, identity)
        _unlink_or_undo(source, final)
    return final


def _copy(source: Path, target: Path, identity: Identity | None, digest: str | None) -> Path:
    partial = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.mednet-partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()  # of a copy that a crash cut short
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with os.fdopen(fd, "rb") as reader, partial.open("xb") as writer:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EXDEV, "only regular files can go to another file system")
            copied = _pour(reader, writer)
            os.fsync(writer.fileno())
            os.utime(writer.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
        if digest is not None and copied != digest:
            raise Vanished(f"{source} has changed since it was read")
        _same(source, identity)
        final = _publish(partial, target, digest)
        sync_directory(target.parent)
    except (OSError, Vanished):
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise
    return final


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pour(reader: Any, writer: Any) -> str:
    sha = hashlib.sha256()
    while block := reader.read(1 << 20):
        sha.update(block)
        writer.write(block[: len(block) // 2])
        failpoints.reach("mid-copy")
        writer.write(block[len(block) // 2 :])
    writer.flush()
    return sha.hexdigest()


def _publish(partial: Path, target: Path, digest: str | None) -> Path:
    for candidate in candidates(target.name, digest):
        with contextlib.suppress(FileExistsError):
            rename_noreplace(partial, target.with_name(candidate))
            return target.with_name(candidate)
    raise AssertionError("candidates() does not end")
