"""Disks that fill up or become read-only under the real daemon: it says so, loses nothing, and goes on by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.dropped_files import Producer, check

FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.2}\n"
Disk = Callable[[Path], None]


@pytest.fixture
def mount() -> Iterator[Disk]:
    """Puts a small disk of its own at a path."""
    mounted: list[Path] = []

    def put(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", "size=1m", "mednet-test", path]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount here")
        mounted.append(path)

    yield put
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


def _fill(disk: Path) -> Callable[[], None]:
    """Fill it to the last byte. Gives what frees it again."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return ballast.unlink


def _read_only(disk: Path) -> Callable[[], None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True) and None


@pytest.mark.parametrize(
    ("disk", "trouble", "told"),
    [
        ("review", _fill, "No space left"),
        ("quarantine", _read_only, "Read-only"),
        ("state", _fill, "the ledger can not be written"),
    ],
)
def test_comes_back_by_itself(
    tmp_path: Path, mount: Disk, disk: str, trouble: Callable[[Path], Callable[[], None]], told: str
) -> None:
    """While a disk takes nothing its files wait in the inbox, others are filed; afterwards all are, in one life."""
    mount(tmp_path / disk)
    daemon = Daemon(tmp_path, FAST, stub=True)
    daemon.environ["STUB_PAUSE_S"] = "0.2"
    with daemon.start():
        mend = trouble(tmp_path / disk)
        producer = Producer(daemon, seed=5)
        producer.drop(60)
        daemon.until(lambda: bool(daemon.events("filing.failed")))
        assert told in daemon.events("filing.failed")[0]["detail"]
        if disk != "state":
            daemon.until_filed(30)
        mend()
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


def test_a_start_beneath_a_missing_mount_is_refused(tmp_path: Path) -> None:
    """After an orderly end, too: where a class directory's mount is missing nothing is made, nor sorted."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        daemon = Daemon(tmp_path, FAST, stub=True)
        out = daemon.places[1]
        out.mkdir()
        if os.stat(disk).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("/dev/shm is no other file system here")
        if subprocess.run(["mount", "--bind", disk, out], capture_output=True, check=False).returncode:
            pytest.skip("no right to mount here")
        try:
            producer = Producer(daemon, seed=8)
            for mounted in (True, False, True):
                producer.drop(10)
                if not mounted:
                    subprocess.run(["umount", out], check=True)
                    refused = subprocess.run(
                        [*daemon.command, daemon.config], capture_output=True, text=True, check=False
                    )
                    assert (refused.returncode, "Mount what belongs there" in refused.stderr) == (5, True)
                    assert (os.listdir(out), len(os.listdir(daemon.inbox))) == ([], 10)
                    subprocess.run(["mount", "--bind", disk, out], check=True)
                    continue
                with daemon.start():
                    daemon.until(lambda: not os.listdir(daemon.inbox))
                    assert daemon.stop() == 0
            check(daemon, producer.dropped)
        finally:
            subprocess.run(["umount", "-l", out], capture_output=True, check=False)


def test_an_inbox_that_lets_nothing_go(tmp_path: Path, mount: Disk) -> None:
    """Read-only for a while: nothing is copied out of it, try after try; afterwards each file is filed once."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    mount(daemon.inbox)
    daemon.environ["STUB_PAUSE_S"] = "0.1"
    with daemon.start():
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        producer = Producer(daemon, seed=6, link=False)
        producer.drop(20)
        mend = _read_only(daemon.inbox)
        daemon.process.send_signal(signal.SIGCONT)
        daemon.until(lambda: _failures(daemon) > 2)
        assert [path for place in daemon.places[1:] for path in place.rglob("*") if path.is_file()] == []
        mend()
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


def _failures(daemon: Daemon) -> int:
    """Decisions that came to nothing: of the trouble itself only the first is told within a minute."""
    with contextlib.closing(sqlite3.connect(daemon.root / "state" / "ledger.sqlite3")) as ledger:
        return int(ledger.execute("select count(distinct batch) from decision").fetchone()[0])
