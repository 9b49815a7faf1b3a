"""Arrivals: when events do not come, or not all of them, the scan serves, and it is told once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.dropped_files import Producer, check
from tests.support.waiting import LONGEST_S
from watcher.core import mounts
from watcher.core.errors import Retry
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.completeness import PendingFiles
from watcher.inbox.events import EventWatcher
from watcher.inbox.scan import Inbox

SCAN_S = 5.0


class Broken(EventWatcher):
    """A watch that can not be had, or not always."""

    why = ""
    starts = 0

    def start(self) -> None:
        self.starts += 1
        if self.why:
            raise Retry(self.why)
        super().start()


class Place:
    """Arrivals of a directory."""

    def __init__(self, path: Path, capacity: int = 100) -> None:
        self.path = path
        self.watch, self.pending = Broken(path, lambda: None), PendingFiles(2.0, 30.0, capacity)
        self.arrivals = Arrivals(Inbox(path), self.watch, self.pending, SCAN_S)

    def told(self) -> list[str]:
        """The events that the log is to tell."""
        return [notice.event for notice in self.arrivals.notices]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.arrivals.close()


def test_without_a_watch_the_scan_serves(place: Place) -> None:
    """A watch that can not be had is told once, however often it is tried again, and the scan finds the files."""
    place.watch.why = "no watch left"
    place.arrivals.keep_watched()
    (place.path / "a").touch()
    for turn in range(5):
        place.arrivals.look(turn * SCAN_S)
    assert "a" in place.pending
    assert place.watch.starts == 6
    assert place.told() == ["inbox.not_watched"]


def test_watch_comes_back(place: Place) -> None:
    """Once a watch is to be had it is taken, and told; another reason why there is none is told, too."""
    for why in ("no watch left", "no watch left", "no instance left", "", ""):
        place.watch.why = why
        place.arrivals.keep_watched()
    assert place.watch.is_current
    assert place.told() == ["inbox.not_watched", "inbox.not_watched", "inbox.watched"]


def test_burst_is_told_once(place: Place) -> None:
    """Events that are lost again and again bring a scan each time and one line, until a whole scan lost none."""
    place.arrivals.keep_watched()
    place.arrivals.look(0.0)
    for turn in range(3):
        (place.path / str(turn)).touch()
        place.watch.on_queue_overflow()
        place.arrivals.look(turn / 10)
        assert str(turn) in place.pending
    assert (place.arrivals.losses, place.told()) == (3, ["inbox.events_lost"])
    place.arrivals.look(SCAN_S * 2)
    place.watch.on_queue_overflow()
    place.arrivals.look(SCAN_S * 2)
    assert (place.arrivals.losses, place.told()) == (4, ["inbox.events_lost"] * 2)


def test_what_a_scan_under_way_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events lost during a scan bring another one as soon as that ends: it may have passed the file already."""
    monkeypatch.setattr("watcher.inbox.arrivals.SCAN_CHUNK", 1)
    place = Place(tmp_path)
    place.arrivals.keep_watched()
    (tmp_path / "a").touch()
    place.arrivals.look(0.0)
    assert place.arrivals.scanning
    place.watch.on_queue_overflow()
    place.arrivals.look(0.0)
    assert place.arrivals.scans == 1
    (tmp_path / "b").touch()
    assert place.arrivals.due_s() == 0.0
    for _ in range(3):
        place.arrivals.look(0.0)
    assert place.arrivals.scans == 2 and "b" in place.pending
    assert place.arrivals.due_s() == SCAN_S
    place.arrivals.close()


@pytest.mark.parametrize(("kind", "watched"), [("nfs4", False), ("fuse.sshfs", False), ("ext4", True)])
def test_shares_are_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, watched: bool) -> None:
    """On a share the kernel would tell of some arrivals only: not watched there, unless told to anywhere."""
    table = tmp_path / "mountinfo"
    table.write_text(f"27 1 0:1 / / rw - {kind} source rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    watch = EventWatcher(tmp_path, lambda: None, anywhere=False)
    if watched:
        watch.start()
    else:
        with pytest.raises(Retry, match=f"is on {kind}"):
            watch.start()
    assert watch.is_current is watched
    watch.stop()
    everywhere = EventWatcher(tmp_path, lambda: None)
    everywhere.start()
    assert everywhere.is_current
    everywhere.stop()


SLOW_SCAN = "inbox: {settle_s: 0.1, patience_s: 0.2, scan_interval_s: 600}\n"
FAST_SCAN = "inbox: {settle_s: 0.1, patience_s: 0.2, scan_interval_s: 0.2}\n"


def test_overflow_of_the_real_queue(tmp_path: Path) -> None:
    """While the daemon stands still the kernel's queue overflows: what it dropped is found at once, by one scan."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    daemon = Daemon(tmp_path, SLOW_SCAN, stub=True)
    producer = Producer(daemon, seed=7, link=False)
    with daemon:
        assert daemon.process is not None
        daemon.until(lambda: not os.listdir(daemon.inbox))
        daemon.process.send_signal(signal.SIGSTOP)
        for turn in range(queue + 1000):  # two names in turn: the kernel merges equal events that follow each other
            os.close(os.open(daemon.inbox / f".{turn % 2}", os.O_WRONLY | os.O_CREAT))
        producer.drop(20)
        daemon.process.send_signal(signal.SIGCONT)
        daemon.until_filed(20)
        assert daemon.stop() == 0
    [lost] = daemon.events("inbox.events_lost")
    assert lost["losses"] == 1
    for name in (".0", ".1"):
        (daemon.inbox / name).unlink()
    check(daemon, producer.dropped)


def test_no_watch_left(tmp_path: Path) -> None:
    """With ``max_user_watches`` used up files are sorted all the same, and one line says why they wait longer."""
    limited = "echo 0 > /proc/sys/user/max_inotify_watches && exec"
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", f"{limited} true"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip("needs user namespaces, whose own limit is set here")
    daemon = Daemon(tmp_path, FAST_SCAN, stub=True)
    daemon.command = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{limited} "$@"', "sh", *daemon.command]
    producer = Producer(daemon, seed=8, link=False)
    with daemon:
        producer.drop(20)
        daemon.until_filed(20)
        scans = len(daemon.events("inbox.not_watched"))
        assert daemon.stop() == 0
    [told] = daemon.events("inbox.not_watched")
    assert scans == 1 and "max_user_watches" in told["detail"]
    check(daemon, producer.dropped)


def test_events_or_no_start(tmp_path: Path) -> None:
    """With ``watch: events`` the daemon refuses to start where there are none, and says what to do."""
    limited = "echo 0 > /proc/sys/user/max_inotify_watches && exec"
    if subprocess.run(["unshare", "-Ur", "sh", "-c", f"{limited} true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces, whose own limit is set here")
    daemon = Daemon(tmp_path, "inbox: {watch: events}\n", stub=True)
    daemon.command = ["unshare", "-Ur", "sh", "-c", f'{limited} "$@"', "sh", *daemon.command]
    daemon.start(wait=False)
    assert daemon.process is not None and daemon.process.wait(timeout=LONGEST_S) == 5
    assert b"max_user_watches" in daemon.log.read_bytes()


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A directory, and a FUSE mount of it: what is written to the one appears in the other without an event."""
    if os.getuid() != 0 or not shutil.which("bindfs"):
        pytest.skip("needs root and bindfs (Debian: bindfs)")
    behind, mount = tmp_path / "behind", tmp_path / "fuse"
    behind.mkdir()
    mount.mkdir()
    if subprocess.run(["bindfs", behind, mount], capture_output=True, check=False).returncode:
        pytest.skip("FUSE can not be mounted here")
    yield behind, mount
    subprocess.run(["umount", mount], check=True)


def test_behind_a_real_share(tmp_path: Path, fuse: tuple[Path, Path]) -> None:
    """Files that arrive without an event, as on a network share, are sorted by the scan, and one line says so."""
    behind, mount = fuse
    daemon = Daemon(tmp_path, f"{FAST_SCAN[:-2]}, path: {mount}}}\n", stub=True)
    daemon.places[0] = mount
    producer = Producer(daemon, seed=9, link=False)
    with daemon:
        daemon.inbox = behind
        producer.drop(20)
        daemon.until_filed(20)
        assert daemon.stop() == 0
    [told] = daemon.events("inbox.not_watched")
    assert "fuse" in told["detail"]
    check(daemon, producer.dropped)
