"""Putting files back: what was quarantined or filed by mistake, with nothing lost, doubled or overwritten."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.filing_site import BROKEN, EMPTY, HAND, NOW, ODD, FilingSite
from watcher.core.errors import Exit, Fatal
from watcher.core.lock import Lock
from watcher.core.records import Decision, Filed, Identity, MoveOrder, Outcome, Timing
from watcher.filing import put_back, put_back_requests, quarantine_notes
from watcher.filing.mover import Mover
from watcher.filing.recovery import recover
from watcher.filing.takeover import Takeover
from watcher.inbox import claims
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger


@pytest.fixture
def site(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[FilingSite]:
    site = FilingSite(tmp_path, identify)
    yield site
    site.book.close()


class TestRetry:
    @pytest.mark.parametrize("name", ["a.png", ODD])
    def test_puts_all_back_under_their_names(self, site: FilingSite, name: str) -> None:
        """A quarantined file comes back under its name, its reason file goes, and the ledger has it."""
        number = site.file(name, BROKEN)
        [result] = site.retry()
        assert (result.state, result.destination) == ("restored", str(site.inbox / name))
        assert os.listdir(site.quarantine) == []
        assert (site.inbox / name).read_bytes() == b"a radiograph"
        assert site.entries()[1:] == [("restored", "retry", "filed", number)]
        assert site.retry() == []

    def test_chooses_by_reason(self, site: FilingSite) -> None:
        """With a reason, files quarantined for another stay."""
        site.file("a.png", BROKEN)
        site.file("b.png", EMPTY, b"")
        assert [r.request.name for r in site.retry(reason="empty")] == ["b.png"]
        assert (site.quarantine / "a.png").exists()

    def test_a_file_that_had_a_suffix_gets_its_name_back(self, site: FilingSite) -> None:
        """The name is the one it arrived under, not the one it had in quarantine."""
        site.file("a.png", BROKEN, b"one")
        site.file("a.png", BROKEN, b"two")
        second = next(site.quarantine.glob("a-*.png"))
        [result] = site.retry(second)
        assert result.destination == str(site.inbox / "a.png")
        assert (site.inbox / "a.png").read_bytes() == b"two"

    def test_a_taken_name_gets_a_suffix(self, site: FilingSite) -> None:
        """A file that has its name in the inbox by now is not overwritten."""
        site.file("a.png", BROKEN)
        (site.inbox / "a.png").write_bytes(b"the next")
        site.retry()
        assert sorted(p.read_bytes() for p in site.inbox.iterdir()) == [b"a radiograph", b"the next"]

    def test_a_repaired_file_goes_too(self, site: FilingSite) -> None:
        """A file that somebody mended in quarantine is put back as it is now."""
        site.file("a.png", BROKEN)
        (site.quarantine / "a.png").write_bytes(b"mended")
        [result] = site.retry(site.quarantine / "a.png")
        assert (result.state, (site.inbox / "a.png").read_bytes()) == ("restored", b"mended")

    def test_a_file_the_ledger_does_not_know(self, site: FilingSite) -> None:
        """A file that a person put into quarantine can be retried too, once, however often it is named."""
        (site.quarantine / ODD).write_bytes(b"x")
        [result] = site.retry(site.quarantine / ODD, site.quarantine / ODD)
        assert result.destination == str(site.inbox / ODD)
        assert site.entries() == [("restored", "retry", "filed", None)]

    def test_a_bare_name_is_one_in_quarantine(self, site: FilingSite, monkeypatch: pytest.MonkeyPatch) -> None:
        """As with `review`, the name alone will do, wherever the command is called from."""
        site.file("a.png", BROKEN)
        monkeypatch.chdir(site.inbox)
        [result] = site.retry(Path("a.png"))
        assert (result.state, result.destination) == ("restored", str(site.inbox / "a.png"))

    @pytest.mark.parametrize("path", ["sorted/Hand/a.png", "quarantine/a.png.reason.json", "quarantine/sub/x"])
    def test_other_paths_are_refused(self, site: FilingSite, path: str) -> None:
        """A path elsewhere, and a reason file, are wrong arguments: nothing is moved, not even what else is named."""
        site.file("a.png", BROKEN)
        with pytest.raises(Fatal) as caught:
            site.retry(site.quarantine / "a.png", site.root / path)
        assert caught.value.code is Exit.USAGE
        assert (site.quarantine / "a.png").exists()

    def test_a_file_that_is_gone(self, site: FilingSite) -> None:
        """A named file that is not there is told; unnamed, what was deleted by hand is not missed."""
        site.file("a.png", BROKEN)
        (site.quarantine / "a.png").unlink()
        assert [r.state for r in site.retry(site.quarantine / "a.png")] == ["left"]
        assert site.retry() == []

    def test_a_link_in_quarantine(self, site: FilingSite) -> None:
        """A link in quarantine is moved, never followed."""
        for name, to in (("link", "/nowhere"), ("to a directory", "/")):
            (site.quarantine / name).symlink_to(to)
            site.retry(site.quarantine / name)
            assert os.readlink(site.inbox / name) == to

    def test_the_reason_of_a_file_that_came_since_stays(self, site: FilingSite) -> None:
        """A reason file is removed with its own file only."""
        site.file("a.png", BROKEN)
        quarantine_notes.remove(site.quarantine / "a.png", lambda _: False)
        assert (site.quarantine / "a.png.reason.json").exists()

    @pytest.mark.parametrize("data", [b"the only copy", b'{"name": "", "reason": "", "what_to_do": ""}'])
    def test_a_file_called_like_a_reason_is_none(self, site: FilingSite, data: bytes) -> None:
        """A quarantined file that has the name of another's reason file stays when that other one goes back."""
        site.file("a.png.reason.json", BROKEN, data)
        site.file("a.png", BROKEN)
        site.retry(site.quarantine / "a.png")
        assert (site.quarantine / "a.png.reason.json").read_bytes() == data

    @pytest.mark.parametrize("sent", [False, True])
    def test_the_reason_of_a_file_that_was_removed_without_it(self, site: FilingSite, sent: bool) -> None:
        """It gives way to that of the next file of the name, unless it is a file that was sent and is called so."""
        site.file("a.png", EMPTY, b"")
        beside = site.quarantine / "a.png.reason.json"
        if sent:
            data = beside.read_bytes()
            beside.unlink()
            site.file(beside.name, BROKEN, data)
        (site.quarantine / "a.png").unlink()
        site.file("a.png", BROKEN, b"cut")
        assert json.loads(beside.read_bytes())["reason"] == ("empty" if sent else "truncated")

    def test_what_a_person_put_there_is_no_reason(self, site: FilingSite) -> None:
        """A file that has the name of a reason file and does not read like one is not removed."""
        site.file("a.png", BROKEN)
        for content in (b"[" * 100_000, b"a note", b"[]"):
            (site.quarantine / "a.png.reason.json").write_bytes(content)
            (site.quarantine / "a.png").rename(site.root / "aside")
            quarantine_notes.remove(site.quarantine / "a.png", site.book.was_bound_for)
            (site.root / "aside").rename(site.quarantine / "a.png")
            assert (site.quarantine / "a.png.reason.json").read_bytes() == content


class TestUndo:
    def test_since_a_time(self, site: FilingSite) -> None:
        """Files filed since that time come back, files filed before stay."""
        site.file("a.png", content=b"a")
        then = datetime.now(UTC) + timedelta(hours=1)
        site.book._clock = lambda: then + timedelta(minutes=1)
        number = site.file(ODD, content=b"b")
        [result] = site.undo(since=then)
        assert (result.request.path, result.state) == (str(site.hand / ODD), "restored")
        assert os.listdir(site.hand) == ["a.png"]
        assert site.entries()[2:] == [("restored", "undo", "filed", number)]

    def test_a_batch_or_one(self, site: FilingSite) -> None:
        """One transaction's files, or one decision's."""
        site.file("a.png", content=b"a")
        orders = [site.order(f"{n}.png", HAND, b"%d" % n) for n in range(3)]
        batch = site.executor.carry_out(orders)[0][0]
        assert [r.request.name for r in site.undo(number=batch + 2)] == ["2.png"]
        assert [r.request.name for r in site.undo(batch=batch)] == ["0.png", "1.png"]
        assert sorted(os.listdir(site.inbox)) == ["0.png", "1.png", "2.png"]

    def test_nothing_twice(self, site: FilingSite) -> None:
        """A file that was put back is not put back again, and putting back is not undone."""
        number = site.file("a.png")
        site.undo(number=number)
        site.file("b.png", content=b"b")
        (site.inbox / "a.png").unlink()
        assert [r.request.name for r in site.undo(batch=number)] == []
        assert [r.request.name for r in site.undo(since=NOW - timedelta(days=9999))] == ["b.png"]

    def test_what_changed_or_went_is_left_alone(self, site: FilingSite) -> None:
        """Other bytes, even of the same size and time, and files moved by hand stay as they are, and are told."""
        site.file("a.png", content=b"abc")
        site.file("b.png", content=b"b")
        found = (site.hand / "a.png").stat()
        (site.hand / "a.png").write_bytes(b"xyz")
        os.utime(site.hand / "a.png", ns=(found.st_atime_ns, found.st_mtime_ns))
        (site.hand / "b.png").rename(site.hand / "c.png")
        results = site.undo(since=NOW - timedelta(days=9999))
        assert [(r.state, r.why) for r in results] == [
            ("left", "it was changed since it was filed"),
            ("left", "it no longer lies there"),
        ]
        assert sorted(os.listdir(site.hand)) == ["a.png", "c.png"]

    def test_to_a_directory(self, site: FilingSite) -> None:
        """Into a directory of the person's choice, nothing there overwritten; where they lie already, nothing moves."""
        number = site.file("a.png")
        assert [r.why for r in site.undo(site.hand, number=number)] == ["it lies there already"]
        target = put_back.prepare_landing(site.root / "new" / "deep", site.inbox)
        (target / "a.png").write_bytes(b"other")
        [result] = site.undo(target, number=number)
        assert result.destination is not None and result.destination != str(target / "a.png")
        assert sorted(p.read_bytes() for p in target.iterdir()) == [b"a radiograph", b"other"]

    def test_dry_run_does_nothing(self, site: FilingSite) -> None:
        """Told what would be, also into a directory that is not there yet; nothing is moved or recorded."""
        number = site.file("a.png")
        [result] = site.undo(site.root / "new", dry=True, number=number)
        assert result.state == "planned"
        assert (os.listdir(site.hand), len(site.entries())) == (["a.png"], 1)

    def test_in_chunks(self, site: FilingSite) -> None:
        """Many files are put back in transactions of 64, and what is filed meanwhile is not among them."""
        site.executor.carry_out([site.order(f"{n}.png", HAND, b"%d" % n) for n in range(150)])
        with LedgerReader(site.path) as ledger_reader, put_back.open_executor(site.path, site.inbox) as executor:
            chosen = put_back_requests.filed(ledger_reader, since=NOW - timedelta(days=9999))
            for count, _ in enumerate(put_back.put_back(chosen, "undo", site.inbox, executor), 1):
                if count == 1:
                    site.file("again.png", content=b"again")
        assert count == 150
        with LedgerReader(site.path) as ledger_reader:
            sizes = [e.batch for e in ledger_reader.entries("outcome = 'restored'")]
        assert [sizes.count(batch) for batch in sorted(set(sizes))] == [64, 64, 22]
        assert os.listdir(site.hand) == ["again.png"]

    @pytest.mark.parametrize("text", ["yesterday", "5", "2w", "", "99999999d", "-1h"])
    def test_no_time_is_told(self, text: str) -> None:
        """A text that means no time is a wrong argument."""
        with pytest.raises(Fatal) as caught:
            put_back_requests.parse_since(text, NOW)
        assert caught.value.code is Exit.USAGE

    def test_times(self) -> None:
        """Ago, ISO 8601 with an offset, and local time without."""
        assert (
            put_back_requests.parse_since("90m", NOW)
            == put_back_requests.parse_since("2026-03-01T11:30+01:00", NOW)
            == NOW - timedelta(minutes=90)
        )
        assert put_back_requests.parse_since("2026-03-01", NOW) == datetime(2026, 3, 1).astimezone()


class TestOneAtATime:
    def test_a_second_is_told(self, site: FilingSite) -> None:
        """While one is at work another exits with code 6."""
        with put_back.open_executor(site.path, site.inbox), pytest.raises(Fatal) as caught:
            site.undo(number=1)
        assert caught.value.code is Exit.ALREADY_RUNNING
        assert str(os.getpid()) in str(caught.value)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can try")
    def test_root_is_told_to_be_the_daemons_user(self, site: FilingSite) -> None:
        """Run by root beside another user's ledger, nothing is made or moved that this user could not take over."""
        number = site.file("a.png", BROKEN)
        os.chown(site.path, 1000, 1000)
        before = sorted(os.listdir(site.path.parent))
        with pytest.raises(Fatal, match="belongs to user 1000") as caught:
            site.retry()
        assert (caught.value.code, sorted(os.listdir(site.path.parent))) == (Exit.DIRECTORY, before)
        assert [entry[3] for entry in site.entries()] == [None], number

    def test_no_ledger(self, tmp_path: Path) -> None:
        """It is told that no daemon ever ran here, and nothing is made."""
        with pytest.raises(Fatal) as caught:
            LedgerReader(tmp_path / "state" / "ledger.sqlite3")
        assert (caught.value.code, os.listdir(tmp_path)) == (Exit.DIRECTORY, [])


class TestKilledAtIt:
    """Files that a killed command left. It puts files into a place of its own first, which the daemon does not sort."""

    @pytest.fixture
    def half(self, site: FilingSite) -> Path:
        """A restored file, decided and not yet moved. Gives its path in the class directory."""
        number = site.file("a.png")
        path = site.hand / "a.png"
        self.decide(site, self.order(site, path, number))
        return path

    def order(self, site: FilingSite, path: Path, restores: int | None = None) -> MoveOrder:
        decision = Decision(Outcome.RESTORED, None, 0.0, "undo")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return MoveOrder("a.png", site.identify(path), digest, decision, Timing(0.0), str(path), restores)

    def decide(self, site: FilingSite, *orders: MoveOrder, to: Path | None = None) -> None:
        book = Ledger(site.path, owner="operator")
        with book.transaction():
            book.record_decisions(
                orders, [str(to or put_back.prepare_landing(site.inbox, site.inbox))] * len(orders), None
            )
        book.close()

    def copy(self, site: FilingSite, half: Path) -> Path:
        """Make the files that a kill between copy and unlink leaves."""
        copy = claims.owner_directory(site.inbox, "operator") / half.name
        shutil.copy2(half, copy)
        return copy

    def take_over(self, site: FilingSite) -> tuple[list[str], list[str]]:
        """Take over as the daemon does after each scan. Return the endings' states, and the names in the inbox now."""
        endings, names = Takeover(site.book, site.inbox, site.path.parent)()
        return [ending.state for ending in endings], names

    def test_only_the_dead_are_reconciled(self, site: FilingSite, half: Path) -> None:
        """The daemon leaves alone what a living command is about to end, and takes it over when that is dead."""
        assert site.book.unended_owners() == ["operator"]
        half.rename(claims.owner_directory(site.inbox, "operator") / "a.png")
        held = Lock(site.path.with_name("operator.lock"))
        held.acquire()
        assert self.take_over(site) == ([], [])
        held.release()
        assert self.take_over(site) == (["filed"], ["a.png"])
        assert os.listdir(site.inbox) == ["a.png"]

    def test_the_next_command_reconciles_first(self, site: FilingSite, half: Path) -> None:
        """The next command ends the old decision, then does its own work."""
        [result] = site.undo(since=NOW - timedelta(days=9999))
        assert result.state == "restored"
        assert [state for _, _, state, _ in site.entries()] == ["filed", "returned", "filed"]

    def test_the_next_command_ends_what_a_dead_daemon_left(self, site: FilingSite) -> None:
        """Moved to quarantine by a daemon that died before it could say so: retried like any other, nothing missing."""
        order = site.order("a.png", BROKEN, b"half")
        with site.book.transaction():
            site.book.record_decisions([order], [str(site.quarantine)], "m" * 64, site.inbox)
        (site.inbox / "a.png").rename(site.quarantine / "a.png")
        [result] = site.retry(site.quarantine / "a.png")
        assert result.state == "restored"
        assert site.entries() == [("quarantine", "truncated", "filed", None), ("restored", "retry", "filed", 1)]

    def test_what_the_daemon_is_moving_is_left_alone(self, site: FilingSite) -> None:
        """A file that has come to quarantine just now, and whose decision has not ended, is left: try again."""
        order = site.order("a.png", BROKEN, b"half")
        with site.book.transaction():
            site.book.record_decisions([order], [str(site.quarantine)], "m" * 64, site.inbox)
        (site.inbox / "a.png").rename(site.quarantine / "a.png")
        alive = Lock(site.path.with_name("daemon.lock"))
        alive.acquire()
        [result] = site.retry(site.quarantine / "a.png")
        alive.release()
        assert (result.state, result.why) == ("left", "the daemon is moving it just now: try again")

    def test_killed_between_copy_and_unlink(self, site: FilingSite, half: Path) -> None:
        """The source goes, the copy comes into the inbox: one file."""
        self.copy(site, half)
        assert self.take_over(site) == (["filed"], ["a.png"])
        assert (os.listdir(site.hand), os.listdir(site.inbox)) == ([], ["a.png"])

    def test_killed_before_the_copy(self, site: FilingSite, half: Path) -> None:
        """The file stays where it was."""
        assert self.take_over(site) == (["returned"], [])
        assert (os.listdir(site.hand), half.read_bytes()) == (["a.png"], b"a radiograph")

    def test_of_two_equal_files_none_is_lost(self, site: FilingSite) -> None:
        """Of two files equal in name, bytes and time one was copied before the kill: the other stays where it is."""
        for _ in range(2):
            order = site.order("a.png", HAND, b"a radiograph")
            os.utime(site.inbox / "a.png", ns=(10**18, 10**18))
            site.executor.carry_out([replace(order, identity=site.identify(site.inbox / "a.png"))])
        first, second = sorted(site.hand.iterdir())
        self.decide(site, self.order(site, first), self.order(site, second))
        shutil.copy2(first, claims.owner_directory(site.inbox, "operator") / "a.png")
        assert self.take_over(site) == (["filed", "returned"], ["a.png"])
        assert len(os.listdir(site.hand)) == 1

    def test_put_back_twice_under_one_name(self, site: FilingSite, half: Path) -> None:
        """A file of the same name that passed through before does not hide a copy that just came."""
        [result] = site.undo(since=NOW - timedelta(days=9999))
        again = replace(self.order(site, site.inbox / "a.png"), decision=HAND, source=None)
        [(_, sorted_again)] = site.executor.carry_out([again])
        assert (result.state, type(sorted_again)) == ("restored", Filed)
        self.decide(site, self.order(site, half))
        self.copy(site, half)
        assert self.take_over(site) == (["filed"], ["a.png"])
        assert not half.exists()

    def test_a_file_to_be_put_where_it_is_stays(self, site: FilingSite, half: Path) -> None:
        """A decision to move a file into its own directory, by whatever path, never removes it."""
        recover(site.book, "operator")
        (site.root / "alias").symlink_to(site.hand)
        for directory in (site.hand, site.root / "alias"):
            self.decide(site, self.order(site, half), to=directory)
            assert [ending.state for ending in recover(site.book, "operator")] == ["returned"]
            assert half.exists()

    def test_unfinished_copies_are_cleared(self, site: FilingSite, half: Path) -> None:
        """The hidden file of a copy that was cut short goes, and never comes into the inbox."""
        partial = claims.owner_directory(site.inbox, "operator") / ".0123.mednet-partial"
        partial.write_bytes(b"half")
        assert claims.release(site.inbox, "operator") == []
        assert self.take_over(site) == (["returned"], [])
        assert not partial.exists()

    def test_an_inbox_that_takes_nothing_more(
        self, site: FilingSite, half: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Put back, and the inbox fails right then: that is told, nothing is lost, and the daemon brings it later."""
        recover(site.book, "operator")
        with monkeypatch.context() as patch, pytest.raises(Fatal, match="can not be put into the inbox") as caught:
            patch.setattr(claims, "publish", _refuse)
            site.undo(since=NOW - timedelta(days=9999))
        assert caught.value.code is Exit.DIRECTORY
        assert [state for _, _, state, _ in site.entries()] == ["filed", "returned", "filed"]
        assert (claims.owner_directory(site.inbox, "operator") / "a.png").read_bytes() == b"a radiograph"
        assert self.take_over(site) == ([], ["a.png"])

    def test_a_ledger_that_can_not_follow(self, site: FilingSite, monkeypatch: pytest.MonkeyPatch) -> None:
        """Moved, and the ledger can not be written: that is told, and nothing appears in the inbox before it can."""
        site.file("a.png")
        other = sqlite3.connect(site.path, isolation_level=None)
        flush = Mover.flush

        def then_busy(filing: Mover) -> None:
            flush(filing)
            other.execute("begin immediate")

        monkeypatch.setattr(Mover, "flush", then_busy)
        monkeypatch.setattr("watcher.ledger.writer.BUSY_S", 0)
        with pytest.raises(Fatal, match="can not be written after files were moved"):
            site.undo(since=NOW - timedelta(days=9999))
        assert os.listdir(site.inbox) == [claims.DIRECTORY]
        other.close()
        assert self.take_over(site) == (["filed"], ["a.png"])


def _refuse(*_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
