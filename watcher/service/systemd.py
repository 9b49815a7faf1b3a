"""Keeps the service manager informed: ready, reloading, stopping, figures, and the watchdog.

The watchdog is fed by the loop alone, and only while each station gets on. So it bites when the loop hangs as well
as when it turns in vain.
"""

from __future__ import annotations

from watcher.monitoring.counters import Figures
from watcher.monitoring.log import Journal
from watcher.service.pipeline import Route
from watcher.service.sd_notify import Notify
from watcher.service.stall_detection import Pulse, Stuck

CHECK_S = 10.0
"""How often the stations are looked at, if the watchdog does not ask for more."""


class Service:
    """The daemon as its manager sees it."""

    def __init__(self, notify: Notify, journal: Journal) -> None:
        self.notify, self.journal, self._log = notify, journal, journal.logger
        self._period_s = min(CHECK_S, notify.watchdog_s / 3) if notify.watchdog_s else CHECK_S
        self._pulse, self._stuck, self._told = Pulse(), False, ""
        self._next_s = float("-inf")

    def turn(self, route: Route, now: float) -> float:
        """After each turn of the route: feed the watchdog, tell the figures. Gives when it wants the next turn."""
        if now < self._next_s:
            return self._next_s
        self._next_s = now + self._period_s
        self.journal.flush()
        stuck = self._pulse.stuck(route.works(now), now)
        if stuck is None:
            self.notify.alive()
        self._tell(stuck)
        told = status(route.figures, refused=route.tally.config_refused)
        self._show(f"{stuck.station} is stuck" if stuck else told)
        return self._next_s

    def _tell(self, stuck: Stuck | None) -> None:
        if stuck is not None and not self._stuck:
            self._log.critical(
                "daemon.stuck",
                station=stuck.station,
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
            self.notify.status(text)


def status(figures: Figures, *, refused: bool = False) -> str:
    """The figures in one line. ``refused``: the config on disk is not the one in force."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in figures.filed.items())
    if figures.shadowed:
        counts += f", {figures.shadowed} shadowed"
    away = "" if figures.reachable else "; the inbox can not be reached"
    return f"{counts}; {figures.pending} pending{away}{'; the config on disk was refused' if refused else ''}"
