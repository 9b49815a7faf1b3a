"""A stand-in for systemd: a socket that hears a daemon's messages."""

from __future__ import annotations

import socket
import time

from tests.support import waiting


class ServiceManager:
    """Listens where systemd would. An address with @ is an abstract one."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.heard: list[str] = []
        self.watchdog_s = 0.9 * waiting.slowness()
        self.environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(self.watchdog_s * 1e6))}

    def hear(self) -> list[str]:
        """All messages up to now."""
        try:
            while True:
                self.heard.append(self.socket.recv(65536).decode())
        except BlockingIOError:
            return self.heard

    def count(self, message: str) -> int:
        return self.hear().count(message)

    def longest_silence_s(self, for_s: float) -> float:
        """Listen for a while: the longest time without a WATCHDOG=1."""
        began = last = time.monotonic()
        count, longest = self.count("WATCHDOG=1"), 0.0
        while time.monotonic() - began < for_s:
            time.sleep(0.02)
            if self.count("WATCHDOG=1") > count:
                count, last = self.count("WATCHDOG=1"), time.monotonic()
            longest = max(longest, time.monotonic() - last)
        return longest
