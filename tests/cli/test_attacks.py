"""Faults that a newcomer and an attacker found stay mended."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemon import STUB, Daemon, digest, mednet
from tests.support.dropped_files import picture
from tests.support.repository import TOP
from tests.support.waiting import LONGEST_S

SHM = Path("/dev/shm")
FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"


@pytest.fixture
def image() -> bytes:
    return picture(np.random.default_rng(5))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than the inbox."""
    if not SHM.is_dir() or os.stat(SHM).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=SHM) as path:
        yield Path(path)


@pytest.mark.parametrize("across", [False, True])
def test_recovery_keeps_a_second_delivery(tmp_path: Path, elsewhere: Path, image: bytes, across: bool) -> None:
    """Killed before the move of a file whose equal was filed before under its name: both are there afterwards."""
    out = elsewhere if across else tmp_path
    daemon = Daemon(tmp_path, f"{FAST}output: {{sorted: {out}/sorted, review: {out}/review}}\n", stub=True)
    daemon.places = [daemon.inbox, out / "sorted", out / "review"]
    (daemon.inbox / "x.jpeg").write_bytes(image)
    os.utime(daemon.inbox / "x.jpeg", ns=(10**18, 10**18))
    with daemon:
        daemon.until_filed(1)
        daemon.stop()
    (daemon.inbox / "x.jpeg").write_bytes(image)
    os.utime(daemon.inbox / "x.jpeg", ns=(10**18, 10**18))
    daemon.environ["MEDNET_FAILPOINT"] = "decided"
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
    daemon.environ.clear()
    with daemon.start():
        daemon.until_filed(2)
        assert daemon.stop() == 0
    assert daemon.digests() == Counter({digest(image): 2})


def test_copies_keep_mode_and_owner(tmp_path: Path, elsewhere: Path, image: bytes) -> None:
    """On another file system a private file stays private."""
    with Daemon(tmp_path, f"{FAST}output: {{sorted: {elsewhere}/sorted}}\n", stub=True) as daemon:
        private = tmp_path / "private"
        private.touch(mode=0o600)
        private.write_bytes(image)
        if os.getuid() == 0:
            os.chown(private, 1234, 1234)
        before = private.stat()
        private.rename(daemon.inbox / "x.jpeg")
        daemon.until_filed(1)
    after = os.stat(daemon.outcomes()[0]["destination"])
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (0o600, before.st_uid, before.st_gid)


def test_special_files_reach_quarantine_on_another_file_system(tmp_path: Path, elsewhere: Path) -> None:
    """Pipes, and links whose name is taken, do not get stuck in the inbox."""
    with Daemon(tmp_path, f"{FAST}output: {{quarantine: {elsewhere}/quarantine}}\n", stub=True) as daemon:
        (elsewhere / "quarantine" / "link.jpeg").touch()
        os.symlink("/nowhere", daemon.inbox / "link.jpeg")
        os.mkfifo(daemon.inbox / "pipe.jpeg")
        daemon.until_filed(2)
        assert os.listdir(daemon.inbox) == []
    places = {line["name"]: line["destination"] for line in daemon.outcomes()}
    assert os.readlink(places["link.jpeg"]) == "/nowhere"
    assert stat.S_ISFIFO(os.lstat(places["pipe.jpeg"]).st_mode)


def test_a_log_that_can_not_be_written_stops_nothing(tmp_path: Path, image: bytes) -> None:
    """With standard output on a full device the files are sorted all the same, and the end is clean."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", STUB, str(daemon.config)],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(TOP)},
        )
    (daemon.inbox / "x.jpeg").write_bytes(image)
    daemon.until(lambda: not os.listdir(daemon.inbox))
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LONGEST_S)
    assert (process.returncode, told) == (0, b"")


def test_unfinished_copies_are_cleared_at_the_start(tmp_path: Path) -> None:
    """The unfinished copy that a crash left is gone after the next start; other hidden files stay."""
    (tmp_path / "review").mkdir()
    (tmp_path / "review" / ".0123456789abcdef.mednet-partial").touch()
    (tmp_path / "review" / ".keep").touch()
    with Daemon(tmp_path, FAST, stub=True) as daemon:
        assert os.listdir(tmp_path / "review") == [".keep"]
        assert daemon.stop() == 0


def test_two_daemons_on_one_inbox(tmp_path: Path) -> None:
    """A second daemon is refused also when its state directory is another."""
    with Daemon(tmp_path, FAST, stub=True) as daemon:
        (tmp_path / "other.yaml").write_text("state: {path: elsewhere}\n")
        second = mednet("run", "--config", str(tmp_path / "other.yaml"))
        assert (second.returncode, "already sorts" in second.stderr) == (6, True)
        assert daemon.stop() == 0


def test_a_mount_that_went_away_is_not_filled_underneath(tmp_path: Path, image: bytes) -> None:
    """A class directory on another file system than at the start takes nothing; the file stays in the inbox."""
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "x", tmp_path], check=False).returncode:
        pytest.skip("needs the right to mount")
    subprocess.run(["umount", tmp_path], check=True)
    output = tmp_path / "mounted"
    output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "mednet-test", output], check=True)
    try:
        with Daemon(tmp_path / "daemon", f"{FAST}output: {{sorted: {output}}}\n", stub=True) as daemon:
            subprocess.run(["umount", "-l", output], check=True)
            (daemon.inbox / "x.jpeg").write_bytes(image)
            daemon.until(lambda: bool(daemon.events("filing.failed")))
            assert "mount" in daemon.events("filing.failed")[0]["detail"]
            assert os.listdir(daemon.inbox) == ["x.jpeg"]
            assert os.listdir(output) == []
    finally:
        subprocess.run(["umount", "-l", output], check=False, stderr=subprocess.DEVNULL)


def test_classify_gives_paths_back_as_given(tmp_path: Path, image: bytes) -> None:
    """Each line has the very string that was given, and neither an overlong nor an empty one stops the others."""
    (tmp_path / "x.jpeg").write_bytes(image)
    given = ["./x.jpeg", ".//x.jpeg", "a" * 300, "", "x.jpeg"]
    ended = mednet("classify", "--json", *given, cwd=tmp_path)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["path"] for line in lines] == given
    assert [line["outcome"] == "quarantine" for line in lines] == [False, False, True, True, False]


def test_output_on_a_full_device_is_told(tmp_path: Path) -> None:
    """A command whose output can not be written says so and fails, without a traceback."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "config.yaml").touch()
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "watcher", "status", "--config", str(tmp_path / "config.yaml")]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert "can not be written" in ended.stderr


def test_evaluate_part_needs_a_split(tmp_path: Path) -> None:
    """``--part`` without ``--split`` is refused, not ignored."""
    assert mednet("evaluate", "--data", str(tmp_path), "--part", "test").returncode == 2
