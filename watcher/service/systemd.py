"""Keep systemd informed: ready, reloading, stopping, figures, and the watchdog.

Only the loop feeds the watchdog, and only while every stage makes progress. So the watchdog ends a daemon whose loop
hangs, and one whose loop turns without any progress.
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
"""Seconds that a message waits for a service manager that does not read."""

CHECK_S = 10.0
"""Seconds between two checks of the stages, unless the watchdog needs them more often."""


class SystemdNotifier:
    """Sends messages to the Unix socket ``address``; with None it sends none. Errors are ignored.

    ``watchdog_s`` is the longest time between two calls of :meth:`alive`, None if there is no watchdog.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = f"\0{address[1:]}" if address is not None and address.startswith("@") else address

    def ready(self) -> None:
        """Say that the daemon is ready, after the start and after each :meth:`reloading`."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload has begun."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the daemon is stopping."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        self._send(f"STATUS={' '.join(text.split())}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # if the manager is gone, or restarts itself, sorting goes on
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as unix,
        ):
            unix.settimeout(SEND_S)
            unix.sendto(message.encode("utf-8", "backslashreplace"), self._address)


def from_environment(environ: MutableMapping[str, str]) -> SystemdNotifier:
    """Return a notifier for the manager that started this process.

    Its variables are removed from ``environ``, so that no child process speaks to it.
    """
    address = environ.pop("NOTIFY_SOCKET", None)
    period_us, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    watched = period_us.isdecimal() and int(period_us) > 0 and pid == str(os.getpid())
    return SystemdNotifier(address, int(period_us) / 1e6 if watched else None)


class SystemdReporter:
    """Reports the state of the pipeline to systemd, and logs a stage that is stuck."""

    def __init__(self, notifier: SystemdNotifier, daemon_log: DaemonLog) -> None:
        self.notifier, self.daemon_log, self._log = notifier, daemon_log, daemon_log.logger
        self._period_s = min(CHECK_S, notifier.watchdog_s / 3) if notifier.watchdog_s else CHECK_S
        self._detector, self._was_stuck, self._status = StallDetector(), False, ""
        self._next_s = float("-inf")

    def turn(self, pipeline: Pipeline, now: float) -> float:
        """Feed the watchdog and show the figures, after a turn of the pipeline. Return the time of the next turn."""
        if now < self._next_s:
            return self._next_s
        self._next_s = now + self._period_s
        self.daemon_log.flush()
        stuck = self._detector.stuck(pipeline.progress(now), now)
        if stuck is None:
            self.notifier.alive()
        self._log_stuck(stuck)
        figures = status(pipeline.totals, refused=pipeline.counters.config_refused)
        self._show(f"{stuck.stage} is stuck" if stuck else figures)
        return self._next_s

    def _log_stuck(self, stuck: StuckStage | None) -> None:
        if stuck is not None and not self._was_stuck:
            self._log.critical(
                "daemon.stuck",
                station=stuck.stage,
                owes=stuck.owes,
                for_s=round(stuck.for_s, 1),
                note="the watchdog is not fed until the stage makes progress",
            )
        elif stuck is None and self._was_stuck:
            self._log.warning("daemon.unstuck")
        self._was_stuck = stuck is not None

    def _show(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self.notifier.status(text)


def status(totals: Totals, *, refused: bool = False) -> str:
    """Return the figures in one line. ``refused`` says that the config on disk is not the one in force."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in totals.filed.items())
    if totals.shadowed:
        counts += f", {totals.shadowed} shadowed"
    unreachable = "" if totals.reachable else "; the inbox can not be reached"
    return f"{counts}; {totals.pending} pending{unreachable}{'; the config on disk was refused' if refused else ''}"
