"""Nothing lost, whatever dies: the real daemon killed by SIGKILL at every step of a file's way."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.proofs.chaos import Chaos
from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import Producer, check
from tests.support.waiting import LONGEST_S
from watcher.core import failpoints

ACROSS = ("mid-copy", "published")
LINKS = ("linked", "unlinked")
BELOW = ("", "x", "x/y")
FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"


def _die_and_recover(daemon: Daemon, name: str, count: int, below: Sequence[str] = ("",)) -> None:
    producer = Producer(daemon, seed=count, below=below)
    producer.drop(40)
    daemon.environ["MEDNET_FAILPOINT"] = f"{name}:{count}"
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL, f"{name} was not reached"
    del daemon.environ["MEDNET_FAILPOINT"]
    assert not producer.dropped - daemon.digests(), "lost at the very moment of the kill"
    with daemon.start():
        daemon.until(daemon.emptied)
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
    """Without renameat2, a file that has two names at the kill has one after the next start."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    daemon.environ["STUB_NO_RENAMEAT2"] = "1"
    _die_and_recover(daemon, name, 5)


def test_killed_where_there_are_no_links(tmp_path: Path) -> None:
    """Without renameat2 and links, the empty file that reserves a name is gone after the next start."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    daemon.environ.update(STUB_NO_RENAMEAT2="1", STUB_NO_LINKS="1")
    _die_and_recover(daemon, "reserved", 5)


@pytest.mark.parametrize("name", (*ACROSS, "unlinked"))
def test_killed_while_copying_to_another_file_system(tmp_path: Path, elsewhere: Path, name: str) -> None:
    """Killed in the middle of a copy, before or after the source is unlinked: one whole file is left."""
    daemon = Daemon(tmp_path, f"{FAST}output: {{sorted: {elsewhere}/sorted}}\n", stub=True)
    daemon.places[1] = elsewhere / "sorted"
    _die_and_recover(daemon, name, 5)


@pytest.mark.parametrize("name", ["renamed", "moved", "filed", *ACROSS])
def test_killed_with_directories_below(tmp_path: Path, elsewhere: Path, name: str) -> None:
    """Files from directories below the inbox, kept below their classes, are found again there, copies too."""
    place = elsewhere if name in ACROSS else tmp_path
    places = f"output: {{sorted: {place}/sorted, keep_subdirectories: true}}\n"
    daemon = Daemon(tmp_path, FAST.replace("}", ", recursive: true}") + places, stub=True)
    daemon.places[1] = place / "sorted"
    _die_and_recover(daemon, name, 5 if name in ("renamed", *ACROSS) else 1, BELOW)
    assert not list(daemon.places[1].rglob(".*")), "unfinished copies are left"


@pytest.mark.parametrize("name", ["decided", "renamed", "moved", "restored"])
def test_killed_while_putting_files_back_below(tmp_path: Path, name: str) -> None:
    """A killed undo beside a running daemon: what was on its way to a directory below gets there and is sorted."""
    daemon = Daemon(
        tmp_path, FAST.replace("}", ", recursive: true}") + "output: {keep_subdirectories: true}\n", stub=True
    )
    producer = Producer(daemon, seed=3, below=BELOW)
    producer.drop(40)
    with daemon.start():
        daemon.until(daemon.emptied)
        for directory in (daemon.inbox / "x/y", daemon.inbox / "x"):
            directory.rmdir()
        killed = mednet("undo", "--since", "1d", "--config", str(daemon.config), env={"MEDNET_FAILPOINT": name})
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        daemon.until(lambda: daemon.emptied() and not _unended(daemon))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


def test_killed_in_recovery_itself(tmp_path: Path) -> None:
    """Killed after a move, and again while the next start reconciles: the start after that still finds all."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    producer = Producer(daemon, seed=1)
    producer.drop(40)
    for name in ("moved", "recovering", "recovering"):
        daemon.environ["MEDNET_FAILPOINT"] = name
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL, f"{name} was not reached"
    del daemon.environ["MEDNET_FAILPOINT"]
    with daemon.start():
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


def _files_filed(daemon: Daemon) -> Producer:
    """Some files, sorted, in review and in quarantine."""
    producer = Producer(daemon, seed=3)
    producer.drop(40)
    with daemon.start():
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    return producer


RETRY, UNDO = ("retry",), ("undo", "--since", "1d")
AT_WORK = ("decided", "renamed", "moved", "synced", "filed", "restored", "recovering")


@pytest.mark.parametrize("name", AT_WORK)
@pytest.mark.parametrize(("command", "then"), [(RETRY, "daemon"), (UNDO, "daemon"), (UNDO, "command")])
def test_killed_while_putting_files_back(tmp_path: Path, command: tuple[str, ...], name: str, then: str) -> None:
    """A killed retry or undo is reconciled by the next start of the daemon, or by the next such command."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    producer = _files_filed(daemon)
    words = (*command, "--config", str(daemon.config))
    for point in ["moved", name] if name == "recovering" else [name]:
        killed = mednet(*words, env={"MEDNET_FAILPOINT": point})
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert daemon.digests() == producer.dropped, "lost or doubled at the very moment of the kill"
    if then == "command":
        ended = mednet(*words)
        assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
        check(daemon, producer.dropped)
    with daemon.start():
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


@pytest.mark.parametrize("name", [*ACROSS, "unlinked"])
def test_killed_while_putting_files_back_from_another_file_system(tmp_path: Path, elsewhere: Path, name: str) -> None:
    """Killed in the middle of a copy into the inbox, while the daemon goes on and files what came: one is left."""
    daemon = Daemon(tmp_path, f"{FAST}output: {{sorted: {elsewhere}/sorted}}\n", stub=True)
    daemon.places[1] = elsewhere / "sorted"
    producer = _files_filed(daemon)
    words = ("undo", "--since", "1d", "--config", str(daemon.config))
    with daemon.start():
        killed = mednet(*words, env={"MEDNET_FAILPOINT": f"{name}:9"})
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        daemon.until(lambda: not [path for path in daemon.inbox.iterdir() if not path.name.startswith(".")])
        assert daemon.stop() == 0
    with daemon.start():
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


@pytest.mark.parametrize("name", AT_WORK[:-1])
def test_killed_while_the_daemon_sorts_what_comes_back(tmp_path: Path, name: str) -> None:
    """A command killed beside a running daemon: that takes over what was put back and sorts it, nothing is missing."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    producer = _files_filed(daemon)
    words = ("undo", "--since", "1d", "--config", str(daemon.config))
    with daemon.start():
        killed = mednet(*words, env={"MEDNET_FAILPOINT": name})
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        daemon.until(lambda: not os.listdir(daemon.inbox) and not _unended(daemon))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


@pytest.mark.parametrize("name", ["decided", "published"])
def test_killed_and_started_before_the_inbox_is_mounted(tmp_path: Path, elsewhere: Path, name: str) -> None:
    """The start is refused while an empty directory is in the inbox's place; once it is mounted all is reconciled."""
    places = f"output: {{sorted: {elsewhere}/s, review: {elsewhere}/r, quarantine: {elsewhere}/q}}\n"
    daemon = Daemon(tmp_path, FAST + places, stub=True)
    daemon.places[1:] = [elsewhere / place for place in "srq"]
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "--bind", disk, daemon.inbox], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount here")
    try:
        producer = Producer(daemon, seed=6, link=False)
        producer.drop(10)
        daemon.environ["MEDNET_FAILPOINT"] = name
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
        daemon.environ.clear()
        subprocess.run(["umount", daemon.inbox], check=True)
        refused = subprocess.run([*daemon.command, daemon.config], capture_output=True, text=True, check=False)
        assert (refused.returncode, "Mount what belongs there" in refused.stderr) == (5, True)
        assert os.listdir(daemon.inbox) == []
        subprocess.run(["mount", "--bind", disk, daemon.inbox], check=True)
        with daemon.start():
            daemon.until(lambda: not os.listdir(daemon.inbox))
            assert daemon.stop() == 0
        check(daemon, producer.dropped)
    finally:
        subprocess.run(["umount", daemon.inbox], check=False)


def _unended(daemon: Daemon) -> int:
    with contextlib.closing(sqlite3.connect(daemon.root / "state" / "ledger.sqlite3")) as ledger:
        return int(ledger.execute("select count(*) from unended").fetchone()[0])


def test_every_failpoint_is_tested() -> None:
    """No named place to die at is left out, here, in test_shared.py or in test_verdicts_of_people.py."""
    tested = {
        "claimed",
        "decoded",
        "renamed",
        "decided",
        "moved",
        "synced",
        "filed",
        "judged",
        "recovering",
        "restored",
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


def test_random_kills_while_files_are_put_back(tmp_path: Path) -> None:
    """Killed at random while retry and undo run and are killed too: nothing is lost, no start is refused for it."""
    chaos = Chaos(tmp_path, seed=3, people=True)
    chaos.run(kills=8, files_a_kill=12)
    assert chaos.ended.total() == 8
    assert chaos.ended.keys() - {0, 1, 6, -signal.SIGKILL} == set()
