"""Directories below one of ours, entered without following a link.

Whoever may write to a directory may put a link in the place of one below it,
also between two of our looks. So each step down is taken from the directory
above, which is held open: what is done through :func:`held` is done there.
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
def held(root: Path, below: str) -> Iterator[Path]:
    """A path that leads to ``below`` in ``root`` and nowhere else, as long as this lasts. The root itself: as it is.

    Raises:
        FileNotFoundError: there is no such directory; a link to one is none.
        OSError: it may not be entered.
    """
    if not below:
        yield root
        return
    try:
        fd = _entered(root, below, make=False)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(root / below)) from error
        raise
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@contextlib.contextmanager
def made(root: Path, below: str) -> Iterator[Path]:
    """The same, each directory made that is not there, and synced: it survives a power cut.

    Raises:
        OSError: as the kernel says; NotADirectoryError where something else has its name.
    """
    if not below:
        yield root
        return
    root.mkdir(parents=True, exist_ok=True)
    fd = _entered(root, below, make=True)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _entered(root: Path, below: str, *, make: bool) -> int:
    fd = os.open(root, _FLAGS)
    for part in below.split("/"):
        try:
            if part in ("", ".", ".."):
                raise OSError(errno.EINVAL, "not a path below it", str(root / below))
            inner = _step(fd, part, make=make)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _step(fd: int, part: str, *, make: bool) -> int:
    try:
        return os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):  # somebody else makes it, too
        os.mkdir(part, dir_fd=fd)
    os.fsync(fd)
    return os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=fd)
