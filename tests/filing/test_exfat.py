"""A real file system that knows neither renameat2's flags nor hard links, nor owners and modes: exFAT."""

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

FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"
pytestmark = pytest.mark.slow
TOOLS = ("mkfs.exfat", "mount.exfat-fuse", "losetup")


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """An empty exFAT file system, mounted."""
    if os.getuid() != 0 or not all(shutil.which(tool) for tool in TOOLS):
        pytest.skip(f"needs root and {', '.join(TOOLS)} (Debian: exfatprogs, exfat-fuse)")
    image, mount = tmp_path / "exfat.img", tmp_path / "exfat"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    mount.mkdir()
    subprocess.run(["mkfs.exfat", image], check=True, stdout=subprocess.DEVNULL)
    loop = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if loop.returncode:
        pytest.skip(f"no loop device: {loop.stderr}")
    device = loop.stdout.strip()
    try:
        mounted = subprocess.run(["mount.exfat-fuse", device, mount], capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"can not be mounted: {mounted.stderr}")
        yield mount
        subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def _at(place: str, exfat: Path, tmp_path: Path) -> Daemon:
    """A daemon with its inbox, its places or both on exFAT. The ledger never is."""
    inbox = exfat / "inbox" if place != "places" else tmp_path / "inbox"
    out = exfat if place != "inbox" else tmp_path
    output = ", ".join(f"{name}: {out / name}" for name in ("sorted", "review", "quarantine"))
    settings = f"{FAST[:-2]}, path: {inbox}}}\noutput: {{{output}}}\n"
    daemon = Daemon(tmp_path, settings, stub=True)
    daemon.inbox = inbox
    daemon.inbox.mkdir(exist_ok=True)
    daemon.places = [inbox, out / "sorted", out / "review", out / "quarantine"]
    return daemon


@pytest.mark.parametrize("place", ["inbox", "places", "both"])
def test_files_are_sorted_there(exfat: Path, tmp_path: Path, place: str) -> None:
    """To, from and on exFAT every file ends in one place."""
    daemon = _at(place, exfat, tmp_path)
    producer = Producer(daemon, seed=5, link=False)
    with daemon:
        producer.drop(60)
        daemon.until_filed(60)
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


@pytest.mark.parametrize("place", ["inbox", "both"])
@pytest.mark.parametrize("name", ["reserved:5", "decided", "moved"])
def test_killed_there(exfat: Path, tmp_path: Path, place: str, name: str) -> None:
    """Killed while a name is taken by an empty file, and around the move: nothing lost, and no empty file stays."""
    if (place, name) == ("inbox", "reserved:5"):
        pytest.skip("files leave exFAT by copy: no name is taken there")
    daemon = _at(place, exfat, tmp_path)
    producer = Producer(daemon, seed=6, link=False)
    producer.drop(40)
    daemon.environ["MEDNET_FAILPOINT"] = name
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
    del daemon.environ["MEDNET_FAILPOINT"]
    with daemon.start():
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    check(daemon, producer.dropped)
