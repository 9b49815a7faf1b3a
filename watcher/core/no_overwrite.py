"""Moving and copying single files so that nothing is ever overwritten.

What Python's own functions do not offer: a rename that fails when the target's
name is taken, and a copy that appears under its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from watcher.core import failpoints
from watcher.core.errors import Vanished
from watcher.core.records import Identity

NAME_MAX = 255
"""Longest file name, in bytes."""

PARTIAL = ".mednet-partial"
"""How the hidden name of an unfinished copy ends."""

CLAIMS = ".mednet-claims"
"""What in an inbox is nobody's arrival: see :mod:`watcher.inbox.claims`."""

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_UNKNOWN_CALL = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_EXTENSION_MAX = 32  # what is longer is no extension, and leaves no room for a mark
_libc = ctypes.CDLL(None, use_errno=True)


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
        yield os.fsdecode(stem[: NAME_MAX - len(end)] + end)
        number += 1


def folder(root: Path, below: str) -> str:
    """The way down from ``root`` that is free: where a file or a link has a directory's name, the next free one."""
    found = ""
    for part in below.split("/") if below else ():
        for candidate in candidates(part, None):
            try:
                usable = stat.S_ISDIR(os.lstat(root / found / candidate).st_mode)
            except OSError:
                usable = True  # it is not there yet; if it can not be looked at, whoever makes it is told why
            if usable:
                found = f"{found}/{candidate}" if found else candidate
                break
    return found


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename in one step, failing with FileExistsError when the target's name is taken.

    Raises:
        OSError: as the kernel says, EXDEV for another file system.
    """
    if rename_in_one_call(source, target):
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_over_own(source, target)
    failpoints.reach("linked")
    unlink_or_undo(source, target)


def rename_into_own(source: Path, target: Path) -> None:
    """The same into a directory that nobody else fills: there one rename serves on every file system, or nothing.

    Raises:
        OSError: as the kernel says.
    """
    if rename_in_one_call(source, target):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def rename_in_one_call(source: Path, target: Path) -> bool:
    """The same by renameat2(2). False where the file system does not know that; then nothing has changed."""
    status = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code not in _UNKNOWN_CALL:
        raise OSError(code, os.strerror(code), str(source), None, str(target))
    return False


def _rename_over_own(source: Path, target: Path) -> None:
    """The way of file systems that know neither renameat2 nor links: take the name with an empty file, replace that.

    Only who writes into a file that he did not make could lose by it.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    failpoints.reach("reserved")
    try:
        os.rename(source, target)
    except OSError:
        os.unlink(target)
        raise


def set_mode(path: Path, mode: int, identity: Identity | None) -> None:
    """Give a regular file its mode. Links and special files are left alone.

    Raises:
        Vanished: it is not the file that was decided upon.
        OSError: EPERM where the file is another user's.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        _refuse_other(path, found, identity)
        if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) != mode:
            os.chmod(f"/proc/self/fd/{fd}", mode)  # the very file that was looked at; fchmod refuses O_PATH
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Sync a directory: its entries survive a power cut from here on."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def same(path: Path, identity: Identity | None) -> None:
    """See that a name still stands for the file it did. No identity: for any file.

    Raises:
        Vanished: it stands for another, or for the same one with other content.
    """
    _refuse_other(path, os.lstat(path), identity)


def _refuse_other(path: Path, found: os.stat_result, identity: Identity | None) -> None:
    now = Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if identity is not None and now != identity:
        raise Vanished(f"{path} has changed since it was read")


def unlink_or_undo(source: Path, copy: Path) -> None:
    """Remove the source of a finished copy. If that can not be done, the copy goes: one place, not two."""
    try:
        os.unlink(source)
    except OSError:
        os.unlink(copy)
        raise
    failpoints.reach("unlinked")


def make_again(source: Path, target: Path) -> Path:
    """A link, pipe, socket or device like the source: what is no regular file has no bytes to copy."""
    found = os.lstat(source)
    for candidate in candidates(target.name, None):
        final = target.with_name(candidate)
        with contextlib.suppress(FileExistsError):
            if stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(source), final)
            else:
                os.mknod(final, found.st_mode, found.st_rdev)
            return final
    raise AssertionError("candidates() does not end")


def copy(source: Path, target: Path, identity: Identity | None, digest: str | None) -> Path:
    """Copy a file, whole and synced, to ``target`` or the next free name, and say which.

    Mode, time and (where allowed) owner come along. Until it is whole the copy
    has a hidden name, so nobody takes it for the file.

    Raises:
        Vanished: the source is not the file that was decided upon.
        OSError: as the kernel says. No trace is left.
    """
    # A name of its own: another worker may be copying a file of the same name.
    made = partial = target.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with os.fdopen(fd, "rb") as reader, open(partial, "xb", opener=_private) as writer:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            copied = _pour(reader, writer)
            with contextlib.suppress(PermissionError):  # only root may give files away
                os.fchown(writer.fileno(), found.st_uid, found.st_gid)
            os.fchmod(writer.fileno(), stat.S_IMODE(found.st_mode))
            os.utime(writer.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fsync(writer.fileno())  # the time, too: recovery knows the copy by it
        if digest is not None and copied != digest:
            raise Vanished(f"{source} has changed since it was read")
        same(source, identity)
        made = _publish(partial, target, digest)
        sync_directory(target.parent)
    except (OSError, Vanished):
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
        raise
    return made


def write(path: Path, data: bytes) -> None:
    """Make a file that is whole as soon as it has its name.

    Raises:
        OSError: as the kernel says, FileExistsError if the name is taken. No trace is left.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(data)
        rename_noreplace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    """Nobody else reads a copy before it has the mode of its source."""
    return os.open(path, flags, 0o600)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pour(reader: BinaryIO, writer: BinaryIO) -> str:
    """Copy what is left to read, and give its SHA-256 in hex."""
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
