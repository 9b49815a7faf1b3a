"""The lock: one daemon for one state directory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.repository import TOP
from watcher.core import lock
from watcher.core.errors import Exit, Fatal
from watcher.core.lock import Lock

HOLD = """
import sys
from pathlib import Path
from watcher.core.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
lock.describe({"pid": 4711})
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "daemon.lock"


def test_second_is_refused_and_told_who_holds_it(path: Path) -> None:
    """A second daemon ends with exit code 6 and the first one's process number; the first is not disturbed."""
    first, second = Lock(path), Lock(path)
    first.acquire()
    first.describe({"pid": 4711})
    with pytest.raises(Fatal, match="4711") as caught:
        second.acquire()
    assert caught.value.code is Exit.ALREADY_RUNNING
    assert lock.holder(path) == {"pid": 4711}
    first.release()
    second.acquire()
    second.release()


def test_killed_holder_frees_it(path: Path) -> None:
    """A daemon killed with SIGKILL leaves no lock behind."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TOP)},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(Fatal, match="4711"):
            Lock(path).acquire()
        process.kill()
        process.wait()
        assert lock.holder(path) is None
        mine = Lock(path)
        mine.acquire()
        mine.release()


def test_holder_is_none_when_nobody_holds_it(path: Path) -> None:
    """No file, or a file without a holder, means no daemon, whatever is written in it."""
    assert lock.holder(path) is None
    first = Lock(path)
    first.acquire()
    first.describe({"pid": 4711})
    first.release()
    assert lock.holder(path) is None


def test_holder_before_it_described_itself(path: Path) -> None:
    """A daemon that is still starting holds the lock, without the facts of one that died before it."""
    former, starting = Lock(path), Lock(path)
    former.acquire()
    former.describe({"pid": 4711})
    former.release()
    starting.acquire()
    assert lock.holder(path) == {}
    starting.release()


def test_description_is_replaced_whole(path: Path) -> None:
    """A shorter description leaves nothing of a longer one behind."""
    mine = Lock(path)
    mine.acquire()
    mine.describe({"pid": 1, "inbox": "x" * 1000})
    mine.describe({"pid": 2})
    assert lock.holder(path) == {"pid": 2}
    mine.release()


def test_asking_does_not_take_it(path: Path) -> None:
    """A holder that is asked for again and again does not keep a daemon from starting."""
    mine = Lock(path)
    mine.acquire()
    for _ in range(10):
        lock.holder(path)
    mine.release()
    lock.holder(path)
    mine.acquire()
    mine.release()
    mine.release()


def test_who_passes_by_is_waited_for(path: Path) -> None:
    """A daemon that starts while a command reconciles what the last one left is not refused: it waits."""
    passing, coming = Lock(path), Lock(path)
    assert passing.acquire_briefly()
    assert not coming.acquire_briefly()
    assert not coming.try_acquire()
    later = threading.Timer(0.4, passing.release)
    later.start()
    coming.acquire()
    later.join()
    with pytest.raises(Fatal):
        passing.acquire()
    coming.release()


def test_who_passes_by_for_too_long(path: Path) -> None:
    """Waiting has an end."""
    passing = Lock(path)
    assert passing.acquire_briefly()
    with pytest.raises(Fatal, match=str(os.getpid())):
        Lock(path).acquire(wait_s=0.2)
    passing.release()


def test_state_directory_that_can_not_be_made_is_fatal(tmp_path: Path) -> None:
    """A file in the place of the state directory ends the start with exit code 5."""
    (tmp_path / "state").touch()
    with pytest.raises(Fatal, match="state") as caught:
        Lock(tmp_path / "state" / "daemon.lock").acquire()
    assert caught.value.code is Exit.DIRECTORY
    with pytest.raises(Fatal):
        Lock(tmp_path / "state" / "daemon.lock").acquire_briefly()
    assert not Lock(tmp_path / "state" / "daemon.lock").try_acquire()


def test_no_room_to_describe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is told as what it is, exit code 5; who described itself before may do so again on it."""

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset + len(data) > os.fstat(fd).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    mine = lock.Lock(path)
    mine.acquire()
    with pytest.raises(Fatal, match="No space left") as told:
        mine.describe({"pid": 1})
    assert told.value.code is Exit.DIRECTORY
    monkeypatch.undo()
    mine.describe({"pid": 1, "model": "a"})
    monkeypatch.setattr(os, "pwrite", full)
    mine.describe({"pid": 2, "model": "b"})
    mine.describe({"pid": 3})
    assert lock.holder(path) == {"pid": 3}
    mine.release()
