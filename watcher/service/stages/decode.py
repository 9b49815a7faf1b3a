"""Hand complete files to the decoder processes, and take in what they answer."""

from __future__ import annotations

import socket

from watcher.core import failpoints
from watcher.core.records import Decision, Decoded, MoveOrder, Outcome, Rejected, Timing
from watcher.service.stages.claim import Claim
from watcher.service.stages.stage import FilesUnderWay, Stage
from watcher.service.stall_detection import StageProgress
from watcher.service.stations import Stations

COLLECT_S = 0.004
"""Seconds between two looks for answers of the decoders during an inference."""


class Decode(Stage):
    """Decodes files in the order in which they are complete."""

    def __init__(self, files: FilesUnderWay, claim: Claim) -> None:
        self._files, self._claim = files, claim
        self._answers = 0

    def advance(self, now: float) -> None:
        """Submit complete files as far as there is room, then take in the answers."""
        files = self._files
        for ready in files.pending.ready(now, self._claim.arrivals.inbox.identify, files.room):
            files.held[ready.name] = ready
            files.stations.decoders.submit(ready.name)
            failpoints.reach("claimed")
        for result in files.stations.decoders.collect():
            self._answers += 1
            if isinstance(result, Decoded):
                files.batcher.add((result, files.held[result.name]), now)
                failpoints.reach("decoded")
            else:
                self._rejected(result, now)

    def _rejected(self, bad: Rejected, now: float) -> None:
        """Forget a file that has gone, give one more time that may still grow, send the others to quarantine."""
        files, ready = self._files, self._files.held[bad.name]
        identity = bad.identity or self._claim.arrivals.inbox.identify(bad.name)
        if bad.gone or identity is None:
            files.held.pop(bad.name, None)
            files.pending.forget(bad.name)
        elif not ready.last_try:
            del files.held[bad.name]
            files.pending.doubt(bad.name, identity, now)
        else:
            decision = Decision(Outcome.QUARANTINE, None, 0.0, bad.reason, bad.detail)
            timing = Timing(ready.seen_s, (now - ready.seen_s) * 1000)
            files.orders.append(MoveOrder(bad.name, identity, bad.digest, decision, timing))

    @property
    def connections(self) -> list[socket.socket]:
        """The decoders' sockets, to wait on; none during an inference.

        Then the answers are collected every COLLECT_S instead: waking for each costs more than it gains.
        """
        return [] if self._files.classifying else self._files.stations.decoders.connections

    def due_s(self, now: float) -> float | None:
        """Return when a file may be complete, or a decoder's answer is due."""
        files, decoders = self._files, self._files.stations.decoders
        complete = files.pending.due_s() if files.room > 0 else None
        answers = now + COLLECT_S if files.classifying and len(decoders) else decoders.due_s()
        return min((due for due in (complete, answers) if due is not None), default=None)

    def progress(self, now: float) -> list[StageProgress]:
        """Count the looks at files that may be complete, and the decoders' answers."""
        files, limits = self._files, self._files.stations.limits
        due = files.pending.due_s()
        overdue = due is not None and due <= now and files.room > 0
        return [
            StageProgress("settle", int(overdue), files.pending.looked, limits.settle),
            StageProgress("decode", len(files.stations.decoders), self._answers, limits.decode),
        ]

    def use(self, stations: Stations) -> None:
        """End the old decoders where there are new ones."""
        if stations.decoders is not self._files.stations.decoders:
            self._files.stations.decoders.close()

    def close(self, now: float) -> None:
        """End the decoders."""
        self._files.stations.decoders.close()
