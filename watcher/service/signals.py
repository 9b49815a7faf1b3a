"""Turn signals and calls from other threads into the end of a wait."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


class LoopWaker:
    """A pipe that ends a wait: written by threads and, through the wakeup fd, by signals."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self) -> None:
        """End the present wait, or the next."""
        with contextlib.suppress(BlockingIOError):  # full: the wait ends anyway
            os.write(self._writer, b"\0")

    def fileno(self) -> int:
        """Readable when there is something to do."""
        return self._reader

    @property
    def writer(self) -> int:
        """For ``signal.set_wakeup_fd``."""
        return self._writer

    def clear(self) -> None:
        """Forget what has been written."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 4096)) == 4096:
                pass


class Signals:
    """Set by SIGTERM and SIGINT, and by SIGHUP: a terminal that closes ends what it shows, else it asks to reload."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.reload = False

    def install(self, wake: LoopWaker, *, hangup_ends: bool = False) -> None:
        """Take over the signals of this process. Call from the main thread."""
        signal.set_wakeup_fd(wake.writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_signal if hangup_ends else self._on_hangup)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self.reload = True
