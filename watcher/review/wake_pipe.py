"""Calls a running daemon: what it is to do stands in the ledger. A named pipe in the state directory.

Who rings need not know who listens, and learns whether anybody does: the kernel
tells, so a daemon that died is never waited for.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NAME = "verdicts.bell"


class WakePipe:
    """The listening end. Several may listen to one; without the pipe (FAT knows none) it never rings."""

    def __init__(self, state: Path) -> None:
        self._fd = -1
        path = state / NAME
        with contextlib.suppress(OSError):
            if not path.is_fifo():
                os.mkfifo(path, 0o600)
            # Both ends: it does not read as closed when a caller hangs up.
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def fds(self) -> list[int]:
        """Readable when somebody has rung."""
        return [self._fd] if self._fd >= 0 else []

    def rung(self) -> bool:
        """Whether somebody has rung since the last call. Of several who listen one is told."""
        with contextlib.suppress(OSError):  # BlockingIOError: nobody
            return self._fd >= 0 and bool(os.read(self._fd, 4096))
        return False

    def close(self) -> None:
        """Listen no more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def wake_daemon(state: Path) -> bool:
    """Ring. False if nobody listens."""
    try:
        fd = os.open(state / NAME, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # ENXIO: no listener
        return False
    try:
        os.write(fd, b"\0")
    except BlockingIOError:
        return True  # full: it has been rung often enough
    except OSError:
        return False  # it hung up just now
    finally:
        os.close(fd)
    return True
