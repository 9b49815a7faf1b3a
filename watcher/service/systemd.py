"""Keeps the service manager informed: ready, reloading, stopping, figures, and the watchdog.

The watchdog is fed by the loop alone, and only while each station gets on. So it bites when the loop hangs as well
as when it turns in vain.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from watcher.monitoring.counters import Totals
from watcher.monitoring.log import DaemonLog
from watcher.service.pipeline import Pipeline
from watcher.service.stall_detection import StallDetector, StuckStage

SEND_S = 2.0
"""How long a message may wait for a manager that does not read."""

CHECK_S = 10.0
"""How often the stations are looked at, if the watchdog does not ask for more."""


class SystemdNotifier:
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


def from_environment(environ: MutableMapping[str, str]) -> SystemdNotifier:
    """The manager that started this process. Its address is taken out, so that no child speaks to it."""
    address = environ.pop("NOTIFY_SOCKET", None)
    period_us, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    watched = period_us.isdecimal() and int(period_us) > 0 and pid == str(os.getpid())
    return SystemdNotifier(address, int(period_us) / 1e6 if watched else None)


class SystemdReporter:
    """The daemon as its manager sees it."""

    def __init__(self, notifier: SystemdNotifier, daemon_log: DaemonLog) -> None:
        self.notifier, self.daemon_log, self._log = notifier, daemon_log, daemon_log.logger
        self._period_s = min(CHECK_S, notifier.watchdog_s / 3) if notifier.watchdog_s else CHECK_S
        self._detector, self._stuck, self._told = StallDetector(), False, ""
        self._next_s = float("-inf")

    def turn(self, pipeline: Pipeline, now: float) -> float:
        """After each turn of the pipeline: feed the watchdog, tell the figures. Gives when it wants the next turn."""
        if now < self._next_s:
            return self._next_s
        self._next_s = now + self._period_s
        self.daemon_log.flush()
        stuck = self._detector.stuck(pipeline.progress(now), now)
        if stuck is None:
            self.notifier.alive()
        self._tell(stuck)
        told = status(pipeline.totals, refused=pipeline.counters.config_refused)
        self._show(f"{stuck.stage} is stuck" if stuck else told)
        return self._next_s

    def _tell(self, stuck: StuckStage | None) -> None:
        if stuck is not None and not self._stuck:
            self._log.critical(
                "daemon.stuck",
                station=stuck.stage,
                owes=stuck.owes,
                for_s=round(stuck.for_s, 1),
                note="the watchdog is fed no more until it gets on",
            )
        elif stuck is None and self._stuck:
            self._log.warning("daemon.unstuck")
        self._stuck = stuck is not None

    def _show(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self.notifier.status(text)


def status(totals: Totals, *, refused: bool = False) -> str:
    """The figures in one line. ``refused``: the config on disk is not the one in force."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in totals.filed.items())
    if totals.shadowed:
        counts += f", {totals.shadowed} shadowed"
    away = "" if totals.reachable else "; the inbox can not be reached"
    return f"{counts}; {totals.pending} pending{away}{'; the config on disk was refused' if refused else ''}"
