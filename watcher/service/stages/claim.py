"""Take in the files that arrive. In shared mode, claim them for this worker first."""

from __future__ import annotations

from watcher.filing.shadow_mode import ShadowInbox
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.sharing import Claimer
from watcher.service import log_lines
from watcher.service.stages.stage import FilesUnderWay, Stage
from watcher.service.stall_detection import StageProgress
from watcher.service.stations import Stations


class Claim(Stage):
    """Feeds ``pending`` from the events and scans of the inbox, or of this worker's claims."""

    def __init__(self, files: FilesUnderWay, arrivals: Arrivals, claimer: Claimer | None = None) -> None:
        self.arrivals, self._files, self._claimer = arrivals, files, claimer
        self.common = arrivals if claimer is None else claimer.arrivals
        """The arrivals of the inbox that producers write to."""
        self._all = [arrivals] if claimer is None else [arrivals, claimer.arrivals]

    def advance(self, now: float) -> None:
        """Look at events and scans; claim no more files than there is room for."""
        for arrivals in self._all:
            arrivals.look(now)
            log_lines.notices(self._files.log, arrivals.notices)
        if self._claimer is not None:
            for name, seen_s in self._claimer.claim(now, self._files.room):
                self._files.pending.arrived(name, now, seen_s)

    def due_s(self, now: float) -> float | None:
        """Return when the next scan is due."""
        claims = self._claimer.due_s(self._files.room) if self._claimer is not None else None
        return min((due for due in (self.arrivals.due_s(), claims) if due is not None), default=None)

    def progress(self, now: float) -> list[StageProgress]:
        """Count the names that scans gave."""
        scanning, looked = (sum(numbers) for numbers in zip(*((a.scanning, a.looked) for a in self._all), strict=True))
        return [StageProgress("inbox", scanning, looked, self._files.stations.limits.inbox)]

    def use(self, stations: Stations) -> None:
        """Watch and scan the inbox as the new settings ask."""
        stations.inbox.folders = self.common.inbox.folders  # they stay watched until the next scan has ended
        if isinstance(stations.inbox, ShadowInbox):
            stations.inbox.copy_decided_from(self.common.inbox)
        self.common.inbox = stations.inbox
        if stations.watch is not self.common.watch:
            if self.common.watch is not None:
                self.common.watch.stop()
            self.common.watch = stations.watch
            self.common.keep_watched()
        for arrivals in self._all:
            arrivals.scan_interval_s = stations.scan_interval_s
            arrivals.pending.set_times(stations.settle_s, stations.patience_s)

    def close(self, now: float) -> None:
        """Stop watching, and give back the files that this worker had claimed and not filed."""
        for arrivals in self._all:
            arrivals.close()
        if self._claimer is not None and (returned := self._claimer.claims.give_back()):
            self._files.log.info("inbox.given_back", files=returned)
