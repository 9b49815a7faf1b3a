"""A daemon looks for files that dead processes left, at the right times."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from watcher.filing.takeover import Takeover
from watcher.ledger import writer
from watcher.ledger.writer import Ledger


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(writer, "BUSY_S", 0.1)
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite3")) as ledger:
        yield ledger


class Later(Executor):
    """Does what it was given when it is told to."""

    def __init__(self) -> None:
        self.given: list[tuple[Callable[[], Any], Future[Any]]] = []

    def submit(self, work: Callable[[], Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        self.given.append((work, Future()))
        return self.given[-1][1]

    def work(self) -> None:
        work, answer = self.given.pop()
        answer.set_result(work())


class Left(Takeover):
    """Finds one file each time."""

    def __call__(self) -> tuple[list[Any], list[str]]:
        return [], ["a.png"]


def test_once_after_each_scan(tmp_path: Path, ledger: Ledger) -> None:
    """It begins after a scan, never twice at once, wakes the loop at its end and gives what it found once."""
    takeover, mover, woken = Left(ledger, tmp_path, tmp_path), Later(), list[int]()

    def turn(scans: int) -> list[str]:
        return takeover.turn(mover, scans, lambda: woken.append(scans))[1]

    assert (turn(0), takeover.busy) == ([], False)
    assert (turn(1), takeover.busy, len(mover.given)) == ([], True, 1)
    assert (turn(2), len(mover.given)) == ([], 1)
    mover.work()
    assert woken == [1]
    assert (turn(2), takeover.busy) == (["a.png"], True)  # the second scan is looked after at once
    mover.work()
    assert (turn(2), takeover.busy) == (["a.png"], False)
    assert (turn(2), takeover.busy) == ([], False)


def test_waits_for_a_move_that_hangs(tmp_path: Path, ledger: Ledger) -> None:
    """While nothing may begin nothing does, and the scan is not forgotten."""
    takeover, mover = Left(ledger, tmp_path, tmp_path), Later()
    takeover.turn(None, 1, lambda: None)
    assert not takeover.busy
    takeover.turn(mover, 1, lambda: None)
    assert takeover.busy


def test_a_ledger_that_others_hold_is_waited_for(tmp_path: Path, ledger: Ledger) -> None:
    """While another process has the ledger locked nothing is found and nothing crashes; the next scan looks again."""
    takeover = Takeover(ledger, tmp_path, tmp_path)
    other = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    other.execute("begin exclusive")
    assert takeover() == ([], [])
    other.execute("rollback")
    assert takeover() == ([], [])
    other.close()
