"""Nothing is filed beneath the mount point of a share that is gone: not after a reload, nor by a person's command."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import picture
from watcher.core.errors import Exit

FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\noutput: {sorted: share/sorted}\n"


class Share:
    """A daemon whose sorted files lie on a file system of their own, that can go."""

    def __init__(self, root: Path, shm: Path) -> None:
        self.root, self.link, self.beneath = root, root / "share", root / "beneath"
        self.beneath.mkdir()
        self.link.symlink_to(shm)
        self.daemon = Daemon(root, FAST, stub=True)

    def unmount(self) -> None:
        """In its place is what a mount point shows without its mount: a directory of the disk below."""
        self.link.unlink()
        self.link.symlink_to(self.beneath)

    def drop(self, name: str, content: bytes) -> None:
        (self.daemon.inbox / name).write_bytes(content)


@pytest.fixture
def share(tmp_path: Path, elsewhere: Path) -> Share:
    return Share(tmp_path, elsewhere)


def unsure(path: Path) -> bytes:
    """An image that the stand-in network leaves to a person."""
    dark = np.full((64, 64), 10, np.uint8)
    dark[0, 0], dark[1, 1] = 0, 255
    Image.fromarray(dark).save(path, "PNG")
    return path.read_bytes()


def test_reload_is_refused_while_a_share_is_gone(share: Share, tmp_path: Path) -> None:
    """The old config stays in force, and no directory is made where the share should be."""
    with share.daemon as daemon:
        share.drop("a.jpeg", picture(default_rng(200)))
        daemon.until_filed(1)
        share.unmount()
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: bool(daemon.events("reload.done", "reload.refused")))
        [told] = daemon.events("reload.done", "reload.refused")
        assert told["event"] == "reload.refused"
        assert "has its mount gone?" in told["problem"]
        assert list(share.beneath.iterdir()) == []


def test_a_verdict_waits_for_the_share(share: Share, tmp_path: Path) -> None:
    """Without a daemon the command files the image itself: not while the share is gone, and then with its next call."""
    with share.daemon as daemon:
        share.drop("a.jpeg", picture(default_rng(200)))
        share.drop("b.png", unsure(tmp_path / "dark"))
        daemon.until_filed(2)
        waiting = daemon.outcomes()
        assert {each["event"] for each in waiting} == {"image.sorted", "image.review"}
        assert daemon.stop() == 0
    [name] = [Path(str(each["destination"])).name for each in waiting if each["event"] == "image.review"]
    shm = os.readlink(share.link)
    share.unmount()
    ended = mednet("review", "accept", name, "Hand", "--config", str(daemon.config))
    assert ended.returncode == Exit.DIRECTORY, ended.stderr
    assert "the verdicts are recorded" in ended.stderr
    assert list(share.beneath.iterdir()) == []
    assert (share.root / "review" / name).is_file()
    share.link.unlink()
    share.link.symlink_to(shm)
    again = mednet("review", "accept", name, "Hand", "--config", str(daemon.config))
    assert again.returncode == Exit.OK, again.stderr
    assert (share.link / "sorted" / "Hand" / name).is_file()
