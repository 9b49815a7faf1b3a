"""Carry out the verdicts that people gave."""

from __future__ import annotations

from watcher.review.verdict_worker import VerdictWorker
from watcher.service import log_lines
from watcher.service.stages.claim import Claim
from watcher.service.stages.stage import FilesUnderWay, FilingThread, Stage
from watcher.service.stall_detection import StageProgress


class Judge(Stage):
    """Runs a :class:`VerdictWorker` in the filing thread, when a verdict was given and after each scan."""

    def __init__(self, files: FilesUnderWay, claim: Claim, thread: FilingThread, worker: VerdictWorker) -> None:
        self.worker, self._files, self._claim, self._thread = worker, files, claim, thread

    @property
    def busy(self) -> bool:
        """True while verdicts are carried out."""
        return self.worker.busy

    def advance(self, now: float) -> None:
        """Begin or end a chunk of verdicts; log those that ended. None begins while a reload waits."""
        thread = None if self._files.draining else self._thread.free
        done = self.worker.turn(now, self._files.stations.executor, thread, self._claim.common.scans)
        log_lines.verdicts(self._files.log, done)

    def progress(self, now: float) -> list[StageProgress]:
        """Count chunks of verdicts and the files in them."""
        return [StageProgress("verdicts", int(self.busy), self.worker.finished, self._files.stations.limits.filing)]

    def close(self, now: float) -> None:
        """Log the verdicts that ended last. The filing thread has been waited for."""
        log_lines.verdicts(self._files.log, self.worker.close(now))
