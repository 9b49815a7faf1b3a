"""Wake a running daemon by a named pipe in the state directory, because the ledger holds new verdicts.

The process that wakes need not know which process listens, and learns from the kernel whether one does. So nobody
waits for a daemon that died.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NAME = "verdicts.bell"
"""Name of the pipe in the state directory."""


class WakePipe:
    """The reading end of the pipe. Several daemons may read one pipe.

    On a file system without named pipes (FAT) nothing ever arrives.
    """

    def __init__(self, state: Path) -> None:
        self._fd = -1
        path = state / NAME
        with contextlib.suppress(OSError):
            if not path.is_fifo():
                os.mkfifo(path, 0o600)
            # Open both ends: with only one the pipe would read as closed as soon as a writer closes it.
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def fds(self) -> list[int]:
        """File descriptors to wait for: readable when another process has written to the pipe."""
        return [self._fd] if self._fd >= 0 else []

    def woken(self) -> bool:
        """Return True if another process has written to the pipe since the last call.

        Of several daemons that read the pipe, one gets True.
        """
        with contextlib.suppress(OSError):  # BlockingIOError: the pipe is empty
            return self._fd >= 0 and bool(os.read(self._fd, 4096))
        return False

    def close(self) -> None:
        """Close the pipe."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def wake_daemon(state: Path) -> bool:
    """Wake the daemon that uses this state directory. Return False if no daemon listens."""
    try:
        fd = os.open(state / NAME, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # ENXIO: nobody reads the pipe
        return False
    try:
        os.write(fd, b"\0")
    except BlockingIOError:
        return True  # the pipe is full, so the daemon will read it
    except OSError:
        return False  # the daemon closed the pipe just now
    finally:
        os.close(fd)
    return True
