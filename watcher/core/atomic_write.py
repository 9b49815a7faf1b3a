"""Write files that are complete or absent, even if the process or the machine stops in the middle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READABLE = 0o644
"""The mode of the files: root or a person often writes them, and the daemon's own user reads them."""


@contextmanager
def replacing(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, then sync that file and move it to ``path``.

    The temporary file lies beside ``path`` and has its suffix. The directory is made if it is missing.
    If the writing fails, the file at ``path`` stays as it was.

    Args:
        path: The file to make or to replace.
        concurrent: Several processes may write this file at once. The last one to finish wins.

    Raises:
        OSError: The file cannot be written. ``filename`` names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial{os.getpid() if concurrent else ''}.{path.name}")
    try:
        yield partial
        partial.chmod(READABLE)
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # an error of write() has no file name
        raise
    finally:
        with contextlib.suppress(OSError):  # it is gone if the move succeeded
            partial.unlink()
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
