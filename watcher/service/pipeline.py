"""The way of a file, from the inbox to its directory.

    inbox -> complete -> decode -> batch -> classify -> decide -> ledger -> move -> ledger -> log

Each stage is an object of :mod:`watcher.service.stages`. The loop that calls :meth:`Pipeline.step` owns the clock.
Two threads help: one classifies while the next batch is decoded, one moves files while the next batch is classified.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from watcher.filing.takeover import Takeover
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.sharing import Claimer
from watcher.monitoring.counters import Counters, Totals
from watcher.monitoring.log import Logger
from watcher.review.verdict_worker import VerdictWorker
from watcher.service.stages.claim import Claim
from watcher.service.stages.classify import Classify
from watcher.service.stages.decode import Decode
from watcher.service.stages.file import File
from watcher.service.stages.judge import Judge
from watcher.service.stages.observe import Observe
from watcher.service.stages.stage import FilesUnderWay, FilingThread, Stage
from watcher.service.stages.take_over import TakeOver
from watcher.service.stall_detection import StageProgress
from watcher.service.stations import Stations


class Pipeline:
    """All stages in the order in which they take their turns.

    ``claimer`` claims files of an inbox shared by several workers; ``verdict_worker`` is None in shadow mode.
    """

    def __init__(
        self,
        stations: Stations,
        arrivals: Arrivals,
        claimer: Claimer | None,
        takeover: Takeover,
        verdict_worker: VerdictWorker | None,
        counters: Counters,
        log: Logger,
        wake: Callable[[], None],
    ) -> None:
        self.counters = counters
        self._files = files = FilesUnderWay(stations, arrivals.pending, log, wake, counters)
        self._when_empty: Callable[[], None] | None = None
        thread = FilingThread()
        claim = Claim(files, arrivals, claimer)
        take_over = TakeOver(files, claim, thread, takeover)
        self._judges = [] if verdict_worker is None else [Judge(files, claim, thread, verdict_worker)]
        self._decode, self._observe = Decode(files, claim), Observe(files, claim)
        self.stages: list[Stage] = [
            claim,
            take_over,
            *self._judges,
            self._decode,
            Classify(files),
            File(files, claim, thread, [take_over, *self._judges]),
            self._observe,
        ]

    def step(self, now: float) -> float | None:
        """Give each stage its turn. Return when the next step is due; None if only an event makes it necessary."""
        for stage in self.stages:
            stage.advance(now)
        if self._when_empty is not None and not (self._files.held or any(stage.busy for stage in self.stages)):
            swap, self._when_empty = self._when_empty, None
            self._files.draining = False
            swap()
        return min((due for stage in self.stages if (due := stage.due_s(now)) is not None), default=None)

    @property
    def stations(self) -> Stations:
        """The stations in use."""
        return self._files.stations

    def drain(self, then: Callable[[], None]) -> None:
        """Call ``then`` as soon as no file is under way. Until then no other begins its way."""
        self._when_empty, self._files.draining = then, True

    def use(self, stations: Stations) -> None:
        """Go on with other stations. Call it while no file is under way, see :meth:`drain`."""
        for stage in self.stages:
            stage.use(stations)
        self._files.stations = stations
        self._files.batcher = self._files.new_batcher()

    @property
    def connections(self) -> list[socket.socket | int]:
        """File descriptors and sockets that wake the loop: people's verdicts, and answers of the decoders."""
        return [*(fd for judge in self._judges for fd in judge.worker.pipe.fds), *self._decode.connections]

    @property
    def totals(self) -> Totals:
        """The numbers of files seen, filed and pending."""
        return self._observe.totals

    def observe_with(self, observe: Callable[[Totals], None]) -> None:
        """Call ``observe`` with the totals now and after each step."""
        self._observe.observe = observe
        observe(self.totals)

    def progress(self, now: float) -> list[StageProgress]:
        """Return what each stage owes and has done so far."""
        return [progress for stage in self.stages for progress in stage.progress(now)]

    def close(self, now: float) -> None:
        """Finish the moves under way; all other files simply stay in the inbox.

        Raises:
            Fatal: the ledger does not have yet what was moved.
        """
        *stages, observe = self.stages
        for stage in (*reversed(stages), observe):
            stage.close(now)
