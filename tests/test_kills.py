"""Nothing lost, whatever dies: the real daemon killed by SIGKILL at every step of a file's way."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import Producer, check
from chaos import Chaos
from harness import Daemon

from watcher import failpoints

SHM = Path("/dev/shm")
ACROSS = ("mid-copy", "published")
LINKS = ("linked", "unlinked")
FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than the inbox."""
    if not SHM.is_dir() or os.stat(SHM).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    path = Path(tempfile.mkdtemp(dir=SHM))
    yield path
    shutil.rmtree(path)


def _die_and_recover(daemon: Daemon, name: str, count: int) -> None:
    producer = Producer(daemon, seed=count)
    producer.drop(40)
    daemon.environ["MEDNET_FAILPOINT"] = f"{name}:{count}"
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(timeout=60) == -signal.SIGKILL, f"{name} was not reached"
    del daemon.environ["MEDNET_FAILPOINT"]
    assert not producer.dropped - daemon.digests(), "lost at the very moment of the kill"
    with daemon.start():
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("name", ["claimed", "decoded", "renamed"])
def test_killed_at_a_file(tmp_path: Path, name: str, count: int) -> None:
    """Killed at one file of many: nothing is lost at that moment, and the next start leaves each in one place."""
    _die_and_recover(Daemon(tmp_path, FAST, stub=True), name, count)


@pytest.mark.parametrize("name", ["decided", "moved", "synced", "filed"])
def test_killed_at_a_batch(tmp_path: Path, name: str) -> None:
    """Killed around the ledger's two transactions: the next start finishes or takes back every move."""
    _die_and_recover(Daemon(tmp_path, FAST, stub=True), name, 1)


@pytest.mark.parametrize("name", LINKS)
def test_killed_between_link_and_unlink(tmp_path: Path, name: str) -> None:
    """Where renameat2 is not known: a file with two names at the kill has one after the next start."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    daemon.environ["STUB_NO_RENAMEAT2"] = "1"
    _die_and_recover(daemon, name, 5)


def test_killed_where_there_are_no_links(tmp_path: Path) -> None:
    """Where neither renameat2 nor links are known: the empty file that takes a name is gone after the next start."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    daemon.environ.update(STUB_NO_RENAMEAT2="1", STUB_NO_LINKS="1")
    _die_and_recover(daemon, "reserved", 5)


@pytest.mark.parametrize("name", (*ACROSS, "unlinked"))
def test_killed_while_copying_to_another_file_system(tmp_path: Path, elsewhere: Path, name: str) -> None:
    """Killed in the middle of a copy, before or after the source is unlinked: one whole file is left."""
    daemon = Daemon(tmp_path, f"{FAST}output: {{sorted: {elsewhere}/sorted}}\n", stub=True)
    daemon.places[1] = elsewhere / "sorted"
    _die_and_recover(daemon, name, 5)


def test_killed_in_recovery_itself(tmp_path: Path) -> None:
    """Killed after a move, and again while the next start reconciles: the start after that still finds all."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    producer = Producer(daemon, seed=1)
    producer.drop(40)
    for name in ("moved", "recovering", "recovering"):
        daemon.environ["MEDNET_FAILPOINT"] = name
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(timeout=60) == -signal.SIGKILL, f"{name} was not reached"
    del daemon.environ["MEDNET_FAILPOINT"]
    with daemon.start():
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


def test_every_failpoint_is_tested() -> None:
    """No named place to die at is left out, here or in test_shared.py."""
    tested = {
        "claimed",
        "decoded",
        "renamed",
        "decided",
        "moved",
        "synced",
        "filed",
        "recovering",
        "reserved",
        "taken",
        "adopted",
        *LINKS,
        *ACROSS,
    }
    assert tested == set(failpoints.NAMES)


def test_random_kills_of_workers(tmp_path: Path) -> None:
    """Two daemons share the inbox and are killed in turn at random moments: each file still ends in one place."""
    tally = Chaos(tmp_path, seed=8, workers=2).run(kills=12, files_a_kill=20)
    assert (tally.kills, tally.files) == (12, 240)


def test_random_kills(tmp_path: Path) -> None:
    """Killed 15 times at random moments while files keep coming: each in one place, the ledger agrees."""
    tally = Chaos(tmp_path, seed=7).run(kills=15, files_a_kill=20)
    assert tally.kills == 15
    assert tally.files == 300
