"""Decisions are carried out by ledger, move, ledger, in that order, whatever fails between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from watcher.core.errors import Fatal, Retry
from watcher.core.records import Decision, Filed, Identity, MoveOrder, Outcome, Returned, Timing
from watcher.filing import quarantine_notes
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.mover import Mover
from watcher.ledger.writer import Ledger

HAND = Decision(Outcome.SORTED, "Hand", 0.99)
UNSURE = Decision(Outcome.REVIEW, "Hand", 0.4, "low_confidence", "0.4 is below 0.9")
BROKEN = Decision(Outcome.QUARANTINE, None, 0.0, "truncated", "no end\nmarker")


@dataclass
class Office:
    root: Path
    executor: DecisionExecutor
    identify: Callable[[Path], Identity]

    def order(self, name: str, decision: Decision, content: bytes | None = None) -> MoveOrder:
        """A file in the inbox and the order to file it."""
        path = self.root / "inbox" / name
        data = os.fsencode(name) if content is None else content
        path.write_bytes(data)
        return MoveOrder(name, self.identify(path), hashlib.sha256(data).hexdigest(), decision, Timing(0.0))

    def rows(self, question: str) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.root / "ledger")) as db:
            return db.execute(question).fetchall()


@pytest.fixture
def office(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[Office]:
    (tmp_path / "inbox").mkdir()
    places = Destinations(*(tmp_path / place for place in ("sorted", "review", "quarantine", "rejected")))
    ledger = Ledger(tmp_path / "ledger")
    yield Office(tmp_path, DecisionExecutor(ledger, Mover(tmp_path / "inbox"), places, "model"), identify)
    ledger.close()


def test_each_outcome_has_its_place(tmp_path: Path) -> None:
    """Sorted files go to their class, unsure ones to review, unreadable ones to quarantine."""
    places = Destinations(tmp_path / "s", tmp_path / "r", tmp_path / "q", tmp_path / "rejected")
    assert [places.of(d) for d in (HAND, UNSURE, BROKEN)] == [tmp_path / "s" / "Hand", tmp_path / "r", tmp_path / "q"]


def test_a_ledger_that_others_hold_once_the_file_has_moved(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier reason file is removed only if the ledger allows it; if it can not be asked, the file stays."""
    (office.root / "quarantine").mkdir()
    stale = office.root / "quarantine" / "b.png.reason.json"
    stale.write_text(json.dumps(quarantine_notes.compose("b.png", "empty", None, None, office.executor.ledger.now())))

    def locked(_: Path) -> bool:
        raise Retry("database is locked")

    monkeypatch.setattr(office.executor.ledger, "was_bound_for", locked)
    [(_, result)] = office.executor.carry_out([office.order("b.png", BROKEN)])
    assert isinstance(result, Filed)
    assert json.loads(stale.read_text())["reason"] == "empty"


def test_files_move_and_the_ledger_knows(office: Office) -> None:
    """Each file lands in its place; the results come in order, with the ids under which the ledger has them."""
    orders = [office.order("a.png", HAND), office.order("\udcff\n.png", UNSURE), office.order("c.png", BROKEN)]
    results = office.executor.carry_out(orders)
    paths = [office.root / p for p in ("sorted/Hand/a.png", "review/\udcff\n.png", "quarantine/c.png")]
    assert [r.destination for _, r in results if isinstance(r, Filed)] == [str(p) for p in paths]
    assert [r.order for _, r in results] == orders
    assert [p.read_bytes() for p in paths] == [os.fsencode(o.name) for o in orders]
    assert os.listdir(office.root / "inbox") == []
    assert office.rows("select decision, state, destination from ending order by decision") == [
        (number, "filed", os.fsencode(path)) for (number, _), path in zip(results, paths, strict=True)
    ]
    assert office.executor.ledger.unended() == []


def test_quarantined_file_is_explained(office: Office) -> None:
    """Beside a quarantined file lies the reason, with what to do; beside others lies nothing."""
    office.executor.carry_out([office.order("a.png", HAND), office.order("b\n.png", BROKEN)])
    reason = json.loads((office.root / "quarantine" / "b\n.png.reason.json").read_text())
    assert reason == {
        "name": "b\\n.png",
        "reason": "truncated",
        "detail": "no end\nmarker",
        "digest": hashlib.sha256(b"b\n.png").hexdigest(),
        "at": reason["at"],
        "what_to_do": quarantine_notes.ADVICE["truncated"],
    }
    assert os.listdir(office.root / "sorted" / "Hand") == ["a.png"]


@pytest.mark.parametrize("name", ["a.png", "\udcff\n.png"])
def test_changed_file_is_returned_and_the_rest_goes_on(office: Office, name: str) -> None:
    """A file that changed after its decision stays in the inbox, whatever its name; its neighbours are filed."""
    orders = [office.order(name, HAND), office.order("b.png", HAND)]
    (office.root / "inbox" / name).write_bytes(b"changed meanwhile")
    (_, changed), (_, other) = office.executor.carry_out(orders)
    assert isinstance(changed, Returned) and not changed.later
    assert isinstance(other, Filed)
    assert os.listdir(office.root / "inbox") == [name]
    assert office.rows("select state from ending order by decision") == [("returned",), ("filed",)]
    assert office.executor.ledger.unended() == []


def test_failing_surroundings_ask_for_a_pause(office: Office) -> None:
    """A place that can not take files leaves the file in the inbox, for later."""
    (office.root / "review").write_bytes(b"a file in the way")
    [(_, result)] = office.executor.carry_out([office.order("a.png", UNSURE)])
    assert isinstance(result, Returned) and result.later
    assert os.listdir(office.root / "inbox") == ["a.png"]


def test_a_directory_that_fails_is_tried_with_one_file_at_a_time(office: Office) -> None:
    """While a share is away its many files are not recorded try after try; what goes elsewhere is filed meanwhile."""
    (office.root / "review").write_bytes(b"a file in the way")
    unsure = [office.order(f"{number}.png", UNSURE) for number in range(20)]
    office.executor.handle(unsure)
    for turn in range(10):
        results = office.executor.handle([*unsure, office.order(f"hand-{turn}.png", HAND)])
        assert len(results) == 21
        assert sum(number > 0 for number, _ in results) == 2
        later = [each for _, each in results if isinstance(each, Returned)]
        assert len(later) == 20
        assert all(each.later and "review" in each.why for each in later)
    assert office.rows("select count(*) from decision where outcome = 'review'") == [(20 + 10,)]
    assert len(os.listdir(office.root / "sorted" / "Hand")) == 10


def test_all_go_again_once_one_has_arrived(office: Office) -> None:
    """The first file that the directory takes ends it; the others have only been told to come later."""
    (office.root / "review").write_bytes(b"a file in the way")
    unsure = [office.order(f"{number}.png", UNSURE) for number in range(5)]
    for _ in range(2):
        office.executor.handle(unsure)
    (office.root / "review").unlink()
    filed = [each.order.name for _, each in office.executor.handle(unsure) if isinstance(each, Filed)]
    assert len(filed) == 1
    rest = office.executor.handle([order for order in unsure if order.name not in filed])
    assert all(isinstance(each, Filed) for _, each in rest)
    assert len(os.listdir(office.root / "review")) == 5


def test_every_file_has_its_turn_where_one_can_never_go(office: Office) -> None:
    """Of the files that wait for a directory another one is tried each time: one that always fails stops no other."""
    (office.root / "review").write_bytes(b"a file in the way")
    unsure = [office.order(f"{number}.png", UNSURE) for number in range(5)]
    office.executor.handle(unsure)
    before = dict.fromkeys((order.name for order in unsure), 0)
    for _ in range(5):
        for number, each in office.executor.handle(unsure):
            before[each.order.name] += number > 0
    assert set(before.values()) == {1}


def test_one_file_that_fails_holds_up_no_other(office: Office) -> None:
    """Something may be wrong with that file alone: those after it are all tried."""
    (office.root / "review").write_bytes(b"a file in the way")
    office.executor.handle([office.order("a.png", UNSURE)])
    (office.root / "review").unlink()
    results = office.executor.handle([office.order(f"{number}.png", UNSURE) for number in range(5)])
    assert all(isinstance(each, Filed) for _, each in results)


def test_nothing_moves_when_the_decision_can_not_be_recorded(office: Office) -> None:
    """Without a ledger entry no file moves: all are returned for later."""
    orders = [office.order("a.png", HAND), office.order("b.png", HAND)]
    with contextlib.closing(sqlite3.connect(office.root / "ledger", isolation_level=None)) as other:
        office.executor.ledger._db.execute("pragma busy_timeout = 0")
        other.execute("begin immediate")
        results = office.executor.carry_out(orders)
    assert all(isinstance(r, Returned) and r.later for _, r in results)
    assert sorted(os.listdir(office.root / "inbox")) == ["a.png", "b.png"]
    assert not (office.root / "sorted").exists()


def test_a_ledger_that_can_not_follow_stops_nothing_for_good(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk is full right after a move: the file is filed, no other moves, and later all is recorded."""
    ledger, flush = office.executor.ledger, office.executor.mover.flush
    first, second = office.order("a.png", HAND), office.order("b.png", HAND)

    def then_full() -> None:
        flush()
        ledger._db.execute("pragma busy_timeout = 0")
        other.execute("begin immediate")

    with contextlib.closing(sqlite3.connect(office.root / "ledger", isolation_level=None)) as other:
        monkeypatch.setattr(office.executor.mover, "flush", then_full)
        [(_, result)] = office.executor.carry_out([first])
        monkeypatch.undo()
        assert isinstance(result, Filed)
        assert ledger.lag is not None
        [(_, result)] = office.executor.carry_out([second])
        assert isinstance(result, Returned) and result.later
        assert [unended.name for unended in ledger.unended()] == ["a.png"], "who dies now is reconciled at the start"
    [(_, result)] = office.executor.carry_out([second])
    assert isinstance(result, Filed)
    assert (ledger.lag, ledger.unended()) == (None, [])
    assert office.rows("select state from ending") == [("filed",), ("filed",)]


def test_move_that_can_not_be_synced_is_fatal(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that moved but may not survive a power cut are not called filed: the next start reconciles."""
    order = office.order("a.png", HAND)
    flush = office.executor.mover.flush

    def removed_first() -> None:
        shutil.rmtree(office.root / "sorted")
        flush()

    monkeypatch.setattr(office.executor.mover, "flush", removed_first)
    with pytest.raises(Fatal):
        office.executor.carry_out([order])
    assert len(office.executor.ledger.unended()) == 1
