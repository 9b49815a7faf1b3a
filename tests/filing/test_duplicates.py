"""A name or bytes that were filed before: each case has the outcome that was asked for, and nothing is lost."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import Daemon, digest
from tests.support.dropped_files import picture
from tests.support.waiting import LONGEST_S
from watcher.core.records import Decision, Ending, Filed, Identity, MoveOrder, Outcome, Timing
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.duplicates import DuplicateRules
from watcher.filing.mover import Mover
from watcher.ledger.writer import Ledger

HAND = Decision(Outcome.SORTED, "Hand", 0.99)
FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"
ACTIONS = ("keep", "review", "quarantine")


class Office:
    """An executor with rules, and the directories that it files to."""

    def __init__(self, root: Path, identify: Callable[[Path], Identity], rules: DuplicateRules) -> None:
        self.root, self.identify = root, identify
        (root / "inbox").mkdir()
        places = Destinations(root / "sorted", root / "review", root / "quarantine", root / "rejected")
        self.ledger = Ledger(root / "ledger")
        self.executor = DecisionExecutor(self.ledger, Mover(root / "inbox"), places, "model", rules)

    def order(self, name: str, data: bytes, decision: Decision = HAND) -> MoveOrder:
        path = self.root / "inbox" / name
        path.write_bytes(data)
        return MoveOrder(name, self.identify(path), hashlib.sha256(data).hexdigest(), decision, Timing(0.0))

    def file(self, *orders: MoveOrder) -> list[tuple[str, str | None, bytes]]:
        """Carry out orders: where each file lies, why, and what is in it."""
        filed = [result for _, result in self.executor.carry_out(orders)]
        assert all(isinstance(result, Filed) for result in filed)
        paths = [Path(result.destination) for result in filed if isinstance(result, Filed)]
        return [
            (str(path.parent.relative_to(self.root)), result.order.decision.reason, path.read_bytes())
            for path, result in zip(paths, filed, strict=True)
        ]


WHERE = {"keep": ("sorted/Hand", False), "review": ("review", True), "quarantine": ("quarantine", True)}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("case", "name", "data", "reason"),
    [
        ("same_name_same_bytes", "a.png", b"first", "duplicate"),
        ("same_name_other_bytes", "a.png", b"other", "name_taken"),
        ("other_name_same_bytes", "b.png", b"first", "duplicate"),
    ],
)
def test_each_case_has_its_action(
    tmp_path: Path, identify: Callable[[Path], Identity], case: str, name: str, data: bytes, reason: str, action: Any
) -> None:
    """Each of the three collisions goes where its own key says, and the file that was there first stays as it is."""
    office = Office(tmp_path, identify, DuplicateRules(**{case: action}))
    office.file(office.order("a.png", b"first"))
    place, told = WHERE[action]
    assert office.file(office.order(name, data)) == [(place, reason if told else None, data)]
    assert (tmp_path / "sorted" / "Hand" / "a.png").read_bytes() == b"first"
    office.ledger.close()


@pytest.mark.parametrize("actions", list(itertools.product(ACTIONS, repeat=3)))
def test_another_name_and_other_bytes_are_no_collision(
    tmp_path: Path, identify: Callable[[Path], Identity], actions: tuple[Any, Any, Any]
) -> None:
    """The fourth case is sorted under every rule."""
    office = Office(tmp_path, identify, DuplicateRules(*actions))
    office.file(office.order("a.png", b"first"))
    assert office.file(office.order("b.png", b"second")) == [("sorted/Hand", None, b"second")]
    office.ledger.close()


def test_of_two_in_one_batch_the_second_is_the_duplicate(tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
    """Two files with the same bytes that are decided at once: the first is sorted, the second is not."""
    office = Office(tmp_path, identify, DuplicateRules(other_name_same_bytes="review"))
    found = office.file(office.order("a.png", b"x"), office.order("b.png", b"x"))
    assert [place for place, _, _ in found] == ["sorted/Hand", "review"]
    office.ledger.close()


@pytest.mark.parametrize(("name", "data", "case"), [("a.png", b"x", 0), ("a.png", b"y", 1), ("b.png", b"x", 2)])
def test_what_another_worker_moves_just_now_counts(
    tmp_path: Path, identify: Callable[[Path], Identity], name: str, data: bytes, case: int
) -> None:
    """Of two that collide and are decided by two workers at the same time, the second is judged, by its own case."""
    rules = DuplicateRules(*("quarantine" if n == case else "keep" for n in range(3)))  # type: ignore[arg-type]
    office = Office(tmp_path, identify, rules)
    other = Ledger(tmp_path / "ledger", owner="worker-2")
    with other.transaction():
        [number] = other.record_decisions([office.order("a.png", b"x")], [str(tmp_path / "sorted" / "Hand")], "model")
    [(place, reason, _)] = office.file(office.order(name, data))
    assert (place, reason) == ("quarantine", "name_taken" if case == 1 else "duplicate")
    other.record_endings([Ending(number, "returned")])  # it came to nothing: nobody's way is barred
    assert office.file(office.order("a.png", b"x")) == [("sorted/Hand", None, b"x")]
    office.ledger.close()
    other.close()


def test_files_in_doubt_are_not_judged(tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
    """A file that goes to review anyway goes there, however often its bytes came before."""
    office = Office(tmp_path, identify, DuplicateRules("quarantine", "quarantine", "quarantine"))
    unsure = Decision(Outcome.REVIEW, "Hand", 0.4, "low_confidence")
    for _ in range(2):
        assert office.file(office.order("a.png", b"x", unsure)) == [("review", "low_confidence", b"x")]
    office.ledger.close()


def test_parallel_writers_of_one_name(tmp_path: Path) -> None:
    """Four processes that publish ten files each under the same name lose none, whatever name each ends under."""
    with Daemon(tmp_path, FAST, stub=True) as daemon:
        rng = np.random.default_rng(3)
        dropped: Counter[str] = Counter()
        for writer in range(4):
            (tmp_path / f"writer{writer}").mkdir()
            for number in range(10):
                data = picture(rng)
                dropped[digest(data)] += 1
                (tmp_path / f"writer{writer}" / f"{number}").write_bytes(data)
        script = (
            "import os, sys, time\n"
            "for name in os.listdir(sys.argv[1]):\n"
            "    while True:\n"
            "        try:\n"
            "            os.link(os.path.join(sys.argv[1], name), sys.argv[2])\n"
            "            break\n"
            "        except FileExistsError:\n"
            "            time.sleep(0.001)\n"
        )
        target = str(daemon.inbox / "scan.jpeg")
        writers = [
            subprocess.Popen([sys.executable, "-c", script, str(tmp_path / f"writer{n}"), target]) for n in range(4)
        ]
        assert [writer.wait(timeout=LONGEST_S) for writer in writers] == [0, 0, 0, 0]
        daemon.until_filed(40)
        assert daemon.stop() == 0
    assert daemon.digests() == dropped
