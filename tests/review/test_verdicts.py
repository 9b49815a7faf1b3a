"""Verdicts are on record with who gave them and when, and the file goes where they say, once, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, digest, mednet
from tests.support.dropped_files import check
from tests.support.filing_site import BROKEN, HAND, NOW, ODD, audit
from tests.support.review_site import ANNA, UNSURE, ReviewSite
from tests.support.waiting import LONGEST_S
from watcher.cli import main
from watcher.cli.commands import review
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.records import Identity
from watcher.filing import put_back
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.recovery import recover
from watcher.filing.takeover import Takeover
from watcher.ledger.reader import LedgerReader, Verdict
from watcher.ledger.writer import Ledger
from watcher.review import export, verdicts, wake_pipe
from watcher.review.verdict_worker import VerdictWorker
from watcher.review.verdicts import Reviewer, VerdictResult
from watcher.service import log_lines


@pytest.fixture
def site(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[ReviewSite]:
    site = ReviewSite(tmp_path, identify)
    yield site
    site.book.close()


class TestAVerdict:
    @pytest.mark.parametrize("name", ["a.png", ODD])
    def test_from_review_into_its_class(self, site: ReviewSite, name: str) -> None:
        """The file goes to the class a person says; who, when and why are in the ledger, and the audit adds up."""
        number = site.file(name, UNSURE)
        given = site.give(site.root / "review" / name, "BreastMRI", "typical")
        assert [v.state for v in site.verdicts()] == ["open"]
        [done] = site.carry_out()
        assert (done.state, done.destination) == ("filed", str(site.root / "sorted" / "BreastMRI" / name))
        assert site.tree() == {f"sorted/BreastMRI/{name}": b"a radiograph"}
        [told] = site.verdicts()
        assert (told.id, told.decision, told.label, told.uid, told.user) == (given, number, "BreastMRI", 1234, "anna")
        assert (told.note, told.state, told.filed_by) == ("typical", "filed", done.id)
        assert told.given_at.endswith("+00:00")
        assert site.entries() == [
            ("review", "low_confidence", "filed", None),
            ("sorted", "accepted", "filed", number),
        ]
        report = audit(site)
        assert report.findings == []
        assert [report.due(place) for place in ("sorted", "review", "rejected")] == [1, 0, 0]
        assert site.carry_out() == []

    def test_none_of_the_classes(self, site: ReviewSite) -> None:
        """A rejected image goes to a place of its own, made then; `retry` does not bring it back, `accept` can."""
        site.file("a.png", UNSURE)
        site.give("a.png", None)
        assert not (site.root / "rejected").exists()
        [done] = site.carry_out()
        assert site.tree() == {"rejected/a.png": b"a radiograph"}
        report = audit(site)
        assert (report.findings, report.due("rejected"), report.due("review")) == ([], 1, 0)
        assert site.retry() == []
        site.give(f"#{done.id}", "Hand")
        site.carry_out()
        assert site.tree() == {"sorted/Hand/a.png": b"a radiograph"}

    def test_sorted_wrongly(self, site: ReviewSite) -> None:
        """A file already sorted that a person corrects changes its class; the model's decision stays on record."""
        number = site.file("a.png", HAND)
        site.give(site.hand / "a.png", "CXR")
        [done] = site.carry_out()
        assert site.tree() == {"sorted/CXR/a.png": b"a radiograph"}
        with LedgerReader(site.path) as ledger_reader:
            [entry] = ledger_reader.entries("d.id = ?", (done.id,))
            assert (entry.model, entry.detail) == (None, "by anna")
            model = verdicts.model_decision(ledger_reader, site.verdicts()[0], entry)
        assert model is not None and (model.id, model.label) == (number, "Hand")

    def test_a_confirmation_moves_nothing(self, site: ReviewSite) -> None:
        """Said of a file what was decided: it stays, no decision is added, and it counts as judged."""
        site.file("a.png", HAND)
        site.give(site.hand / "a.png", "Hand")
        assert [(done.state, done.destination) for done in site.carry_out()] == [
            ("confirmed", str(site.hand / "a.png"))
        ]
        assert ([v.state for v in site.verdicts()], len(site.entries())) == (["confirmed"], 1)

    def test_nothing_is_overwritten(self, site: ReviewSite) -> None:
        """A name that is taken in the class gets a suffix."""
        site.file("a.png", HAND, b"the first")
        site.file("a.png", UNSURE, b"the second")
        site.give("a.png", "Hand")
        site.carry_out()
        assert sorted(site.tree().values()) == [b"the first", b"the second"]
        assert len(os.listdir(site.hand)) == 2

    def test_from_quarantine(self, site: ReviewSite) -> None:
        """A file that could not be read can be judged too, and its reason file goes."""
        site.file("a.png", BROKEN)
        site.give(site.quarantine / "a.png", "Hand")
        site.carry_out()
        assert site.tree() == {"sorted/Hand/a.png": b"a radiograph"}

    def test_renamed_while_it_waited(self, site: ReviewSite) -> None:
        """A person gave it another name in review: that name stays, and the ledger knows of what the verdict is."""
        number = site.file("a.png", UNSURE)
        site.file("other.png", UNSURE, b"another radiograph")
        (site.root / "review" / "a.png").rename(site.root / "review" / "knee of Mr X.png")
        site.give("knee of Mr X.png", "Hand")
        site.carry_out()
        assert set(site.tree()) == {"sorted/Hand/knee of Mr X.png", "review/other.png"}
        assert [verdict.decision for verdict in site.verdicts()] == [number]
        assert audit(site).findings == []

    def test_a_copy_is_not_the_file_renamed(self, site: ReviewSite) -> None:
        """While the file lies where it was put, one of the same bytes beside it is another."""
        site.file("a.png", UNSURE)
        (site.root / "review" / "copy.png").write_bytes(b"a radiograph")
        site.give("copy.png", "Hand")
        site.carry_out()
        assert set(site.tree()) == {"sorted/Hand/copy.png", "review/a.png"}
        assert [verdict.decision for verdict in site.verdicts()] == [None]

    def test_a_file_that_nobody_filed(self, site: ReviewSite) -> None:
        """A file that a person put into review can be judged; from then on the ledger knows it."""
        (site.root / "review").mkdir()
        (site.root / "review" / ODD).write_bytes(b"x")
        site.give(ODD, "Hand")
        site.carry_out()
        assert site.tree() == {f"sorted/Hand/{ODD}": b"x"}
        assert audit(site).findings == []

    def test_the_last_word_counts(self, site: ReviewSite) -> None:
        """Of two verdicts given before either is carried out the first gives way."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        site.give("a.png", "CXR")
        assert [done.state for done in site.carry_out()] == ["filed"]
        assert site.tree() == {"sorted/CXR/a.png": b"a radiograph"}
        assert [(v.state, v.why) for v in site.verdicts()] == [
            ("left", "another verdict came after it"),
            ("filed", None),
        ]

    def test_what_changed_or_went_since_is_left_alone(self, site: ReviewSite) -> None:
        """Judged were other bytes: the file stays as it is, the verdict ends, and why is told."""
        site.file("a.png", UNSURE, b"abc")
        site.file("b.png", UNSURE, b"b")
        site.give("a.png", "Hand")
        site.give("b.png", "Hand")
        (site.root / "review" / "a.png").write_bytes(b"xyz")
        (site.root / "review" / "b.png").unlink()
        assert [(done.state, done.why) for done in site.carry_out()] == [
            ("left", "it was changed since it was judged"),
            ("left", "it no longer lies there"),
        ]
        assert site.carry_out() == []

    def test_undo_of_its_decision_withdraws_it(self, site: ReviewSite) -> None:
        """Asked for by number, what a verdict filed is put back: that is told, on record, and nothing is exported."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        [done] = site.carry_out()
        [result] = site.undo(number=done.id)
        assert (result.state, result.why) == ("restored", "the verdict of anna (Hand) is withdrawn")
        assert site.tree() == {"inbox/a.png": b"a radiograph"}
        assert [(v.state, v.filed_by, v.withdrawn_by) for v in site.verdicts()] == [("withdrawn", done.id, result.id)]
        assert site.export(site.root / "new") == []

    def test_what_was_exported_before_it_was_withdrawn(self, site: ReviewSite) -> None:
        """The copy stays, for nothing is deleted, and each export names it, until somebody removes it."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        [done] = site.carry_out()
        to = site.root / "new"
        assert site.export(to) == [("copied", "Hand/a.png")]
        site.undo(number=done.id)
        assert site.export(to) == site.export(to) == [("withdrawn", "Hand/a.png")]
        (site.root / "config.yaml").touch()
        ended = mednet("review", "export", str(to), cwd=site.root)
        assert (ended.returncode, f"withdrawn  {to / 'Hand' / 'a.png'}: the verdict of anna" in ended.stderr) == (
            1,
            True,
        )
        (to / "Hand" / "a.png").unlink()
        assert site.export(to) == []

    @pytest.mark.parametrize("which", [{"batch": 1}, {"since": NOW - timedelta(days=9999)}])
    def test_undo_of_many_leaves_what_people_judged(self, site: ReviewSite, which: dict[str, Any]) -> None:
        """Files that a verdict filed, confirmed or is yet to file stay, and can still be exported."""
        names = ("filed.png", "confirmed.png", "open.png", "models.png")
        site.executor.carry_out([site.order(name, HAND, name.encode()) for name in names])
        site.give(site.hand / "filed.png", "CXR")
        site.give(site.hand / "confirmed.png", "Hand")
        site.carry_out()
        site.give(site.hand / "open.png", "CXR")
        results = {result.request.name: (result.state, result.why) for result in site.undo(**which)}
        assert results.pop("models.png") == ("restored", None)
        assert results.pop("filed.png", None) == (("kept", "anna said that it is CXR") if "since" in which else None)
        assert results == {
            "confirmed.png": ("kept", "anna said that it is Hand"),
            "open.png": ("kept", "anna said that it is CXR"),
        }
        site.carry_out()
        assert sorted(site.tree()) == [
            "inbox/models.png",
            "sorted/CXR/filed.png",
            "sorted/CXR/open.png",
            "sorted/Hand/confirmed.png",
        ]
        assert len(site.export(site.root / "new")) == 3

    def test_undo_of_verdicts_too(self, site: ReviewSite) -> None:
        """With ``--verdicts`` all files come back, and each verdict is withdrawn, also of files that were confirmed."""
        site.file("a.png", HAND, b"a")
        site.file("b.png", UNSURE, b"b")
        site.give(site.hand / "a.png", "Hand")
        site.give("b.png", None)
        site.carry_out()
        told = [(r.state, r.why) for r in site.undo(since=NOW - timedelta(days=9999), verdicts=True)]
        assert told == [
            ("restored", "the verdict of anna (Hand) is withdrawn"),
            ("restored", "the verdict of anna (none of the classes) is withdrawn"),
        ]
        assert [v.state for v in site.verdicts()] == ["withdrawn", "withdrawn"]
        assert site.export(site.root / "new") == []

    def test_the_commands_tell_of_it(self, site: ReviewSite) -> None:
        """`undo` counts what stays and says how to take it back too, without failing; `explain` tells a withdrawal."""
        (site.root / "config.yaml").touch()
        site.file("a.png", HAND)
        site.give(site.hand / "a.png", "CXR")
        site.carry_out()
        ended = mednet("undo", "--since", "1h", cwd=site.root)
        assert (ended.returncode, "kept" in ended.stdout, "anna said that it is CXR" in ended.stdout) == (0, True, True)
        assert "1 file that people judged stays (--verdicts puts it back, too)" in ended.stderr
        ended = mednet("undo", "--since", "1h", "--verdicts", cwd=site.root)
        assert (ended.returncode, "the verdict of anna (CXR) is withdrawn" in ended.stdout) == (0, True)
        told = mednet("explain", "#1", "#2", cwd=site.root).stdout
        assert ("withdrawn by #3" in told, "moved on by #2" in told, "put back by #3" in told) == (True, True, True)

    def test_the_daemons_counts_are_of_what_came_from_the_inbox(self, site: ReviewSite) -> None:
        """A file that a person judged is not counted a second time."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        site.carry_out()
        assert site.book.counts() == {"review": 1}

    @pytest.mark.parametrize("word", ["#1", "1"])
    def test_a_file_named_by_its_decision(self, site: ReviewSite, word: str) -> None:
        """With or without the mark, which a shell takes for a comment; a file of that very name comes first."""
        site.file("a.png", UNSURE)
        assert site.subject(word).name == "a.png"
        site.file("1", UNSURE)
        assert site.subject(word).name == ("a.png" if word == "#1" else "1")

    def test_a_note_that_is_no_utf8(self, site: ReviewSite) -> None:
        """Bytes of another encoding, as a terminal may send, are kept as escapes; the verdict is recorded."""
        site.file("a.png", UNSURE)
        site.give(site.root / "review" / "a.png", None, os.fsdecode(b"Sch\xe4del"))
        assert [verdict.note for verdict in site.verdicts()] == ["Sch\\udce4del"]


class TestWhatIsRefused:
    def code(self, site: ReviewSite, word: str | Path) -> Exit:
        with pytest.raises(Fatal) as caught:
            site.subject(word)
        return caught.value.code

    def test_what_is_not_ours(self, site: ReviewSite) -> None:
        """A file elsewhere or in the inbox, a number that nothing lies under, a link, a reason file."""
        site.file("a.png", BROKEN)
        (site.inbox / "b.png").write_bytes(b"b")
        (site.root / "review").mkdir()
        (site.root / "review" / "link").symlink_to(site.inbox / "b.png")
        words: list[str | Path] = [
            *("/etc/hosts", "#99", site.inbox / "b.png", site.root / "review" / "link"),
            site.quarantine / "a.png.reason.json",
        ]
        assert [self.code(site, word) for word in words] == [Exit.USAGE] * 5

    def test_what_changed_since_it_was_filed(self, site: ReviewSite) -> None:
        """A person who looks at other bytes than were judged by the model does not judge that decision."""
        site.file("a.png", UNSURE)
        (site.root / "review" / "a.png").write_bytes(b"other")
        assert (self.code(site, "a.png"), self.code(site, "gone.png")) == (Exit.FAILED, Exit.FAILED)

    def test_what_is_being_moved_just_now(self, site: ReviewSite) -> None:
        """A file that has come, and whose decision has not ended, is left: try again."""
        order = site.order("a.png", UNSURE, b"x")
        with site.book.transaction():
            site.book.record_decisions([order], [str(site.root / "review")], "m" * 64, site.inbox)
        (site.root / "review").mkdir()
        (site.inbox / "a.png").rename(site.root / "review" / "a.png")
        with pytest.raises(Fatal, match="moved just now"):
            site.subject("a.png")

    def test_what_is_being_taken_away_just_now(self, site: ReviewSite) -> None:
        """While one verdict is carried out on a file another is not recorded."""
        site.file("a.png", UNSURE)
        judged = site.subject("a.png")
        site.give("a.png", "Hand")
        _decide(site)
        with pytest.raises(Retry, match="moved just now"):
            verdicts.record(site.book, judged, "CXR", ANNA, None)
        assert len(site.verdicts()) == 1

    def test_classes(self) -> None:
        """A class that the weights do not have is refused, with those they have; case does not matter."""
        assert verdicts.class_named(["Hand", "CXR"], "cxr") == "CXR"
        with pytest.raises(Fatal, match="Hand, CXR"):
            verdicts.class_named(["Hand", "CXR"], "Foot")


def _decide(site: ReviewSite, owner: str = "daemon") -> None:
    """As by one who dies before the move, or is about to make it."""
    book = Ledger(site.path, owner=owner)
    [verdict] = verdicts._open_verdicts(book, 10)
    order = verdicts._order(verdict, site.executor.destinations)
    assert not isinstance(order, VerdictResult)
    with book.transaction():
        book.record_decisions([order], [str(site.executor.destinations.of(order.decision))], None)
    book.close()


class TestWhoeverDies:
    def test_two_never_carry_out_one(self, site: ReviewSite, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two who saw the same open verdict one moves the file, the other learns that it is taken."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        first = Ledger(site.path, owner="operator")
        seen = verdicts._open_verdicts(first, 10)
        site.carry_out()
        monkeypatch.setattr(verdicts, "_open_verdicts", lambda ledger, limit: seen)
        (site.root / "review" / "a.png").write_bytes(b"a radiograph")  # as if it were there still
        [done] = verdicts.carry_out_open(DecisionExecutor(first, site.executor.mover, site.executor.destinations, None))
        first.close()
        assert (done.state, done.id, done.why) == ("later", None, "somebody else carries out that verdict")
        assert len([v for v in site.verdicts() if v.state == "filed"]) == 1

    def test_what_another_is_at_is_not_begun(self, site: ReviewSite) -> None:
        """A verdict under way is nobody else's, until its decision has ended without a move: then it is open again."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        _decide(site)
        assert site.carry_out() == []
        assert [ending.state for ending in recover(site.book)] == ["returned"]
        assert [done.state for done in site.carry_out()] == ["filed"]

    def test_moved_and_not_recorded(self, site: ReviewSite) -> None:
        """The next start finds the file moved: the verdict is carried out, not once more."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        _decide(site)
        site.hand.mkdir(parents=True)
        (site.root / "review" / "a.png").rename(site.hand / "a.png")
        assert [ending.state for ending in recover(site.book)] == ["filed"]
        assert ([v.state for v in site.verdicts()], site.carry_out()) == (["filed"], [])

    def test_a_killed_command_is_ended_by_the_running_daemon(self, site: ReviewSite) -> None:
        """It carried out a verdict itself, no daemon ran; one that was started meanwhile takes it over."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        _decide(site, owner="operator")
        endings, names = Takeover(site.book, site.inbox, site.path.parent)()
        assert ([ending.state for ending in endings], names) == (["returned"], [])
        assert [done.state for done in site.carry_out()] == ["filed"]

    def test_a_ledger_that_others_hold(self, site: ReviewSite) -> None:
        """While another process has the ledger locked, nothing is done and nobody crashes; then the verdict is."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        site.book._db.execute("pragma busy_timeout = 100")
        other = sqlite3.connect(site.path, isolation_level=None)
        other.execute("begin exclusive")
        assert site.carry_out() == []
        other.close()
        assert [done.state for done in site.carry_out()] == ["filed"]

    def test_a_ledger_that_can_not_be_written(self, site: ReviewSite, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing moves, the verdict stays open, and it is told why."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        pages = site.book._db.execute("pragma page_count").fetchone()[0]
        site.book._db.execute(f"pragma max_page_count = {pages}")
        monkeypatch.setattr(
            verdicts,
            "_open_verdicts",
            lambda ledger, limit, real=verdicts._open_verdicts: real(ledger, limit) * 400,  # more than fits
        )
        done = site.carry_out()
        assert {each.state for each in done} == {"later"}
        assert site.tree() == {"review/a.png": b"a radiograph"}


class TestTheWorker:
    @pytest.fixture
    def worker(self, site: ReviewSite) -> Iterator[VerdictWorker]:
        worker = VerdictWorker(wake_pipe.WakePipe(site.path.parent), lambda: None)
        with ThreadPoolExecutor(1) as self.mover:
            yield worker
        worker.close(0.0)

    def turn(
        self, site: ReviewSite, worker: VerdictWorker, now: float = 0.0, scans: int = 0, free: bool = True
    ) -> list[str]:
        """A turn, and the next when what it began has ended: the states of the verdicts."""
        done = worker.turn(now, site.executor, self.mover if free else None, scans)
        while worker.busy:
            done += worker.turn(now, site.executor, None, scans)
        return [each.state for each in done]

    def test_at_the_start_and_when_it_is_woken(self, site: ReviewSite, worker: VerdictWorker) -> None:
        """Verdicts are carried out at the start and when the daemon is woken; without either none is looked at."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        assert [self.turn(site, worker) for _ in range(2)] == [["filed"], []]
        site.give(site.hand / "a.png", "Hand")
        assert self.turn(site, worker) == []
        assert wake_pipe.wake_daemon(site.path.parent)
        assert self.turn(site, worker) == ["confirmed"]

    def test_after_each_scan(self, site: ReviewSite, worker: VerdictWorker) -> None:
        """The verdict of a process that was killed before it woke the daemon is found at the next scan."""
        self.turn(site, worker)
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        assert [self.turn(site, worker, scans=n) for n in (0, 1)] == [[], ["filed"]]

    def test_not_while_files_may_not_move(self, site: ReviewSite, worker: VerdictWorker) -> None:
        """It waits, and is not forgotten."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        assert [self.turn(site, worker, free=free) for free in (False, True)] == [[], ["filed"]]

    def test_what_fails_is_tried_again_later(self, site: ReviewSite, worker: VerdictWorker) -> None:
        """A class directory that can not be made: tried again ever more seldom, and at once when woken."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        (site.root / "sorted").write_bytes(b"in the way")
        tried = [now for now in range(60) if self.turn(site, worker, float(now), now) == ["later"]]
        assert tried == [0, 5, 15, 35]
        (site.root / "sorted").unlink()
        wake_pipe.wake_daemon(site.path.parent)
        assert self.turn(site, worker, 61.0, 61) == ["filed"]

    def test_more_than_a_chunk(self, site: ReviewSite, worker: VerdictWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Waking the daemon once is enough for any number of verdicts."""
        for name in "abc":
            site.file(f"{name}.png", UNSURE, name.encode())
            site.give(f"{name}.png", "Hand")
        monkeypatch.setattr(verdicts.carry_out_open, "__defaults__", (1,))
        told = [event for _ in range(5) for event in self.turn(site, worker)]
        assert told == ["filed"] * 3

    def test_each_file_of_a_chunk_counts(
        self, site: ReviewSite, worker: VerdictWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many large files onto a slow share are slow, not stuck: with each something is finished."""
        for name in "abc":
            site.file(f"{name}.png", UNSURE, name.encode())
            site.give(f"{name}.png", "Hand")
        finished = []
        digest, move = verdicts.no_overwrite.digest, site.executor.mover.move
        monkeypatch.setattr(
            verdicts.no_overwrite, "digest", lambda path: (finished.append(worker.finished), digest(path))[1]
        )
        monkeypatch.setattr(site.executor.mover, "move", lambda *a: (finished.append(worker.finished), move(*a))[1])
        assert self.turn(site, worker) == ["filed"] * 3
        finished.append(worker.finished)
        assert len(finished) == len(set(finished)) == 7
        assert finished == sorted(finished)

    def test_the_note_is_not_logged(self, site: ReviewSite) -> None:
        """A note may name a patient: the ledger has it, the log does not."""
        lines: list[dict[str, object]] = []
        logger = type("L", (), {"info": lambda self, event, **fields: lines.append(fields)})()
        verdict = Verdict(1, 1, "/r/a", "a", "d" * 64, None, 1, "anna", "Mr Smith", "now", "filed", None, 2)
        log_lines.verdicts(logger, [VerdictResult(verdict, "filed", 2, "/x")])  # type: ignore[arg-type]
        assert "Smith" not in str(lines) and lines[0]["by"] == "anna"


class TestThePipe:
    def test_nobody_listens(self, tmp_path: Path) -> None:
        """Without a daemon, and after one, that is known at once."""
        assert not wake_pipe.wake_daemon(tmp_path)
        listening = wake_pipe.WakePipe(tmp_path)
        assert (wake_pipe.wake_daemon(tmp_path), listening.woken(), listening.woken()) == (True, True, False)
        listening.close()
        assert not wake_pipe.wake_daemon(tmp_path)
        assert not listening.woken()

    def test_woken_without_end(self, tmp_path: Path) -> None:
        """A daemon that does not come to listen holds up nobody."""
        listening = wake_pipe.WakePipe(tmp_path)
        assert all(wake_pipe.wake_daemon(tmp_path) for _ in range(70_000))
        listening.close()

    def test_where_there_can_be_none(self, tmp_path: Path) -> None:
        """On a file system without pipes nobody is woken, and nothing fails."""
        (tmp_path / wake_pipe.NAME).mkdir()
        listening = wake_pipe.WakePipe(tmp_path)
        assert (listening.fds, listening.woken(), wake_pipe.wake_daemon(tmp_path)) == ([], False, False)


class TestExport:
    def test_by_class_with_a_manifest(self, site: ReviewSite, tmp_path: Path) -> None:
        """Judged images are copied by class, rejected ones as outliers; the manifest has what a training needs."""
        for name in ("a.png", "b.png", "c.png", "unjudged.png"):
            site.file(name, UNSURE, name.encode())
        site.file("d.png", HAND, b"d")
        site.give("a.png", "Hand", "Mr Smith")
        site.give("b.png", None)
        site.give(site.hand / "d.png", "Hand")
        while site.carry_out():
            pass
        to = tmp_path / "export"
        assert sorted(site.export(to)) == [
            ("copied", "Hand/a.png"),
            ("copied", "Hand/d.png"),
            ("copied", "outlier/b.png"),
        ]
        assert {str(p.relative_to(to)): p.read_bytes() for p in to.glob("*/*")} == {
            "Hand/a.png": b"a.png",
            "Hand/d.png": b"d",
            "outlier/b.png": b"b.png",
        }
        text = (to / export.MANIFEST).read_text()
        lines = {line["name"]: line for line in map(json.loads, text.splitlines())}
        assert (
            lines["a.png"].items()
            >= {
                **{"digest": digest(b"a.png"), "class": "Hand", "model_class": "CXR", "model": "m" * 64},
                **{"by": "anna", "uid": 1234, "path": "Hand/a.png", "model_outcome": "review", "verdict": "accepted"},
            }.items()
        )
        assert (lines["b.png"]["class"], lines["b.png"]["verdict"]) == (None, "rejected")
        assert "Smith" not in text
        assert sorted(site.tree()) == [
            *("rejected/b.png", "review/c.png", "review/unjudged.png", "sorted/Hand/a.png", "sorted/Hand/d.png"),
        ]

    def test_a_copy_that_was_changed_is_told(self, site: ReviewSite, tmp_path: Path) -> None:
        """A copy whose bytes are not those that were judged is named, and not overwritten."""
        site.file("a.png", UNSURE, b"a")
        site.give("a.png", "Hand")
        while site.carry_out():
            pass
        to = tmp_path / "export"
        assert site.export(to) == [("copied", "Hand/a.png")]
        (to / "Hand" / "a.png").write_bytes(b"cut")
        assert [state for state, _ in site.export(to)] == ["left"]
        assert (to / "Hand" / "a.png").read_bytes() == b"cut"
        (to / "Hand" / "a.png").unlink()
        assert site.export(to) == [("copied", "Hand/a.png")]

    @pytest.mark.parametrize("place", ["inbox", "sorted/Hand", "review", "rejected", "state/new"])
    def test_not_where_the_daemon_works(self, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Copies in the inbox would be sorted again, and among sorted files nobody could tell them apart."""
        (tmp_path / "config.yaml").touch()
        (tmp_path / "inbox").mkdir()
        words = ["review", "export", str(tmp_path / place), "--config", str(tmp_path / "config.yaml")]
        assert main.main(words) == Exit.DIRECTORY
        assert "directory of its own" in capsys.readouterr().err

    def test_again(self, site: ReviewSite, tmp_path: Path) -> None:
        """Asked again only what is new is copied; what was corrected since moves; a line cut short is not believed."""
        to = tmp_path / "export"
        for name in ("a.png", "b.png"):
            site.file(name, UNSURE, name.encode())
            site.give(name, "Hand")
        site.carry_out()
        site.export(to)
        with (to / export.MANIFEST).open("ab") as file:
            file.write(b'{"digest": "')
        site.give(site.hand / "a.png", "CXR")
        site.carry_out()
        assert sorted(site.export(to)) == [("copied", "CXR/a.png"), ("there", "Hand/b.png")]
        assert sorted(str(p.relative_to(to)) for p in to.glob("*/*")) == ["CXR/a.png", "Hand/b.png"]
        assert {told["path"] for told in export.manifest(to).values()} == {"CXR/a.png", "Hand/b.png"}
        assert {state for state, _ in site.export(to)} == {"there"}

    def test_never_over_another_file(self, site: ReviewSite, tmp_path: Path) -> None:
        """A name that is taken there stays what it is; a file whose bytes changed is left, and told."""
        to = tmp_path / "export"
        (to / "Hand").mkdir(parents=True)
        (to / "Hand" / "a.png").write_bytes(b"mine")
        for name in ("a.png", "b.png"):
            site.file(name, UNSURE, name.encode())
            site.give(name, "Hand")
        site.carry_out()
        (site.hand / "b.png").write_bytes(b"B.PNG")
        assert [state for state, _ in site.export(to)] == ["copied", "left"]
        assert sorted(p.read_bytes() for p in (to / "Hand").iterdir()) == [b"a.png", b"mine"]

    def test_what_a_person_put_into_its_class(self, site: ReviewSite, tmp_path: Path) -> None:
        """Moved there by hand and then confirmed, it is exported too, with the model's word; not after a later word."""
        site.file("a.png", UNSURE)
        site.hand.mkdir(parents=True, exist_ok=True)
        (site.root / "review" / "a.png").rename(site.hand / "a.png")
        site.give(site.hand / "a.png", "Hand")
        assert [done.state for done in site.carry_out()] == ["confirmed"]
        assert site.export(tmp_path / "export") == [("copied", "Hand/a.png")]
        [told] = export.manifest(tmp_path / "export").values()
        assert (told["class"], told["model_class"], told["model_outcome"]) == ("Hand", "CXR", "review")
        site.give(site.hand / "a.png", "CXR")
        [done] = site.carry_out()
        assert site.export(tmp_path / "export") == [("copied", "CXR/a.png")]
        [told] = export.manifest(tmp_path / "export").values()
        assert (told["class"], told["model_class"]) == ("CXR", "CXR")
        site.undo(number=done.id)
        assert [state for state, _ in site.export(tmp_path / "export")] == ["withdrawn"]

    def test_the_last_word_on_equal_images(self, site: ReviewSite, tmp_path: Path) -> None:
        """Of two files of the same bytes the verdict that was given last counts, also where the older file got it."""
        for name, label in (("a.png", "Hand"), ("b.png", "CXR")):
            site.file(name, UNSURE)
            site.give(name, label)
            site.carry_out()
        site.give(site.hand / "a.png", "Hand")
        assert [done.state for done in site.carry_out()] == ["confirmed"]
        assert site.export(tmp_path / "export") == [("copied", "Hand/a.png")]

    def test_a_manifest_that_others_wrote(self, site: ReviewSite, tmp_path: Path) -> None:
        """Lines that are not ours or lead elsewhere do not count; a manifest that can not be read is told."""
        site.file("a.png", UNSURE)
        site.give("a.png", "Hand")
        site.carry_out()
        mine = tmp_path / "mine.png"
        mine.write_bytes(b"a radiograph")
        (to := tmp_path / "export").mkdir()
        lines = [b"\xff\xfe", b"[]", *(json.dumps({"digest": digest(b"a radiograph"), "id": 0, "path": p}).encode()
                 for p in (str(mine), "../mine.png"))]  # fmt: skip
        (to / export.MANIFEST).write_bytes(b"\n".join(lines))
        assert site.export(to) == [("copied", "Hand/a.png")]
        assert mine.exists()
        (tmp_path / "other" / export.MANIFEST).mkdir(parents=True)
        with pytest.raises(Fatal) as caught:
            site.export(tmp_path / "other")
        assert caught.value.code is Exit.DIRECTORY


FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 3600}\n"


class House:
    """A daemon's directories with three files in review and one sorted, and what was dropped in all."""

    def __init__(self, root: Path, identify: Callable[[Path], Identity]) -> None:
        site = ReviewSite(root, identify)
        for name in ("a.jpeg", "b.jpeg", "c.jpeg"):
            site.file(name, UNSURE, name.encode())
        site.file("d.jpeg", HAND, b"d")
        site.book.close()
        self.site, self.root = site, root
        self.daemon = Daemon(root, FAST, stub=True)
        self.daemon.places.append(root / "rejected")
        self.dropped = self.daemon.digests()
        self.waiting = sorted((root / "review").iterdir())

    def review(self, *words: str | Path) -> int:
        """Run the command, in this process."""
        return main.main(["review", *map(str, words), "--config", str(self.daemon.config)])

    def killed(self, point: str, *words: str | Path) -> None:
        """Run it in one of its own, and see it die."""
        command = ("review", *map(str, words), "--config", str(self.daemon.config))
        ended = mednet(*command, env={"MEDNET_FAILPOINT": point})
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert self.daemon.digests() == self.dropped, "lost or doubled at the very moment of the kill"

    def check(self) -> None:
        check(self.daemon, self.dropped)


@pytest.fixture
def house(tmp_path: Path, identify: Callable[[Path], Identity]) -> House:
    return House(tmp_path, identify)


def test_beside_a_running_daemon(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon files what was said, although its next scan is an hour off; the command tells where to."""
    monkeypatch.setattr(review, "PATIENCE_S", 100.0)
    with house.daemon.start():
        assert house.review("accept", house.waiting[0], "cxr", "--note", "a rib", "--json") == Exit.OK
        line = json.loads(capsys.readouterr().out)
        assert (line["state"], line["uid"], line["note"]) == (
            "filed",
            verdicts.current_reviewer(os.environ).uid,
            "a rib",
        )
        assert line["destination"] == str(house.root / "sorted" / "CXR" / "a.jpeg")
        [logged] = house.daemon.events("verdict.filed")
        assert (logged["class"], logged["by"]) == ("CXR", line["user"])
        assert house.daemon.stop() == 0
    house.check()


def test_commands(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon: what waits is listed, one is shown, judged, exported; audit, explain and status know of it."""

    def told() -> str:
        return capsys.readouterr().out

    first, second, third = house.waiting
    (house.root / "review" / "by hand").write_bytes(b"x")
    assert house.review("list", "--json") == Exit.OK
    lines = [json.loads(line) for line in told().splitlines()]
    assert [line["path"] for line in lines] == [*map(str, house.waiting), str(house.root / "review" / "by hand")]
    assert [(line["reason"], line["class"]) for line in lines] == [("low_confidence", "CXR")] * 3 + [("unknown", None)]
    assert lines[0]["top"] == [["CXR", 0.5], ["Hand", 0.4]] and lines[0]["age_s"] >= 0
    (house.root / "review" / "by hand").unlink()
    assert house.review("accept", first, "CXR") == Exit.OK
    assert house.review("reject", second.name, third.name) == Exit.OK
    assert [p.name for p in sorted((house.root / "rejected").iterdir())] == ["b.jpeg", "c.jpeg"]
    assert house.review("accept", house.root / "sorted" / "CXR" / "a.jpeg", "Foot") == Exit.USAGE
    told()
    assert house.review("show", house.root / "rejected" / "b.jpeg") == Exit.OK
    shown = told()
    assert "is of none of the classes, says " in shown and "low_confidence" in shown
    assert house.review("export", house.root / "out") == Exit.OK
    assert "3 copied" in told()
    assert main.main(["audit", "--config", str(house.daemon.config)]) == Exit.OK
    assert "seen 4 = sorted 2 + review 0 + quarantined 0 + rejected 2 + pending 0" in told()
    main.main(["status", "--json", "--config", str(house.daemon.config)])
    state = json.loads(told())
    assert (state["verdicts"], state["total"]) == ({"filed": 3}, {"review": 3, "sorted": 1})
    house.check()


KILLED = ("judged", "decided", "renamed", "moved", "synced", "filed", "recovering")


@pytest.mark.parametrize("name", KILLED)
def test_killed_command(house: House, name: str) -> None:
    """A verdict on record is carried out by the next start of the daemon or the next command, wherever one died."""
    first, second, third = house.waiting
    house.killed("moved" if name == "recovering" else name, "accept", first, "CXR")
    if name == "recovering":
        house.killed(name, "reject", second)
    if name in ("judged", "renamed", "recovering"):
        with house.daemon.start():
            house.daemon.until(lambda: not house.site.verdicts("state = 'open'"))
            assert house.daemon.stop() == 0
    else:
        assert house.review("reject", third) == Exit.OK
    assert (house.root / "sorted" / "CXR" / "a.jpeg").exists()
    house.check()
    assert {verdict.state for verdict in house.site.verdicts()} == {"filed"}


@pytest.mark.parametrize("name", KILLED[1:-1])
def test_killed_daemon(house: House, name: str) -> None:
    """The daemon dies at it: the command that waits for it sees that, reconciles, and does it itself."""
    house.daemon.environ["MEDNET_FAILPOINT"] = name
    with house.daemon.start():
        assert house.review("reject", house.waiting[0]) == Exit.OK
        assert house.daemon.process is not None and house.daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
    assert (house.root / "rejected" / "a.jpeg").exists()
    house.check()


@pytest.mark.parametrize("name", ["mid-copy", "published", "unlinked"])
def test_killed_on_the_way_to_another_file_system(house: House, elsewhere: Path, name: str) -> None:
    """Killed in the middle of a copy: one file is left, and the verdict is carried out by the next start."""
    with house.daemon.config.open("a") as config:
        config.write(f"output: {{rejected: {elsewhere}/none}}\n")
    house.daemon.places[-1] = elsewhere / "none"
    command = ("review", "reject", str(house.waiting[0]), "--config", str(house.daemon.config))
    assert mednet(*command, env={"MEDNET_FAILPOINT": name}).returncode == -signal.SIGKILL
    with house.daemon.start():
        house.daemon.until(lambda: not house.site.verdicts("state = 'open'"))
        assert house.daemon.stop() == 0
    assert os.listdir(elsewhere / "none") == ["a.jpeg"]
    house.check()


def test_another_is_at_work(house: House) -> None:
    """Without a daemon and while `undo` is at work: the verdict is on record, and the exit code says that it waits."""
    with put_back.open_executor(house.site.path, house.site.inbox):
        assert house.review("accept", house.waiting[0], "Hand") == Exit.ALREADY_RUNNING
    assert [v.state for v in house.site.verdicts()] == ["open"]
    assert house.review("accept", house.waiting[1], "Hand") == Exit.OK
    assert [v.state for v in house.site.verdicts()] == ["filed", "filed"]


def test_behind_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user who called sudo is the one who judges; a user that the system does not know has a number."""
    assert verdicts.current_reviewer({"SUDO_UID": "0"}) == Reviewer(0, "root")
    assert verdicts.current_reviewer({"SUDO_UID": "987654"}) == Reviewer(987654, "987654")
    assert verdicts.current_reviewer({}).uid == os.getuid()
