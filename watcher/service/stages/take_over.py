"""Take over the files of workers and commands that died."""

from __future__ import annotations

from watcher.filing.takeover import Takeover
from watcher.service import log_lines
from watcher.service.stages.claim import Claim
from watcher.service.stages.stage import FilesUnderWay, FilingThread, Stage
from watcher.service.stall_detection import StageProgress


class TakeOver(Stage):
    """Runs a :class:`Takeover` in the filing thread, after each scan of the inbox."""

    def __init__(self, files: FilesUnderWay, claim: Claim, thread: FilingThread, takeover: Takeover) -> None:
        self._files, self._claim, self._thread, self._takeover = files, claim, thread, takeover

    @property
    def busy(self) -> bool:
        """True while a takeover is under way."""
        return self._takeover.busy

    def advance(self, now: float) -> None:
        """Begin after a scan; once it has ended, log the endings and take in the files."""
        endings, adopted = self._takeover.turn(self._thread.free, self._claim.common.scans, self._files.wake)
        for name in adopted:
            self._files.pending.arrived(name, now)
        log_lines.recovered(self._files.log, endings)
        if adopted:
            self._files.log.warning("inbox.taken_over", files=len(adopted))

    def progress(self, now: float) -> list[StageProgress]:
        """Count takeovers."""
        limit_s = self._files.stations.limits.takeover
        return [StageProgress("takeover", int(self.busy), self._takeover.scans, limit_s)]
