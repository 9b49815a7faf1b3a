"""Open directories below one of ours without following a symbolic link.

Anybody who may write to a directory can replace a directory in it with a link, also between two of our checks. So
each directory on the way is opened relative to the one above it, which is held open.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)


@contextlib.contextmanager
def open_directory(root: Path, below: str) -> Iterator[Path]:
    """Yield a path that leads to the directory ``below`` in ``root``, whatever happens to its name meanwhile.

    The path is valid within the ``with`` block. An empty ``below`` yields ``root`` itself.

    Raises:
        FileNotFoundError: There is no such directory. A link to a directory does not count as one.
        OSError: The directory may not be entered.
    """
    if not below:
        yield root
        return
    try:
        fd = _walk(root, below, make=False)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(root / below)) from error
        raise
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@contextlib.contextmanager
def make_directory(root: Path, below: str) -> Iterator[Path]:
    """Make the missing directories of ``below`` in ``root``, then yield a path as :func:`open_directory` does.

    Each new directory is synced, so that it survives a power cut.

    Raises:
        NotADirectoryError: Something that is not a directory has one of the names.
        OSError: The kernel refuses for another reason.
    """
    if not below:
        yield root
        return
    root.mkdir(parents=True, exist_ok=True)
    fd = _walk(root, below, make=True)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _walk(root: Path, below: str, *, make: bool) -> int:
    """Return a descriptor of the directory ``below`` in ``root``."""
    fd = os.open(root, _FLAGS)
    for part in below.split("/"):
        try:
            if part in ("", ".", ".."):
                raise OSError(errno.EINVAL, "not a path below it", str(root / below))
            inner = _enter(fd, part, make=make)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _enter(fd: int, part: str, *, make: bool) -> int:
    """Return a descriptor of the directory ``part`` in the directory ``fd``."""
    try:
        return os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):  # another process may make it at the same time
        os.mkdir(part, dir_fd=fd)
    os.fsync(fd)
    return os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=fd)
