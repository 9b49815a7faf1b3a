"""Directories below the inbox: sorted as files in it are, with their paths, and never left by way of a link."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.random import default_rng
from watchdog.observers import inotify_c

from tests.support.daemon import Daemon, digest, mednet
from tests.support.dropped_files import check, picture
from tests.support.waiting import LONGEST_S
from watcher.core import no_overwrite, safe_paths
from watcher.core.errors import Retry, Vanished
from watcher.core.records import Decision, Filed, Identity, MoveOrder, Outcome, Returned, Timing
from watcher.filing import put_back, put_back_requests
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.duplicates import DuplicateRules
from watcher.filing.mover import Mover
from watcher.filing.recovery import recover
from watcher.images.decode import Limits
from watcher.images.decoder_process import answer
from watcher.inbox import claims, scan
from watcher.inbox.arrivals import NEW_DIRECTORY_SCAN_S, Arrivals
from watcher.inbox.completeness import PendingFiles
from watcher.inbox.events import EventWatcher
from watcher.inbox.scan import Inbox
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger

HAND = Decision(Outcome.SORTED, "Hand", 0.99)
UNSURE = Decision(Outcome.REVIEW, "Hand", 0.4, "low_confidence")
BROKEN = Decision(Outcome.QUARANTINE, None, 0.0, "truncated")
ODD = os.fsdecode(b"odd \xff\n")


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


def tree(root: Path) -> dict[str, bytes]:
    """Every file below, by its path; a link by what it says."""
    return {
        str(path.relative_to(root)): os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


class TestSweep:
    def test_tells_paths(self, tmp_path: Path) -> None:
        """Files at any depth are told by their paths, each once, and the directories they lie in are known."""
        names = ["a.png", "b/a.png", "b/c/a.png", f"b/{ODD}/{ODD}.png"]
        put(tmp_path, *names)
        (tmp_path / "empty").mkdir()
        found = Inbox(tmp_path, recursive=True)
        assert sorted(found.scan()) == sorted(names)
        assert {name for name, _ in found.folders} == {"b", "b/c", f"b/{ODD}", "empty"}
        assert (found.directories_ignored, list(Inbox(tmp_path).scan())) == (0, ["a.png"])

    def test_leaves_out_what_is_ignored_with_all_below(self, tmp_path: Path) -> None:
        """Hidden directories, those of network storage and the daemon's own are passed over, whatever is in them."""
        put(tmp_path, "@eaDir/a.png", ".hidden/b/a.png", "b/@eaDir/a.png", "b/.a.png", "b/a.part", "b/a.png")
        put(tmp_path, f"{claims.DIRECTORY}/operator/a.png", f"b/{claims.DIRECTORY}/x/a.png", "b/.a.mednet-partial")
        found = Inbox(tmp_path, [".*", "@eaDir", "*.part"], recursive=True)
        assert list(found.scan()) == ["b/a.png"]
        assert found.directories_ignored == 0
        assert not found.wants("@eaDir/a.png") and not found.wants("b/.hidden/a.png") and found.wants("b/a.png")
        assert "a.png" not in {Path(name).name for name in Inbox(tmp_path / claims.DIRECTORY, [".*"]).scan()}

    def test_a_sentinel_is_one_at_the_top_only(self, tmp_path: Path) -> None:
        """A file of the sentinel's name in a directory below is a file like others."""
        put(tmp_path, "MOUNTED", "b/MOUNTED")
        assert list(Inbox(tmp_path, sentinel="MOUNTED", recursive=True).scan()) == ["b/MOUNTED"]

    def test_many_empty_directories_are_no_long_wait(self, tmp_path: Path) -> None:
        """Between any two there is a step without a name, for whoever has other things to do."""
        for number in range(20):
            (tmp_path / str(number)).mkdir()
        put(tmp_path, "a.png")
        found = Inbox(tmp_path, recursive=True)
        assert sorted(found.scan_in_steps()) == [""] * 20 + ["a.png"]
        assert list(found.scan()) == ["a.png"]

    def test_never_follows_a_link(self, tmp_path: Path) -> None:
        """A link to a directory is a file that is none; nothing behind it is told, and there is no end to go round."""
        put(tmp_path, "outside/a.png", "inbox/b/a.png")
        (tmp_path / "inbox/link").symlink_to(tmp_path / "outside")
        (tmp_path / "inbox/b/round").symlink_to(tmp_path / "inbox")
        assert sorted(Inbox(tmp_path / "inbox", recursive=True).scan()) == ["b/a.png", "b/round", "link"]

    def test_goes_only_so_deep(self, tmp_path: Path) -> None:
        """Directories within each other without end, or with endless names, are passed over and counted."""
        deep = "/".join("d" * (scan.MOST_DEEP + 1))
        put(tmp_path, f"{deep[:-2]}/in.png", f"{deep}/out.png")
        put(tmp_path, "/".join(["long" * 60] * 5) + "/out.png")
        found = Inbox(tmp_path, recursive=True)
        assert [Path(name).name for name in found.scan()] == ["in.png"]
        assert found.directories_ignored == 2

    def test_stays_on_one_file_system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory that is another file system is passed over and counted: nobody would miss it, unmounted."""
        put(tmp_path, "a.png", "mounted/a.png")
        found, stat = Inbox(tmp_path, recursive=True), os.stat

        def elsewhere(path: Any, **more: Any) -> os.stat_result:
            told = stat(path, **more)
            return os.stat_result([*told[:2], told.st_dev + 1, *told[3:10]]) if path == tmp_path else told

        monkeypatch.setattr(os, "stat", elsewhere)
        assert (list(found.scan()), found.directories_ignored) == (["a.png"], 1)

    def test_one_that_is_removed_meanwhile_hides_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A directory that somebody removes while the inbox is listed is gone, and the inbox is not."""
        (tmp_path / "gone").mkdir()
        (tmp_path / "x.jpeg").touch()
        entries = Inbox._entries

        def slow(self: Inbox, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
            for name, entry in entries(self, below):
                if name == "gone":
                    (tmp_path / "gone").rmdir()
                yield name, entry

        monkeypatch.setattr(Inbox, "_entries", slow)
        assert [name for name in Inbox(tmp_path, recursive=True).scan() if name] == ["x.jpeg"]

    def test_one_that_can_not_be_entered_hides_no_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory that may not be read is counted, one that has gone meanwhile is not; the others are told."""
        put(tmp_path, "shut/a.png", "gone/a.png", "open/a.png")
        held = safe_paths.open_directory

        def refused(root: Path, below: str) -> Any:
            if below in ("shut", "gone"):
                raise OSError(errno.EACCES if below == "shut" else errno.ENOENT, "no")
            return held(root, below)

        monkeypatch.setattr(safe_paths, "open_directory", refused)
        found = Inbox(tmp_path, recursive=True)
        assert (list(found.scan()), found.directories_ignored) == (["open/a.png"], 1)


class TestLinks:
    """A directory below the inbox that becomes a link, whenever it does, leads nobody out."""

    @pytest.fixture
    def swapped(self, tmp_path: Path) -> Path:
        """An inbox with ``b`` a link to a directory outside that holds ``a.png``."""
        put(tmp_path, "outside/a.png", "inbox/c/a.png")
        (tmp_path / "inbox/b").symlink_to(tmp_path / "outside")
        return tmp_path / "inbox"

    def test_looks_at_nothing_behind_it(self, swapped: Path) -> None:
        """A path behind a link has no identity."""
        assert Inbox(swapped).identify("b/a.png") is None
        assert Inbox(swapped).identify("c/a.png") is not None

    def test_reads_nothing_behind_it(self, swapped: Path) -> None:
        """A decoder says that there is no such file."""
        ask = (os.fsencode(swapped), b"b/a.png", Limits(), lambda: None)
        assert b'"gone": true' in answer(*ask) and b"digest" not in answer(*ask)
        assert b"digest" in answer(ask[0], b"c/a.png", *ask[2:])

    @pytest.mark.parametrize("digests", [True, False])
    def test_moves_nothing_from_behind_it(
        self, swapped: Path, identify: Callable[..., Identity], digests: bool
    ) -> None:
        """A move that was decided upon before is refused: the file outside stays, even if it is the very same one."""
        outside = swapped.parent / "outside/a.png"
        with pytest.raises(Vanished, match=r"inbox/b/a\.png"):
            Mover(swapped).move(
                "b/a.png",
                identify(outside),
                no_overwrite.digest(outside) if digests else None,
                swapped.parent / "sorted",
            )
        assert tree(swapped.parent / "outside") == {"a.png": b"outside/a.png"}
        assert not (swapped.parent / "sorted").exists()

    def test_makes_nothing_behind_it(self, swapped: Path) -> None:
        """A way down through a link is refused where it must be exact, and goes beside it where it need not."""
        with pytest.raises(NotADirectoryError), safe_paths.make_directory(swapped, "b/d"):
            pass
        assert no_overwrite.free_directory(swapped, "b/d") == "b-1/d"
        for bad in ("..", "c/../..", "c//d", "/etc", "."):
            with pytest.raises(OSError, match="not a path below it"), safe_paths.make_directory(swapped, bad):
                pass
        assert tree(swapped.parent / "outside") == {"a.png": b"outside/a.png"}

    def test_swapped_during_the_move(
        self, tmp_path: Path, identify: Callable[..., Identity], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Swapped between look and rename, the file that was decided upon moves, and the one behind the link stays."""
        put(tmp_path, "outside/a.png", "inbox/b/a.png")
        rename = no_overwrite.rename_noreplace

        def swap_first(source: Path, target: Path) -> None:
            if (tmp_path / "inbox/b").is_dir() and not (tmp_path / "aside").exists():
                (tmp_path / "inbox/b").rename(tmp_path / "aside")
                (tmp_path / "inbox/b").symlink_to(tmp_path / "outside")
            rename(source, target)

        monkeypatch.setattr(no_overwrite, "rename_noreplace", swap_first)
        filing = Mover(tmp_path / "inbox")
        (tmp_path / "sorted").mkdir()
        path = filing.move("b/a.png", identify(tmp_path / "inbox/b/a.png"), None, tmp_path / "sorted", below="x/y")
        filing.flush()
        assert path == tmp_path / "sorted/x/y/a.png" and path.read_bytes() == b"inbox/b/a.png"
        assert tree(tmp_path / "outside") == {"a.png": b"outside/a.png"}
        assert tree(tmp_path / "aside") == {}


class Watched:
    """A recursive watch, and the wake-ups it gave."""

    def __init__(self, path: Path) -> None:
        self.inbox, self.wakes = Inbox(path, recursive=True), threading.Semaphore(0)
        self.watch = EventWatcher(path, self.wakes.release, recursive=True)
        self.watch.start()
        self.cover()

    def cover(self) -> bool:
        list(self.inbox.scan())
        return self.watch.watch_subdirectories(self.inbox.folders)

    def until(self, true: Callable[[], bool]) -> None:
        while not true():
            assert self.wakes.acquire(timeout=LONGEST_S), "was not woken"

    def told_up_to(self, last: str) -> list[str]:
        names: list[str] = []
        self.until(lambda: names.extend(self.watch.take_names()) or last in names)  # type: ignore[func-returns-value]
        return names


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    put(tmp_path, "b/c/old")
    watched = Watched(tmp_path)
    yield watched
    watched.watch.stop()


class TestWatch:
    def test_tells_of_files_below(self, watched: Watched, tmp_path: Path) -> None:
        """Each file that is closed below is told once, by its path."""
        put(tmp_path, "b/c/a.png", f"b/{ODD}.png", "last")
        assert watched.told_up_to("last") == ["b/c/a.png", f"b/{ODD}.png", "last"]

    def test_new_directories_stir(self, watched: Watched, tmp_path: Path) -> None:
        """A directory made or moved in, at any depth, asks for a scan; covered, it tells. It is new once."""
        for make in (lambda: (tmp_path / "b/new").mkdir(), lambda: (tmp_path / "b/new").rename(tmp_path / "b/c/d")):
            make()
            watched.until(watched.watch.has_new_directory)
            assert not watched.watch.has_new_directory()
            assert watched.cover() and not watched.cover()
        put(tmp_path, "b/c/d/a.png")
        assert watched.told_up_to("b/c/d/a.png") == ["b/c/d/a.png"]

    def test_another_directory_in_the_same_place(self, watched: Watched, tmp_path: Path) -> None:
        """One that takes another's name is watched anew, and the other under the name that it has now."""
        (tmp_path / "b/c").rename(tmp_path / "b/d")
        (tmp_path / "b/c").mkdir()
        assert watched.cover()
        put(tmp_path, "b/c/new", "b/d/old", "last")
        assert watched.told_up_to("last") == ["b/c/new", "b/d/old", "last"]

    def test_removed_directories_are_forgotten(self, watched: Watched, tmp_path: Path) -> None:
        """A directory that is gone costs nothing on: neither when the kernel tells, nor when the scan does first."""
        shutil.rmtree(tmp_path / "b/c")
        watched.cover()
        put(tmp_path, "last")
        watched.told_up_to("last")
        assert {name for name, _ in watched.watch._subdirectories} == {"b"}
        assert watched.watch.is_current
        (tmp_path / "b/c").mkdir()
        assert watched.cover()

    def test_very_many_are_watched_bit_by_bit(
        self, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So many at a time, told as new until all are watched."""
        monkeypatch.setattr("watcher.inbox.events.WATCH_CHUNK", 2)
        for number in range(5):
            (tmp_path / str(number)).mkdir()
        assert [watched.cover() for _ in range(4)] == [True, True, True, False]

    def test_none_left(self, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the kernel has no watch left for one more directory, Retry says so; later it is watched."""
        (tmp_path / "b/new").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(inotify_c, "inotify_add_watch", lambda *_: -1)
            patch.setattr("ctypes.get_errno", lambda: errno.ENOSPC)
            with pytest.raises(Retry, match="max_user_watches"):
                watched.cover()
        assert watched.cover()

    def test_stop_ends_all(self, tmp_path: Path) -> None:
        """Nothing runs on after stop; started anew, everything is to be covered again."""
        put(tmp_path, "b/c/old")
        descriptors = len(os.listdir("/proc/self/fd"))
        watched = Watched(tmp_path)
        watched.watch.stop()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert not watched.watch.watch_subdirectories(watched.inbox.folders)
        watched.watch.start()
        assert watched.watch.watch_subdirectories(watched.inbox.folders)
        watched.watch.stop()


class TestArrivals:
    @pytest.fixture
    def arrivals(self, tmp_path: Path) -> Iterator[Arrivals]:
        watch = EventWatcher(tmp_path, lambda: None, recursive=True)
        arrivals = Arrivals(Inbox(tmp_path, recursive=True), watch, PendingFiles(2.0, 30.0, 100), 5.0)
        arrivals.keep_watched()
        yield arrivals
        arrivals.close()

    def test_a_new_directory_is_scanned_soon(self, arrivals: Arrivals, tmp_path: Path) -> None:
        """Files that were in a new directory before its watch are found by a scan a second later, and one after."""
        arrivals.look(0.0)
        assert arrivals.due_s() == 5.0
        put(tmp_path, "new/a.png")
        assert arrivals.watch is not None
        assert arrivals.watch._new_directory.wait(LONGEST_S)
        arrivals.look(1.0)
        assert (arrivals.due_s(), "new/a.png" in arrivals.pending) == (1.0 + NEW_DIRECTORY_SCAN_S, False)
        arrivals.look(1.0 + NEW_DIRECTORY_SCAN_S)
        assert "new/a.png" in arrivals.pending
        put(tmp_path, "new/b.png")  # just before it was watched, for all that anybody knows
        assert arrivals.due_s() == 1.0 + 2 * NEW_DIRECTORY_SCAN_S
        arrivals.look(1.0 + 2 * NEW_DIRECTORY_SCAN_S)
        assert "new/b.png" in arrivals.pending
        assert arrivals.due_s() == 1.0 + 2 * NEW_DIRECTORY_SCAN_S + 5.0

    def test_a_new_directory_that_a_scan_has_passed(
        self, arrivals: Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that is made during a scan brings another soon after."""
        monkeypatch.setattr("watcher.inbox.arrivals.SCAN_CHUNK", 1)
        put(tmp_path, "a.png")
        arrivals.look(0.0)
        assert arrivals.scanning and arrivals.watch is not None
        arrivals.watch._new_directory.set()
        arrivals.look(0.5)
        assert (arrivals.scans, arrivals.due_s()) == (1, 0.5 + NEW_DIRECTORY_SCAN_S)

    def test_directories_that_are_not_watched(
        self, arrivals: Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Lack of watches is told once, and once more when there are some; the scan serves meanwhile."""
        put(tmp_path, "new/a.png")
        with monkeypatch.context() as patch:
            patch.setattr(inotify_c, "inotify_add_watch", lambda *_: -1)
            patch.setattr("ctypes.get_errno", lambda: errno.ENOSPC)
            for turn in range(3):
                arrivals.look(turn * 5.0)
        assert "new/a.png" in arrivals.pending
        arrivals.look(15.0)
        assert [notice.event for notice in arrivals.notices] == ["inbox.not_watched", "inbox.watched"]


class Site:
    """Directories, a ledger, and a daemon's executor that keeps subdirectories."""

    def __init__(self, root: Path, identify: Callable[[Path], Identity]) -> None:
        self.root, self.identify = root, identify
        self.inbox, self.hand, self.quarantine = root / "inbox", root / "sorted/Hand", root / "quarantine"
        for directory in (self.inbox, self.hand, self.quarantine, root / "review"):
            directory.mkdir(parents=True)
        self.path = root / "state/ledger.sqlite3"
        self.ledger = Ledger(self.path)
        self.places = Destinations(root / "sorted", root / "review", self.quarantine, root / "rejected")
        self.executor = self.hire(True)

    def hire(self, keep: bool, **rules: Any) -> DecisionExecutor:
        return DecisionExecutor(
            self.ledger, Mover(self.inbox), self.places, "m", DuplicateRules(**rules), keep_subdirectories=keep
        )

    def file(self, executor: DecisionExecutor | None = None, **decisions: Decision) -> list[str | Returned]:
        """File the inbox: what is called so, whatever its path, by its decision. Where each lies, from the root."""
        orders = []
        for name in sorted(Inbox(self.inbox, recursive=True).scan()):
            path = self.inbox / name
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            decision = decisions.get(path.stem, HAND)
            orders.append(MoveOrder(name, self.identify(path), content, decision, Timing(0.0)))
        results = (executor or self.executor).carry_out(orders)
        return [
            str(Path(result.destination).relative_to(self.root)) if isinstance(result, Filed) else result
            for _, result in results
        ]

    def put_back(self, why: put_back.Command, to: Path | None = None) -> list[str | None]:
        name = put_back_requests.name_in_inbox(self.inbox, recursive=True)
        with LedgerReader(self.path) as ledger_reader, put_back.open_executor(self.path, self.inbox) as executor:
            if why == "retry":
                chosen = put_back_requests.quarantined(ledger_reader, name_of=name)
            else:
                chosen = list(put_back_requests.filed(ledger_reader, batch=1, name_of=name))
            return [result.destination for result in put_back.put_back(chosen, why, to or self.inbox, executor)]


@pytest.fixture
def site(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[Site]:
    site = Site(tmp_path, identify)
    yield site
    site.ledger.close()


class TestFiling:
    def test_paths_are_kept_below_the_class(self, site: Site) -> None:
        """A sorted file lies as far below its class as below the inbox; what a person is to see lies at the top."""
        put(site.inbox, "a.png", "x/b.png", f"x/{ODD}/c.png", "x/unsure.png", "x/y/broken.png")
        found = site.file(unsure=UNSURE, broken=BROKEN)
        hand = {"a.png", "x/b.png", f"x/{ODD}/c.png"}
        assert set(found) == {f"sorted/Hand/{name}" for name in hand} | {"review/unsure.png", "quarantine/broken.png"}
        assert set(tree(site.hand)) == hand
        assert '"name": "x/y/broken.png"' in (site.quarantine / "broken.png.reason.json").read_text()
        with LedgerReader(site.path) as ledger_reader:
            assert {(e.name, e.source) for e in ledger_reader.entries()} == {
                (Path(name).name, str(site.inbox / name)) for name in (*hand, "x/unsure.png", "x/y/broken.png")
            }

    def test_or_not(self, site: Site) -> None:
        """Otherwise files of one name from several directories lie beside each other."""
        put(site.inbox, "a.png", "x/a.png", "y/a.png")
        found = site.file(site.hire(False))
        assert len(set(found)) == 3
        assert sorted(tree(site.hand).values()) == [b"a.png", b"x/a.png", b"y/a.png"]
        assert {path.parent for path in site.hand.rglob("*")} == {site.hand}

    def test_a_name_that_a_file_has(self, site: Site) -> None:
        """If a file or a link has a directory's name, the next free one is taken; the link is not followed."""
        put(site.root, "outside/old", "sorted/Hand/x")
        (site.hand / "y").symlink_to(site.root / "outside")
        put(site.inbox, "x/a.png", "y/a.png", "z/x/a.png")
        put(site.hand, "z/x/old")
        assert site.file() == ["sorted/Hand/x-1/a.png", "sorted/Hand/y-1/a.png", "sorted/Hand/z/x/a.png"]
        assert tree(site.root / "outside") == {"old": b"outside/old"}

    def test_collisions_are_those_of_the_path(self, site: Site) -> None:
        """An equal name in another directory is no collision; in one directory it is, also on the way there."""
        put(site.inbox, "x/a.png", "y/a.png")
        executor = site.hire(True, same_name_other_bytes="review")
        assert site.file(executor) == ["sorted/Hand/x/a.png", "sorted/Hand/y/a.png"]
        (site.inbox / "x/a.png").write_bytes(b"other")
        assert site.file(executor) == ["review/a.png"]

    def test_directories_that_come_and_go_are_not_on_record(self, site: Site) -> None:
        """Inbox and class directory are noted, by which the next start tells a mount that has gone; none below them."""
        put(site.inbox, "x/a.png")
        site.file()
        noted = {
            path: site.ledger.recorded_directory(path)
            for path in (site.inbox, site.hand, site.inbox / "x", site.hand / "x")
        }
        assert [place is not None for place in noted.values()] == [True, True, False, False]

    def test_a_class_directory_that_was_removed(self, site: Site) -> None:
        """It is made again, with what is below."""
        put(site.inbox, "x/a.png")
        site.hand.rmdir()
        assert site.file() == ["sorted/Hand/x/a.png"]

    def test_a_directory_shut_by_its_producer(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A producer who puts something else in a directory's place right after a move does not stop the daemon."""
        put(site.inbox, "x/a.png")
        move = site.executor.mover.move

        def swap_after(*words: Any) -> Path:
            found = move(*words)
            (site.inbox / "x").rmdir()
            (site.inbox / "x").write_bytes(b"a file")
            return found

        monkeypatch.setattr(site.executor.mover, "move", swap_after)
        assert site.file() == ["sorted/Hand/x/a.png"]


class TestPutBack:
    @pytest.mark.parametrize("why", ["retry", "undo"])
    def test_where_it_came_from(self, site: Site, why: put_back.Command) -> None:
        """A file goes back to its own directory, which is made again if it is gone."""
        put(site.inbox, "x/y/a.png", "x/a.png", "a.png")
        before = tree(site.inbox)
        site.file(**{"a": BROKEN} if why == "retry" else {})
        shutil.rmtree(site.inbox / "x")
        assert sorted(map(str, site.put_back(why))) == sorted(str(site.inbox / name) for name in before)
        assert tree(site.inbox) == before
        assert sorted(path.name for path in site.inbox.iterdir()) == ["a.png", "x"]

    def test_a_link_in_the_way(self, site: Site) -> None:
        """A link that has the directory's name by now is not followed: the next free name is taken."""
        put(site.root, "outside/old")
        put(site.inbox, "x/a.png")
        site.file()
        (site.inbox / "x").rmdir()
        (site.inbox / "x").symlink_to(site.root / "outside")
        assert site.put_back("undo") == [str(site.inbox / "x-1/a.png")]
        assert tree(site.root / "outside") == {"old": b"outside/old"}

    def test_elsewhere(self, site: Site) -> None:
        """Put into a directory of one's choice, files keep their paths there, too; a second time nothing is to do."""
        put(site.inbox, "x/a.png", "y/a.png")
        site.file()
        assert site.put_back("undo", site.root / "recheck") == [
            str(site.root / "recheck/x/a.png"),
            str(site.root / "recheck/y/a.png"),
        ]
        assert site.put_back("undo", site.root / "recheck") == []

    def test_where_it_lies_already(self, site: Site) -> None:
        """A file that would go where it lies is left alone, under its name."""
        put(site.inbox, "x/a.png")
        site.file()
        assert site.put_back("undo", site.hand) == [None]
        assert tree(site.hand).keys() == {"x/a.png"}

    def test_after_a_kill(self, site: Site) -> None:
        """A file that a killed command left on its way back is put where it belongs, and its place is gone."""
        put(claims.owner_directory(site.inbox, "operator"), "x/y/a.png", "b.png", "x/.1.mednet-partial")
        assert sorted(claims.release(site.inbox, "operator")) == ["b.png", "x/y/a.png"]
        assert claims.count_files(site.inbox) == 0
        assert tree(site.inbox).keys() == {"b.png", "x/y/a.png", ".mednet-claims/operator/x/.1.mednet-partial"}

    def test_places_below_are_places(self, tmp_path: Path) -> None:
        """A directory below an owner's place passes through to the one below the inbox."""
        place = claims.owner_directory(tmp_path, "operator")
        assert claims.unclaimed_directory(place / "x/y") == tmp_path / "x/y"
        assert claims.inbox_of(place / "x/y") == claims.inbox_of(place) == claims.unclaimed_directory(place) == tmp_path
        assert claims.is_claimed(place / "x") and not claims.is_claimed(tmp_path / "x")


class TestRecover:
    def _die(self, site: Site, name: str) -> MoveOrder:
        """A daemon that has decided upon a file, and no more."""
        put(site.inbox, name)
        path = site.inbox / name
        order = MoveOrder(name, site.identify(path), no_overwrite.digest(path), HAND, Timing(0.0))
        below = os.path.dirname(name)
        with site.ledger.transaction():
            site.ledger.record_decisions([order], [str(site.hand / below)], "m", site.inbox)
            site.ledger.record_directories([site.inbox, site.hand])
        return order

    def test_a_directory_that_its_producer_removed(self, site: Site) -> None:
        """Emptied by the move and then removed, it does not look like a mount that has gone: the start goes on."""
        self._die(site, "x/a.png")
        (site.hand / "x").mkdir()
        (site.inbox / "x/a.png").rename(site.hand / "x/a.png")
        (site.inbox / "x").rmdir()
        [ending] = recover(site.ledger)
        assert (ending.state, ending.destination) == ("filed", str(site.hand / "x/a.png"))

    def test_an_inbox_that_is_gone_with_its_directories(self, site: Site) -> None:
        """A mount that has gone is told from that: the start waits, and nothing is called missing."""
        self._die(site, "x/a.png")
        site.inbox.rename(site.root / "away")
        site.inbox.mkdir()
        with pytest.raises(Retry):
            recover(site.ledger)

    def test_unfinished_copies_below_a_class(self, site: Site) -> None:
        """A copy that a kill left half way below a class directory is removed: no start would look for it there."""
        self._die(site, "x/a.png")
        put(site.hand, "x/.1.mednet-partial", "x/other.png")
        [ending] = recover(site.ledger)
        assert (ending.state, list(tree(site.hand))) == ("returned", ["x/other.png"])


FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: %s, recursive: true}\n"
KEEP = "output: {keep_subdirectories: true}\n"


def test_the_real_daemon(tmp_path: Path) -> None:
    """Files below a real inbox are sorted before the next scan is due, by their paths, put back and sorted again."""
    daemon, rng = Daemon(tmp_path, FAST % 600 + KEEP, stub=True), default_rng(4)
    names = ["a.jpeg", "x/a.jpeg", "x/y/a.jpeg", "new/z/a.jpeg"]
    data = {name: picture(rng) for name in names}
    (daemon.inbox / "x/y").mkdir(parents=True)
    with daemon:
        for name in names:
            (daemon.inbox / name).parent.mkdir(parents=True, exist_ok=True)
            (daemon.inbox / name).write_bytes(data[name])
        (daemon.inbox / "x/link").symlink_to("..")
        daemon.until(lambda: {line["name"] for line in daemon.outcomes()} >= set(names))
        told = {line["name"]: line for line in daemon.outcomes()}
        for name in names:
            place = "review" if told[name]["event"] == "image.review" else f"sorted/{told[name]['class']}"
            path = Path(told[name]["destination"])
            assert path.read_bytes() == data[name]
            assert path == tmp_path / place / name or (place == "review" and path.parent == tmp_path / place)
        assert daemon.stop() == 0
    undone = mednet("undo", "--since", "1d", "--config", str(daemon.config))
    assert undone.returncode == 0, undone.stderr
    assert {name: (daemon.inbox / name).read_bytes() for name in names} == data
    audited = mednet("audit", "--config", str(daemon.config))
    assert audited.returncode == 0, audited.stdout
    with daemon.start():
        daemon.until(lambda: not [path for path in daemon.inbox.rglob("*") if path.is_file()])
        assert daemon.stop() == 0
    for link in tmp_path.rglob("link*"):
        link.unlink()
    check(daemon, Counter(map(digest, data.values())))
