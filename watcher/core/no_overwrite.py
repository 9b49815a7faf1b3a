"""Move and copy single files without overwriting any.

Python has no function for a rename that fails when the new name is taken, nor for a copy that gets its name only
once it is complete.
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
"""The longest file name, in bytes."""

PARTIAL = ".mednet-partial"
"""The end of the hidden name of an unfinished copy."""

CLAIMS = ".mednet-claims"
"""The directory in a shared inbox for claimed files, see :mod:`watcher.inbox.claims`. It never counts as arrived."""

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_UNKNOWN_CALL = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_EXTENSION_MAX = 32  # a longer one is no extension, and would leave no room for the digest and number
_libc = ctypes.CDLL(None, use_errno=True)


def candidates(name: str, digest: str | None) -> Iterator[str]:
    """Yield the names that a file may get, best first: its own, with part of its digest, and with numbers.

    The names never end. Recovery looks for a file under the same names.
    """
    yield name
    raw = os.fsencode(name)
    stem, dot, extension = raw.rpartition(b".")
    if not stem or len(extension) > _EXTENSION_MAX:
        stem, dot, extension = raw, b"", b""
    suffix = f"-{digest[:8]}".encode() if digest else b""
    number = 1
    while True:
        end = suffix + (f"-{number}".encode() if number > 1 or not suffix else b"") + dot + extension
        yield os.fsdecode(stem[: NAME_MAX - len(end)] + end)
        number += 1


def free_directory(root: Path, below: str) -> str:
    """Return the directory ``below`` in ``root``, renamed where a file or link already has the name of a part."""
    path = ""
    for part in below.split("/") if below else ():
        for candidate in candidates(part, None):
            try:
                usable = stat.S_ISDIR(os.lstat(root / path / candidate).st_mode)
            except OSError:
                usable = True  # it is missing, or it cannot be examined: then making it fails with the reason
            if usable:
                path = f"{path}/{candidate}" if path else candidate
                break
    return path


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename a file without replacing an existing target, in one step where the file system supports that.

    Raises:
        FileExistsError: The target exists.
        OSError: The kernel refuses for another reason, such as EXDEV for another file system.
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


def rename_into_own_directory(source: Path, target: Path) -> None:
    """Rename a file into a directory that no other process writes to. The target must not exist.

    Unlike :func:`rename_noreplace` it never takes two steps: because nobody else can take the new name, a check
    followed by a plain rename is enough on every file system.

    Raises:
        FileExistsError: The target exists.
        OSError: The kernel refuses for another reason.
    """
    if rename_in_one_call(source, target):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def rename_in_one_call(source: Path, target: Path) -> bool:
    """Rename a file by renameat2(2). Return False, with nothing changed, if the file system does not support it.

    Raises:
        FileExistsError: The target exists.
        OSError: The kernel refuses for another reason.
    """
    status = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code not in _UNKNOWN_CALL:
        raise OSError(code, os.strerror(code), str(source), None, str(target))
    return False


def _rename_over_own(source: Path, target: Path) -> None:
    """Reserve the new name with an empty file, then rename over that file.

    This serves file systems that support neither renameat2 nor links. Only a program that writes into a file which
    it did not make could lose data by it.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    failpoints.reach("reserved")
    try:
        os.rename(source, target)
    except OSError:
        os.unlink(target)
        raise


def set_mode(path: Path, mode: int, identity: Identity | None) -> None:
    """Set the mode of a regular file. Links and special files are left alone.

    Raises:
        Vanished: It is not the file of this identity.
        OSError: The kernel refuses, with EPERM if the file belongs to another user.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        _refuse_other(path, status, identity)
        if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) != mode:
            os.chmod(f"/proc/self/fd/{fd}", mode)  # this leads to the file that was checked; fchmod refuses O_PATH
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Sync a directory, so that its entries survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_unchanged(path: Path, identity: Identity | None) -> None:
    """Check that a path still leads to the file of this identity. Without an identity any file will do.

    Raises:
        Vanished: It leads to another file, or the file has changed.
        FileNotFoundError: There is no file.
    """
    _refuse_other(path, os.lstat(path), identity)


def _refuse_other(path: Path, status: os.stat_result, identity: Identity | None) -> None:
    now = Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if identity is not None and now != identity:
        raise Vanished(f"{path} has changed since it was read")


def unlink_or_undo(source: Path, copy: Path) -> None:
    """Remove the source of a finished copy, or else the copy, so that the file is in one place.

    Raises:
        OSError: The source cannot be removed.
    """
    try:
        os.unlink(source)
    except OSError:
        os.unlink(copy)
        raise
    failpoints.reach("unlinked")


def recreate(source: Path, target: Path) -> Path:
    """Make a link, pipe, socket or device like the source, at ``target`` or the next free name, and return its path.

    These are not regular files, so that there are no bytes to copy.
    """
    status = os.lstat(source)
    for candidate in candidates(target.name, None):
        final = target.with_name(candidate)
        with contextlib.suppress(FileExistsError):
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(source), final)
            else:
                os.mknod(final, status.st_mode, status.st_rdev)
            return final
    raise AssertionError("candidates() does not end")


def copy(source: Path, target: Path, identity: Identity | None, digest: str | None) -> Path:
    """Copy a file to ``target`` or the next free name, sync it, and return its path.

    The copy keeps the mode, the times and (where that is allowed) the owner. It has a hidden name until it is
    complete, so that nobody takes it for the file.

    Raises:
        Vanished: The source is not the file of this identity and digest. The copy is removed.
        OSError: The kernel refuses. The copy is removed.
    """
    # The name is unique, because another worker may be copying a file of the same name.
    result = partial = target.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with os.fdopen(fd, "rb") as reader, open(partial, "xb", opener=_private) as writer:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            copied_digest = _copy_bytes(reader, writer)
            with contextlib.suppress(PermissionError):  # only root may give files away
                os.fchown(writer.fileno(), status.st_uid, status.st_gid)
            os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
            os.utime(writer.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(writer.fileno())  # after the times are set: recovery knows the copy by them
        if digest is not None and copied_digest != digest:
            raise Vanished(f"{source} has changed since it was read")
        check_unchanged(source, identity)
        result = _publish(partial, target, digest)
        sync_directory(target.parent)
    except (OSError, Vanished):
        with contextlib.suppress(FileNotFoundError):
            result.unlink()
        raise
    return result


def write_new(path: Path, data: bytes) -> None:
    """Write a new file, which gets its name only once it is complete.

    Raises:
        FileExistsError: The name is taken.
        OSError: The kernel refuses for another reason. Nothing is left behind.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(data)
        rename_noreplace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner can read, until the copy gets the mode of its source."""
    return os.open(path, flags, 0o600)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_bytes(reader: BinaryIO, writer: BinaryIO) -> str:
    """Copy all bytes and return their SHA-256, in hex."""
    sha = hashlib.sha256()
    while block := reader.read(1 << 20):
        sha.update(block)
        writer.write(block[: len(block) // 2])
        failpoints.reach("mid-copy")
        writer.write(block[len(block) // 2 :])
    writer.flush()
    return sha.hexdigest()


def _publish(partial: Path, target: Path, digest: str | None) -> Path:
    """Rename a finished copy to ``target`` or the next free name, and return that path."""
    for candidate in candidates(target.name, digest):
        with contextlib.suppress(FileExistsError):
            rename_noreplace(partial, target.with_name(candidate))
            return target.with_name(candidate)
    raise AssertionError("candidates() does not end")
