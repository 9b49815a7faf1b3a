"""The verbs that all stages of the pipeline have, and the files that they hand on to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from watcher.core.records import Decoded, MoveOrder
from watcher.inbox.completeness import CompleteFile, PendingFiles
from watcher.model.batching import Batcher
from watcher.monitoring.counters import Counters
from watcher.monitoring.log import Logger
from watcher.service.stall_detection import StageProgress
from watcher.service.stations import Stations


@dataclass
class FilesUnderWay:
    """The files between the stages, and what all stages use."""

    stations: Stations
    pending: PendingFiles
    log: Logger
    wake: Callable[[], None]
    counters: Counters
    held: dict[str, CompleteFile] = field(default_factory=dict)
    """The files that were taken out of ``pending`` and not yet given back, by name."""
    orders: list[MoveOrder] = field(default_factory=list)
    """The files that are decided and wait to be moved."""
    classifying: bool = False
    draining: bool = False
    """True while a reload waits for the pipeline to be empty: no other file begins its way."""

    def __post_init__(self) -> None:
        self.batcher: Batcher[tuple[Decoded, CompleteFile]] = self.new_batcher()

    def new_batcher(self) -> Batcher[tuple[Decoded, CompleteFile]]:
        """Return an empty batcher of the present batch size."""
        return Batcher(self.stations.batch_size, self.stations.max_wait_ms)

    @property
    def room(self) -> int:
        """The number of files that may still begin their way. Bounds memory when filing is slow."""
        if self.draining:
            return 0
        under_way = len(self.stations.decoders) + len(self.batcher) + len(self.orders)
        return self.stations.max_under_way - under_way


class Stage(ABC):
    """One stage of the pipeline. It never waits; ``now`` is in monotonic seconds."""

    @property
    def busy(self) -> bool:
        """True while the stage has work under way that a reload must wait for."""
        return False

    @abstractmethod
    def advance(self, now: float) -> None:
        """Do all that can be done at this moment."""

    def due_s(self, now: float) -> float | None:
        """Return the time at which :meth:`advance` must be called next; None if only an event makes it necessary."""
        return None

    def progress(self, now: float) -> list[StageProgress]:
        """Return how much work the stage owes and how much it has done, to tell a stuck stage from an idle one."""
        return []

    def use(self, stations: Stations) -> None:  # noqa: B027 - most stages keep nothing of the stations
        """Go on with other stations. No file is under way; ``FilesUnderWay.stations`` still holds the old ones."""

    def close(self, now: float) -> None:  # noqa: B027 - most stages hold nothing
        """End the work under way. The files that are not filed stay in the inbox."""


class FilingThread:
    """The one thread that moves files and writes the ledger. Three stages share it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "filing")
        self.move: Future[Any] | None = None
        """The batch of moves under way, or ended and not yet taken in."""

    @property
    def executor(self) -> Executor:
        """The executor of the thread."""
        return self._executor

    @property
    def free(self) -> Executor | None:
        """The executor, unless other work would queue there behind a move that may hang."""
        return self._executor if self.move is None or self.move.done() else None

    def shutdown(self) -> None:
        """Wait for the work under way, and end the thread."""
        self._executor.shutdown(wait=True)
