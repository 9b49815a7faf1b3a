"""End the wait of the loop on signals and on calls from other threads."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


class LoopWaker:
    """A pipe that ends the wait of the loop. Threads write to it, and signals through the wakeup fd."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self) -> None:
        """End the present wait, or the next one."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so the wait ends anyway
            os.write(self._writer, b"\0")

    def fileno(self) -> int:
        """Return the reading end. It is readable when the wait must end."""
        return self._reader

    @property
    def writer(self) -> int:
        """Writing end, for ``signal.set_wakeup_fd``."""
        return self._writer

    def clear(self) -> None:
        """Empty the pipe."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 4096)) == 4096:
                pass


class Signals:
    """Signals received so far: ``signal`` is one that ends the daemon, ``reload`` is True after a request to reload.

    SIGTERM and SIGINT end the daemon. SIGHUP asks to reload, or ends a daemon on a terminal, which sends it on closing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.reload = False

    def install(self, wake: LoopWaker, *, hangup_ends: bool = False) -> None:
        """Install the handlers. Call this from the main thread. With ``hangup_ends`` SIGHUP ends the daemon."""
        signal.set_wakeup_fd(wake.writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_signal if hangup_ends else self._on_hangup)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self.reload = True
