"""Inbox: the scan is the truth, events only tell of it sooner."""

from __future__ import annotations

import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog.observers import inotify_c

from tests.support import waiting
from tests.support.waiting import LONGEST_S
from watcher.config.settings import IGNORE
from watcher.core.errors import Retry
from watcher.core.records import Identity
from watcher.inbox.events import EventWatcher
from watcher.inbox.scan import Inbox


class TestSweep:
    def test_lists_every_name(self, tmp_path: Path) -> None:
        """Files, links, pipes and names that are no UTF-8 are all told, each once."""
        names = [b"a.png", b"new\nline", b"\xff\xfe.jpg", "ä".encode()]
        for name in names:
            (tmp_path / os.fsdecode(name)).touch()
        (tmp_path / "link").symlink_to("nowhere")
        os.mkfifo(tmp_path / "pipe")
        found = sorted(os.fsencode(name) for name in Inbox(tmp_path).scan())
        assert found == sorted([*names, b"link", b"pipe"])

    def test_reads_as_it_is_asked_for(self, tmp_path: Path) -> None:
        """A sweep holds no list: files removed behind its back in a large directory are not all told of."""
        for number in range(5000):
            (tmp_path / str(number)).touch()
        scan = Inbox(tmp_path).scan()
        first = next(scan)
        for path in tmp_path.iterdir():
            path.unlink()
        assert len({first, *scan}) < 5000

    def test_ignores_patterns(self, tmp_path: Path) -> None:
        """Names that match a pattern are passed over whole; a newline does not smuggle one past, nor hide one."""
        for name in ("a.part", ".hidden", "b.png", "c.part.png", "x\ny.part", "d.part\nz.png"):
            (tmp_path / name).touch()
        assert set(Inbox(tmp_path, [".*", "*.part"]).scan()) == {"b.png", "c.part.png", "d.part\nz.png"}

    def test_ignores_by_default_what_is_in_flight_and_junk(self, tmp_path: Path) -> None:
        """Names of unfinished files, and of files that storage and desktops leave, are ignored; no real name is."""
        inbox = Inbox(tmp_path, IGNORE)
        in_flight = """.a.png.Xw3k9Z .syncthing.a.png.tmp ~syncthing~a.png.tmp a.part a.png.filepart a.partial a.png.tmp
            a.crdownload a.download a.png~ ~$a.doc .nfs0000000000a1b2 .fuse_hidden0001 .mednet-claims"""
        junk = """@eaDir ._a.png Thumbs.db thumbs.db .DS_Store desktop.ini @Recycle #recycle #snapshot $RECYCLE.BIN
            lost+found .Trash-1000 .AppleDouble"""
        assert [name for name in (in_flight + junk).split() if inbox.wants(name)] == []
        assert not inbox.wants("System Volume Information")
        real = ["a.png", "IM0001", "1.2.840.10008.5.1.4", "part.png", "tmp", "a.temp.dcm", "DICOMDIR", "a.PART1.png"]
        assert [name for name in real if not inbox.wants(name)] == []

    def test_no_pattern_ignores_nothing(self, tmp_path: Path) -> None:
        """Without patterns every name is wanted, hidden ones too."""
        inbox = Inbox(tmp_path)
        assert inbox.wants(".hidden") and inbox.wants("") and inbox.wants("a")

    def test_counts_directories(self, tmp_path: Path) -> None:
        """Directories are not told as files but counted, by whole sweeps only; a link to one is a file."""
        for name in ("one", "two", ".ignored"):
            (tmp_path / name).mkdir()
        (tmp_path / "link").symlink_to("one")
        inbox = Inbox(tmp_path, [".*"])
        scan = inbox.scan()
        assert next(scan) == "link"
        assert inbox.directories_ignored == 0
        assert list(scan) == []
        assert inbox.directories_ignored == 2

    def test_absent_directory_is_not_an_empty_one(self, tmp_path: Path) -> None:
        """An inbox that is gone raises Retry with its path; it is not mistaken for an empty one."""
        with pytest.raises(Retry, match=r"nowhere.*No such file"):
            list(Inbox(tmp_path / "nowhere").scan())

    def test_file_in_its_place_raises_retry(self, tmp_path: Path) -> None:
        """Something that is no directory can not be listed: Retry."""
        (tmp_path / "file").touch()
        with pytest.raises(Retry):
            list(Inbox(tmp_path / "file").scan())


class TestLook:
    def test_tells_which_file(self, tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
        """The identity changes when the content is rewritten."""
        inbox, path = Inbox(tmp_path), tmp_path / "a"
        path.write_bytes(b"1")
        before = inbox.identify("a")
        assert before == identify(path)
        path.write_bytes(b"22")
        assert inbox.identify("a") != before

    def test_link_stands_for_itself(self, tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
        """A symbolic link is looked at, never through."""
        (tmp_path / "target").write_bytes(b"x" * 100)
        (tmp_path / "link").symlink_to("target")
        found = Inbox(tmp_path).identify("link")
        assert found == identify(tmp_path / "link")
        assert found is not None and found.size == len("target")

    def test_nothing_and_directories_are_none(self, tmp_path: Path) -> None:
        """A name that stands for nothing, or for a directory, is None."""
        (tmp_path / "directory").mkdir()
        inbox = Inbox(tmp_path)
        assert inbox.identify("nothing") is None
        assert inbox.identify("directory") is None
        assert inbox.identify("x" * 300) is None


class Watched:
    """A started Watch on a real directory, and the wake-ups it gave."""

    def __init__(self, path: Path, capacity: int = 65536) -> None:
        self.path, self.wakes = path, threading.Semaphore(0)
        self.watch = EventWatcher(path, self.wakes.release, capacity)
        self.watch.start()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for wake-ups until something holds: as the loop does, never by polling."""
        while not true():
            assert self.wakes.acquire(timeout=LONGEST_S), "was not woken"

    def names_up_to(self, last: str) -> list[str]:
        """Return the names that were told, up to the sentinel that the test made last."""
        names: list[str] = []
        self.until(lambda: names.extend(self.watch.take_names()) or last in names)  # type: ignore[func-returns-value]
        return names


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    watched = Watched(inbox)
    yield watched
    watched.watch.stop()


class TestWatch:
    def test_tells_files_closed_after_writing(self, watched: Watched) -> None:
        """A file is told when it is closed, not when it is created, and names come as they are."""
        with (watched.path / "slow.png").open("wb") as slow:
            slow.write(b"half")
            slow.flush()
            (watched.path / os.fsdecode(b"\xff\n.png")).write_bytes(b"x")
            assert watched.names_up_to(os.fsdecode(b"\xff\n.png")) == [os.fsdecode(b"\xff\n.png")]
        assert watched.names_up_to("slow.png") == ["slow.png"]

    def test_tells_files_moved_in(self, watched: Watched, tmp_path: Path) -> None:
        """A file renamed into the inbox, or to its final name within it, is told under the name it has now."""
        (tmp_path / "outside").write_bytes(b"x")
        os.rename(tmp_path / "outside", watched.path / "in.png")
        (watched.path / "a.part").write_bytes(b"x")
        os.rename(watched.path / "a.part", watched.path / "a.png")
        assert watched.names_up_to("a.png") == ["in.png", "a.part", "a.png"]

    def test_says_nothing_of_files_moved_out(self, watched: Watched, tmp_path: Path) -> None:
        """The daemon's own moves out of the inbox, and removals, wake nobody."""
        for name in ("a", "b"):
            (watched.path / name).write_bytes(b"x")
        watched.names_up_to("b")
        os.rename(watched.path / "a", tmp_path / "a")
        os.unlink(watched.path / "b")
        (watched.path / "last").write_bytes(b"x")
        assert watched.names_up_to("last") == ["last"]

    def test_says_nothing_of_directories(self, watched: Watched, tmp_path: Path) -> None:
        """A directory moved in is no arrival."""
        (tmp_path / "directory").mkdir()
        os.rename(tmp_path / "directory", watched.path / "directory")
        (watched.path / "last").write_bytes(b"x")
        assert watched.names_up_to("last") == ["last"]

    def test_hard_link_is_left_to_the_scan(self, watched: Watched, tmp_path: Path) -> None:
        """A file that arrives as a hard link gives no event; the scan finds it."""
        (tmp_path / "outside").write_bytes(b"x")
        os.link(tmp_path / "outside", watched.path / "linked")
        (watched.path / "last").write_bytes(b"x")
        assert watched.names_up_to("last") == ["last"]
        assert set(Inbox(watched.path).scan()) == {"linked", "last"}

    def test_misses_nothing_of_a_burst(self, watched: Watched) -> None:
        """Of a thousand files written at once each is told."""
        for number in range(1000):
            (watched.path / str(number)).touch()
        (watched.path / "last").write_bytes(b"x")
        assert set(watched.names_up_to("last")) == {"last", *map(str, range(1000))}

    def test_more_than_capacity_is_told_as_lost(self, tmp_path: Path) -> None:
        """Names beyond the capacity are not kept; has_lost_events() says so, once."""
        watched = Watched(tmp_path, capacity=2)
        try:
            assert not watched.watch.has_lost_events()
            for name in "abc":
                (tmp_path / name).touch()
            watched.until(watched.watch.has_lost_events)
            assert len(list(watched.watch.take_names())) == 2
            assert not watched.watch.has_lost_events()
        finally:
            watched.watch.stop()

    def test_overflow_of_the_kernel_is_told_as_lost(self, watched: Watched) -> None:
        """The kernel's own overflow event, as watchdog passes it on, wakes the loop and counts as lost events, once."""
        overflow = inotify_c.InotifyEvent(
            inotify_c.WatchDescriptor(-1), inotify_c.InotifyConstants.IN_Q_OVERFLOW, 0, b""
        )
        assert watched.watch._reader is not None
        watched.watch._reader.handle_event(overflow)
        assert watched.wakes.acquire(timeout=0)
        assert watched.watch.has_lost_events()
        assert not watched.watch.has_lost_events()

    def test_absent_directory_raises_retry(self, tmp_path: Path) -> None:
        """A directory that is not there can not be watched: Retry, no thread left behind, and a later start works."""
        threads = threading.active_count()
        watch = EventWatcher(tmp_path / "later", lambda: None)
        with pytest.raises(Retry, match="later"):
            watch.start()
        assert threading.active_count() == threads
        assert not watch.is_current
        watch.stop()
        (tmp_path / "later").mkdir()
        watch.start()
        assert watch.is_current
        watch.stop()

    def test_no_inotify_left_raises_retry(self, tmp_path: Path) -> None:
        """Without an inotify instance (here without a descriptor, the same error) Retry is raised: scans serve."""
        watch = EventWatcher(tmp_path, lambda: None)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(Retry):
                watch.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_notices_that_the_directory_is_gone(self, tmp_path: Path) -> None:
        """A watch on a removed directory is no longer current, nor is it once another directory has its place."""
        inbox = tmp_path / "inbox"
        inbox.mkdir()
        watch = EventWatcher(inbox, lambda: None)
        watch.start()
        assert watch.is_current
        shutil.rmtree(inbox)
        assert not watch.is_current
        inbox.mkdir()  # it may get the inode of the old one: then the kernel's event tells, a moment later
        waiting.until(lambda: not watch.is_current)
        watch.stop()
        watch.start()
        assert watch.is_current
        watch.stop()

    def test_notices_that_the_directory_was_replaced(self, tmp_path: Path) -> None:
        """A directory renamed away, with another put in its place, makes the watch worth nothing."""
        inbox = tmp_path / "inbox"
        inbox.mkdir()
        watch = EventWatcher(inbox, lambda: None)
        watch.start()
        inbox.rename(tmp_path / "aside")
        inbox.mkdir()
        assert not watch.is_current
        watch.stop()

    def test_stop_ends_its_threads(self, tmp_path: Path) -> None:
        """Nothing runs on after stop, and stopping twice is harmless."""
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        watch = EventWatcher(tmp_path, lambda: None)
        watch.start()
        watch.stop()
        watch.stop()
        assert not watch.is_current
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) == descriptors
