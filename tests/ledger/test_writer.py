"""The ledger: what was decided is on disk before a file moves, and how it ended after."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.records import Decision, Identity, MoveOrder, Outcome, Timing
from watcher.ledger import status_counts
from watcher.ledger.rows import Unended
from watcher.ledger.writer import Ending, Ledger

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HAND = Decision(Outcome.SORTED, "Hand", 0.99, top=(("Hand", 0.99), ("CXR", 0.01)))
UNSURE = Decision(Outcome.REVIEW, "CXR", 0.4, "low_confidence", "0.4000 is below 0.9000", (("CXR", 0.4),))
STAMP = Identity(1, 2, 3, 4)
BROKEN = Decision(Outcome.QUARANTINE, None, 0.0, "truncated", "the JPEG has no end marker")


def waiting(number: int, name: str, directory: str, identity: Identity | None, at: datetime = NOON) -> Unended:
    return Unended(
        number, Outcome.SORTED, name, f"/inbox/{name}", directory, identity, "d" * 64, None, None, decided_at=at
    )


def decided(
    book: Ledger, orders: list[MoveOrder], directories: list[str], model: str, inbox: Path = Path("/inbox")
) -> list[int]:
    with book.transaction():
        return book.record_decisions(orders, directories, model, inbox)


def order(name: str = "a.png", decision: Decision = HAND, identity: Identity | None = STAMP) -> MoveOrder:
    return MoveOrder(name, identity, "d" * 64, decision, Timing(0.0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite3"


@pytest.fixture
def book(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path, lambda: NOON)
    yield opened
    opened.close()


def rows(path: Path, question: str) -> list[tuple[object, ...]]:
    """Read with a connection of its own: sees only what was committed."""
    db = sqlite3.connect(path)
    try:
        return db.execute(question).fetchall()
    finally:
        db.close()


class TestLastFiled:
    def test_by_the_daemon_and_of_any_life(self, path: Path) -> None:
        """The newest ending of a file sorted or handed to a person; none of one that a person put back, or of none."""
        times = (NOON + timedelta(hours=hours) for hours in itertools.count())
        book = Ledger(path, lambda: next(times))
        assert book.last_filed() is None
        for outcome in (Outcome.SORTED, Outcome.QUARANTINE, Outcome.RESTORED):
            [number] = decided(book, [order(decision=Decision(outcome, "Hand", 0.9, "undo"))], ["/x"], "m")
            book.record_endings([Ending(number, "filed", "/x/a")])
        [number] = decided(book, [order()], ["/x"], "m")
        book.record_endings([Ending(number, "returned", None, "gone")])
        assert book.last_filed() == NOON + timedelta(hours=3)
        book.close()


class TestDecided:
    def test_is_committed_with_everything_an_auditor_asks(self, path: Path, book: Ledger) -> None:
        """A decision is on disk, for other processes too, when decided() returns: file, outcome, model, time."""
        [number] = decided(book, [order(decision=UNSURE)], ["/review"], "model")
        [row] = rows(path, "select * from decision")
        assert row == (
            *(number, number, b"a.png", b"/inbox/a.png", "d" * 64, 1, 2, 3, 4, "review", "CXR", 0.4),
            *("low_confidence", "0.4000 is below 0.9000", '[["CXR", 0.4]]', "model", b"/review", None, None),
            "2026-03-01T12:00:00.000+00:00",
        )
        assert json.loads(str(row[14])) == [["CXR", 0.4]]

    def test_ids_are_in_order_and_go_on_after_a_restart(self, path: Path, book: Ledger) -> None:
        """Ids come in the order of the files and are never used twice, over restarts either."""
        first = decided(book, [order(), order("b")], ["/x", "/y"], "m")
        book.close()
        again = Ledger(path)
        second = decided(again, [order("c")], ["/z"], "m")
        again.close()
        assert len({*first, *second}) == 3
        assert rows(path, "select id, name, directory from decision order by id") == [
            (first[0], b"a.png", b"/x"),
            (first[1], b"b", b"/y"),
            (second[0], b"c", b"/z"),
        ]

    def test_any_name_and_identity_come_back(self, book: Ledger) -> None:
        """Names that are no UTF-8 and file systems with 64-bit inode numbers and early dates are kept exactly."""
        names = [os.fsdecode(b"\xff\n.png"), "ä", "x" * 255]
        stamps = [Identity(2**64 - 1, 2**64 - 1, 2**62, -1), Identity(0, 1, 0, 0), None]
        orders = [order(name, identity=stamp) for name, stamp in zip(names, stamps, strict=True)]
        ids = decided(book, orders, ["/\udcff"] * 3, "m")
        assert book.unended() == [
            waiting(number, name, "/\udcff", stamp) for number, name, stamp in zip(ids, names, stamps, strict=True)
        ]

    def test_all_or_nothing(self, path: Path, book: Ledger) -> None:
        """If one row can not be written none is: Retry is raised, nothing may move, and the ledger works on."""
        bad = order("b", Decision(Outcome.SORTED, "Hand", None))  # type: ignore[arg-type]
        with pytest.raises(Retry):
            decided(book, [order(), bad], ["/x", "/x"], "m")
        assert rows(path, "select count(*) from decision") == [(0,)]
        assert book.unended() == []
        assert len(decided(book, [order()], ["/x"], "m")) == 1

    def test_full_disk_raises_retry(self, path: Path, book: Ledger) -> None:
        """A ledger that can not grow raises Retry and records nothing; once there is room it goes on."""
        pages = book._db.execute("pragma page_count").fetchone()[0]
        book._db.execute(f"pragma max_page_count = {pages}")
        many = [order(str(number)) for number in range(500)]
        with pytest.raises(Retry, match="full"):
            decided(book, many, ["/x"] * 500, "m")
        assert rows(path, "select count(*) from decision") == [(0,)]
        book._db.execute("pragma max_page_count = 1000000")
        assert len(decided(book, many, ["/x"] * 500, "m")) == 500


class TestEnded:
    def test_closes_the_decision(self, path: Path, book: Ledger) -> None:
        """An ending is recorded beside its decision, which is then no longer open."""
        first, second = decided(book, [order(), order("b")], ["/x", "/x"], "m")
        book.record_endings([Ending(first, "filed", "/x/\udcff.png")])
        assert [open_.decision for open_ in book.unended()] == [second]
        assert rows(path, "select * from ending") == [
            (first, "filed", b"/x/\xff.png", None, "2026-03-01T12:00:00.000+00:00")
        ]

    def test_note_may_quote_any_name(self, path: Path, book: Ledger) -> None:
        """A note that quotes a name that is no UTF-8 is recorded; one odd file name does not stop the daemon."""
        [number] = decided(book, [order("\udcff.png")], ["/x"], "m")
        book.record_endings([Ending(number, "returned", None, "/inbox/\udcff.png has changed since it was read")])
        [(note,)] = rows(path, "select note from ending")
        assert "has changed since it was read" in str(note)
        assert book.unended() == []

    def test_failure_leaves_the_decisions_open(self, book: Ledger) -> None:
        """If one ending can not be written none is, and the next start finds every decision open."""
        first, second = decided(book, [order(), order("b")], ["/x", "/x"], "m")
        book.record_endings([Ending(first, "filed", "/x/a.png")])
        with pytest.raises(Retry):
            book.record_endings([Ending(second, "filed", "/x/b"), Ending(first, "filed", "/x/a.png")])
        assert [open_.decision for open_ in book.unended()] == [second]

    def test_what_is_owed_comes_before_the_next_decision(self, path: Path, book: Ledger) -> None:
        """While endings can not be written nothing is decided; when they can, they are recorded, each once."""
        book._db.execute("pragma busy_timeout = 0")
        [first] = decided(book, [order()], ["/x"], "m")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        book.record_or_postpone([Ending(first, "filed", "/x/a.png")])
        assert book.lag is not None and book.lag.files == 1
        with pytest.raises(Retry, match="after files were moved"):
            decided(book, [order("b")], ["/x"], "m")
        other.execute("rollback")
        other.close()
        [second] = decided(book, [order("b")], ["/x"], "m")
        assert book.lag is None
        book.record_postponed()
        assert rows(path, "select decision from ending") == [(first,)]
        assert [open_.decision for open_ in book.unended()] == [second]

    def test_a_ledger_that_was_removed_is_fatal(self, path: Path, book: Ledger) -> None:
        """A ledger that is not there any more stops the daemon, because its rows can never be written."""
        [number] = decided(book, [order()], ["/x"], "m")
        path.unlink()
        with pytest.raises(Fatal, match="removed"):
            book.record_or_postpone([Ending(number, "filed", "/x/a.png")])


class TestOpening:
    def test_reopening_keeps_everything(self, path: Path, book: Ledger) -> None:
        """Decisions that were open when the daemon died are open at the next start."""
        [number] = decided(book, [order()], ["/x"], "m")
        book.close()
        again = Ledger(path)
        assert again.unended() == [waiting(number, "a.png", "/x", Identity(1, 2, 3, 4), again.unended()[0].decided_at)]
        again.close()

    def test_is_durable_without_wal(self, path: Path, book: Ledger) -> None:
        """The journal is TRUNCATE with full synchronisation: no WAL, which old SQLite can corrupt."""
        assert book._db.execute("pragma journal_mode").fetchone() == ("truncate",)
        assert book._db.execute("pragma synchronous").fetchone() == (2,)

    @pytest.mark.parametrize("content", [b"garbage " * 100, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_damaged_file_is_fatal(self, path: Path, content: bytes) -> None:
        """A file that is no ledger ends the start with exit code 5 and its path; it is not overwritten."""
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(Fatal, match=r"ledger\.sqlite3") as caught:
            Ledger(path)
        assert caught.value.code is Exit.DIRECTORY
        assert path.read_bytes() == content
        assert str(path) not in {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}, "left open"

    def test_state_directory_that_can_not_be_made_is_fatal(self, tmp_path: Path) -> None:
        """A file in the place of the state directory ends the start with exit code 5."""
        (tmp_path / "state").touch()
        with pytest.raises(Fatal) as caught:
            Ledger(tmp_path / "state" / "ledger.sqlite3")
        assert caught.value.code is Exit.DIRECTORY


class TestTally:
    def test_counts_what_was_filed(self, path: Path) -> None:
        """Totals, the counts since a time, the classes, the last filing and the open decisions add up."""
        clock = itertools.count()
        book = Ledger(path, lambda: NOON + timedelta(hours=next(clock)))
        decisions = [HAND, HAND, UNSURE, BROKEN, HAND]
        ids = [decided(book, [order(str(i), d)], ["/x"], "m")[0] for i, d in enumerate(decisions)]  # hours 0 to 4
        book.record_endings([Ending(number, "filed", "/x") for number in ids[:3]])  # hour 5
        book.record_endings([Ending(ids[3], "returned")])
        book.close()
        told = status_counts.count_for_status(path, NOON + timedelta(hours=1))
        assert told.total == {"sorted": 2, "review": 1}
        assert told.since == {"sorted": 1, "review": 1}
        assert told.classes == {"Hand": 2}
        assert told.last_filed_at == "2026-03-01T17:00:00.000+00:00"
        assert told.unended == 1

    def test_empty_ledger(self, path: Path, book: Ledger) -> None:
        """Before the first file everything is zero and there is no last filing."""
        assert status_counts.count_for_status(path, NOON) == status_counts.StatusCounts({}, {}, {}, None, 0)

    def test_reads_beside_the_writer(self, path: Path, book: Ledger) -> None:
        """Status reads while the daemon has the ledger open, and makes no file of its own."""
        decided(book, [order()], ["/x"], "m")
        before = sorted(path.parent.iterdir())
        assert status_counts.count_for_status(path, NOON).unended == 1
        assert sorted(path.parent.iterdir()) == before

    def test_no_ledger_is_fatal_and_is_not_made(self, path: Path) -> None:
        """Status says that no daemon ever ran here, with exit code 5, and leaves nothing behind."""
        with pytest.raises(Fatal) as caught:
            status_counts.count_for_status(path, NOON)
        assert caught.value.code is Exit.DIRECTORY
        assert not path.exists()
