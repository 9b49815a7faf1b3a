"""The pipeline: its stages hand each file on, no more at once than there is room for, and a reload waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from watcher.core.records import Decoded, Filed, Identity, MoveOrder, Rejected, Returned, Scored
from watcher.filing.decision_executor import Result
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.completeness import PendingFiles
from watcher.inbox.scan import Inbox
from watcher.model.decision import Policy
from watcher.model.review_triggers import ReviewRules
from watcher.monitoring.counters import Counters
from watcher.service.pipeline import Pipeline
from watcher.service.stall_detection import StallLimits
from watcher.service.stations import Stations

CLASSES = ("CXR", "Hand")
SETTLE_S = 1.0


class Decoders:
    """Answers when it is told to; a file whose name begins with "bad" is unreadable."""

    def __init__(self, inbox: Path) -> None:
        self.inbox, self.names, self.holding, self.closed = inbox, [], False, False
        self.connections: list[Any] = []

    def __len__(self) -> int:
        return len(self.names)

    def submit(self, name: str) -> None:
        self.names.append(name)

    def collect(self) -> Iterator[Decoded | Rejected]:
        while self.names and not self.holding:
            name = self.names.pop(0)
            found = (self.inbox / name).stat()
            identity = Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if name.startswith("bad"):
                yield Rejected(name, "damaged", "", identity, "d" * 64)
            else:
                yield Decoded(name, identity, "d" * 64, np.zeros((64, 64), np.uint8), False, 1.0)

    def due_s(self) -> float | None:
        return None

    def close(self) -> None:
        self.closed = True


@dataclass
class Executor:
    """Removes files instead of moving them, and remembers the orders. ``failing``: it gives them back."""

    inbox: Path
    model: str = "m" * 64
    carried: int = 0
    failing: bool = False
    orders: list[MoveOrder] = field(default_factory=list)
    lag: None = None

    @property
    def ledger(self) -> Executor:
        return self

    def record_postponed(self) -> None:
        """Nothing is owed."""

    def handle(self, orders: Sequence[MoveOrder]) -> list[tuple[int, Result]]:
        if self.failing:
            return [(0, Returned(order, "disk full", later=True)) for order in orders]
        for order in orders:
            (self.inbox / order.name).unlink()
        self.orders += orders
        return [(n, Filed(order, f"/sorted/{order.name}")) for n, order in enumerate(orders, len(self.orders))]


class NoTakeover:
    """Nobody died."""

    busy, scans = False, 0

    def turn(self, *_: object) -> tuple[list[Any], list[str]]:
        return [], []


def hand(images: np.ndarray) -> Scored:
    return Scored(np.tile(np.array([0.0, 9.0], np.float32), (len(images), 1)))


def chest(images: np.ndarray) -> Scored:
    return Scored(hand(images).logits[:, ::-1])


class Line:
    """A pipeline of stand-ins in ``inbox``, driven by a clock that the test moves."""

    def __init__(self, inbox: Path, batch_size: int = 2) -> None:
        self.inbox, self.now, self.woken = inbox, 0.0, threading.Event()
        self.decoders, self.executor = Decoders(inbox), Executor(inbox)
        self.lines = structlog.testing.CapturingLogger()
        logger: Any = structlog.wrap_logger(self.lines, processors=[])
        made: Any = Stations(
            Inbox(inbox), None, 5.0, SETTLE_S, 3.0, self.decoders, batch_size, 20.0, hand, lambda: "stub",
            Policy(CLASSES, 0.5), ReviewRules(), lambda image: None, self.executor, StallLimits(),
        )  # fmt: skip
        arrivals = Arrivals(made.inbox, None, PendingFiles(SETTLE_S, 3.0, 100), 5.0)
        takeover: Any = NoTakeover()
        self.pipeline = Pipeline(made, arrivals, None, takeover, None, Counters(), logger, self.woken.set)

    def drop(self, *names: str) -> None:
        for name in names:
            (self.inbox / name).write_bytes(b"x")

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Step every tenth of a second of the clock; wait for threads that are under way, however slow they are."""
        end = self.now + seconds
        while self.now < end and not until():
            self.woken.clear()
            self.pipeline.step(self.now)
            if any(p.owes for p in self.pipeline.progress(self.now) if p.stage in ("classify", "filing")):
                assert self.woken.wait(60)
            else:
                self.now = round(self.now + 0.1, 1)

    def events(self) -> list[str]:
        return [str(call.kwargs["event"]) for call in self.lines.calls]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.pipeline.close(line.now)


def test_each_file_is_filed_once(line: Line) -> None:
    """Files in the inbox are decoded, classified, filed and logged; nothing is pending at the end."""
    line.drop("a", "b", "c")
    line.run(10)
    assert sorted((order.name, order.decision.label) for order in line.executor.orders) == [
        ("a", "Hand"),
        ("b", "Hand"),
        ("c", "Hand"),
    ]
    assert line.events() == ["image.sorted"] * 3
    totals = line.pipeline.totals
    assert (totals.seen, totals.filed["sorted"], totals.pending) == (3, 3, 0)


def test_an_unreadable_file_gets_a_last_try(line: Line) -> None:
    """A file that does not decode may still be growing: it goes to quarantine only after its patience."""
    line.drop("bad")
    line.run(SETTLE_S + 1)
    assert line.executor.orders == []
    line.run(10)
    assert [order.decision.reason for order in line.executor.orders] == ["damaged"]
    assert line.events() == ["image.quarantined"]


def test_no_more_begin_than_there_is_room_for(line: Line) -> None:
    """While decoders take their time, at most four batches are under way, whatever lies in the inbox."""
    line.decoders.holding = True
    line.drop(*(f"{n:02}" for n in range(30)))
    line.run(5)
    assert len(line.decoders) == 8
    line.decoders.holding = False
    line.run(60, until=lambda: len(line.executor.orders) == 30)
    assert len(line.executor.orders) == 30


def test_what_can_not_be_filed_comes_again(line: Line) -> None:
    """Files that their surroundings failed stay pending, are logged together, and are filed later."""
    line.executor.failing = True
    line.drop("a", "b")
    line.run(3)
    assert (line.pipeline.totals.pending, line.events()) == (2, ["filing.failed"])
    line.executor.failing = False
    line.run(60, until=lambda: line.pipeline.totals.pending == 0)
    assert len(line.executor.orders) == 2


def test_a_reload_waits_until_nothing_is_under_way(line: Line) -> None:
    """New stations are put in when the last file of the old ones is filed; meanwhile no other file begins."""
    swapped: list[int] = []
    line.decoders.holding = True
    line.drop("a")
    line.run(2)
    line.pipeline.drain(lambda: swapped.append(len(line.executor.orders)))
    line.drop("b")
    line.run(8)
    assert (swapped, line.decoders.names) == ([], ["a"])
    line.decoders.holding = False
    line.run(60, until=lambda: bool(swapped))
    assert swapped == [1]


def test_a_reload_does_not_wait_for_a_full_batch(line: Line) -> None:
    """The last images before a reload are classified at once, however long a batch may wait to be filled."""
    patient: Any = replace(line.pipeline.stations, max_wait_ms=3_600_000.0)
    line.pipeline.use(patient)
    line.drop("a")
    line.run(5)
    assert line.executor.orders == []
    swapped: list[int] = []
    line.pipeline.drain(lambda: swapped.append(len(line.executor.orders)))
    line.run(5, until=lambda: bool(swapped))
    assert swapped == [1]


def test_new_stations_take_the_place_of_all_old_ones(line: Line) -> None:
    """After the swap files are decoded, classified and filed by the new stations, and the old decoders are closed."""
    line.drop("a")
    line.run(10)
    decoders, executor = Decoders(line.inbox), Executor(line.inbox)
    fresh: Any = replace(line.pipeline.stations, decoders=decoders, executor=executor, network=chest, batch_size=1)
    line.pipeline.drain(lambda: line.pipeline.use(fresh))
    line.drop("b")
    line.run(20)
    assert line.decoders.closed and line.pipeline.stations is fresh
    assert [(order.name, order.decision.label) for order in executor.orders] == [("b", "CXR")]
    assert [order.name for order in line.executor.orders] == ["a"]


def test_progress_names_every_stage(line: Line) -> None:
    """A stage that is stuck is named in the log: each of them reports its progress."""
    stages = [progress.stage for progress in line.pipeline.progress(0.0)]
    assert stages == ["inbox", "takeover", "settle", "decode", "batch", "classify", "filing"]
