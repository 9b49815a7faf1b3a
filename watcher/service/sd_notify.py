"""What systemd is told, and what it asks for: the protocol of sd_notify(3) and sd_watchdog_enabled(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

SEND_S = 2.0
"""How long a message may wait for a manager that does not read."""


class Notify:
    """Sends messages to ``address``, a Unix socket; none: to nobody. A manager that is gone stops nothing.

    ``watchdog_s`` is how soon after each :meth:`alive` the next must come, None: nobody waits for it.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = f"\0{address[1:]}" if address is not None and address.startswith("@") else address

    def ready(self) -> None:
        """It does its work; also after :meth:`reloading`."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """It ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={' '.join(text.split())}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # a manager that is gone, or restarts itself: the sorting goes on
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.settimeout(SEND_S)
            to.sendto(message.encode("utf-8", "backslashreplace"), self._address)


def from_environment(environ: MutableMapping[str, str]) -> Notify:
    """The manager that started this process. Its address is taken out, so that no child speaks to it."""
    address = environ.pop("NOTIFY_SOCKET", None)
    period_us, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    watched = period_us.isdecimal() and int(period_us) > 0 and pid == str(os.getpid())
    return Notify(address, int(period_us) / 1e6 if watched else None)
