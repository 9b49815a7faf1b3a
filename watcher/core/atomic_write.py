"""Files that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READABLE = 0o644
"""By everybody. Who writes is often root or a person, who reads the daemon's own user."""


@contextmanager
def written(path: Path, *, several: bool = False) -> Iterator[Path]:
    """A path to write to, beside ``path`` and with its suffix; at the end it takes the place of ``path``, synced.

    What was there stays as it was if the writing fails. The directory is made.
    ``several`` processes may write the same file at once: the last one counts.

    Raises:
        OSError: it can not be written. Its ``filename`` says which file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial{os.getpid() if several else ''}.{path.name}")
    try:
        yield partial
        partial.chmod(READABLE)
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write knows no name
        raise
    finally:
        with contextlib.suppress(OSError):  # if it took its place, it is not there any more
            partial.unlink()
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
