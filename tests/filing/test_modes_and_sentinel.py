"""An operator can set a sentinel for the inbox, and a mode for files that are filed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import picture
from tests.support.repository import TOP
from watcher.core import no_overwrite
from watcher.core.errors import Retry, Vanished
from watcher.core.records import Identity
from watcher.filing.mover import Mover
from watcher.inbox.scan import Inbox

FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.2, sentinel: MOUNTED}\n"
MODE = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.2}\noutput: {file_mode: '0640'}\n"


@pytest.fixture
def image() -> bytes:
    return picture(np.random.default_rng(5))


class TestSentinel:
    """A file that proves the mount."""

    def test_a_missing_sentinel_is_a_missing_inbox(self, tmp_path: Path) -> None:
        """Without its sentinel an inbox is not swept, whatever lies in it; the sentinel itself is no file to sort."""
        inbox = Inbox(tmp_path, sentinel="MOUNTED")
        (tmp_path / "x.jpeg").touch()
        with pytest.raises(Retry, match="MOUNTED"):
            next(inbox.scan())
        (tmp_path / "MOUNTED").touch()
        assert list(inbox.scan()) == ["x.jpeg"]
        assert not inbox.wants("MOUNTED")

    def test_sorting_waits_for_it(self, tmp_path: Path, image: bytes) -> None:
        """Gone while the daemon runs: it says so once, files nothing, and goes on by itself when it is back."""
        daemon = Daemon(tmp_path, FAST, stub=True)
        (daemon.inbox / "MOUNTED").touch()
        with daemon:
            (daemon.inbox / "MOUNTED").unlink()
            daemon.until(lambda: bool(daemon.events("inbox.unreachable")))
            (daemon.inbox / "x.jpeg").write_bytes(image)
            time.sleep(1)  # several scans, and longer than it settles
            assert len(daemon.events("inbox.unreachable")) == 1
            assert (daemon.inbox / "x.jpeg").exists()
            (daemon.inbox / "MOUNTED").touch()
            daemon.until_filed(1)
            assert daemon.stop() == 0
        assert os.listdir(daemon.inbox) == ["MOUNTED"]
        assert len(daemon.events("inbox.reachable")) == 1

    def test_a_start_without_it_is_refused(self, tmp_path: Path) -> None:
        """As for an absent inbox: exit code 5, and the message names the sentinel."""
        (tmp_path / "inbox").mkdir()
        (tmp_path / "config.yaml").write_text("inbox: {sentinel: MOUNTED}\n")
        ended = mednet("run", "--config", str(tmp_path / "config.yaml"))
        assert (ended.returncode, "MOUNTED" in ended.stderr) == (5, True)

    @pytest.mark.parametrize("wrong", ["a/b", "..", "''"])
    def test_it_is_a_name(self, tmp_path: Path, wrong: str) -> None:
        """A path is refused by check-config."""
        (tmp_path / "config.yaml").write_text(f"inbox: {{sentinel: {wrong}}}\n")
        ended = mednet("check-config", "--config", str(tmp_path / "config.yaml"))
        assert (ended.returncode, "inbox.sentinel" in ended.stderr) == (3, True)


class TestMode:
    """The mode of what is filed."""

    def test_files_land_with_it(self, tmp_path: Path, image: bytes) -> None:
        """A filed file has the configured mode, in quarantine too, and not the mode that it came with."""
        with Daemon(tmp_path, MODE, stub=True) as daemon:
            for name, data, mode in (("x.jpeg", image, 0o777), ("y.jpeg", b"text", 0o600)):
                (tmp_path / name).write_bytes(data)
                (tmp_path / name).chmod(mode)
                (tmp_path / name).rename(daemon.inbox / name)
            daemon.until_filed(2)
            modes = {stat.S_IMODE(os.stat(line["destination"]).st_mode) for line in daemon.outcomes()}
        assert modes == {0o640}

    def test_a_link_keeps_its_target_as_it_is(self, tmp_path: Path) -> None:
        """The mode is never set through a link."""
        for directory in ("inbox", "quarantine"):
            (tmp_path / directory).mkdir()
        (tmp_path / "secret").touch(mode=0o600)
        os.symlink(tmp_path / "secret", tmp_path / "inbox" / "x.jpeg")
        Mover(tmp_path / "inbox", mode=0o644).move("x.jpeg", None, None, tmp_path / "quarantine")
        assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600

    def test_another_file_of_the_name_keeps_its_own(
        self, tmp_path: Path, identify: Callable[[Path], Identity], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Swapped for another (a second name of a private file, say) right before: neither moved nor given the mode."""
        for directory in ("inbox", "sorted"):
            (tmp_path / directory).mkdir()
        (tmp_path / "secret").touch(mode=0o600)
        decided = tmp_path / "inbox" / "x.jpeg"
        decided.write_bytes(b"x")
        identity, same = identify(decided), no_overwrite.check_unchanged

        def then_swapped(path: Path, identity: Identity | None) -> None:
            same(path, identity)
            decided.unlink()
            os.link(tmp_path / "secret", decided)

        monkeypatch.setattr(no_overwrite, "check_unchanged", then_swapped)
        with pytest.raises(Vanished):
            Mover(tmp_path / "inbox", mode=0o644).move("x.jpeg", identity, None, tmp_path / "sorted")
        assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
        assert decided.exists()

    def test_a_file_of_another_user_stays(self, tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
        """A file whose mode can not be set stays in the inbox: it is never filed with another mode."""
        if os.getuid() != 0:
            pytest.skip("needs root to give a file away")
        tmp_path.chmod(0o777)
        for parent in tmp_path.parents:
            if parent.stat().st_mode & 0o5 != 0o5:
                pytest.skip("another user can not reach the temporary directory")
        for name in ("inbox", "sorted"):
            (tmp_path / name).mkdir()
            os.chmod(tmp_path / name, 0o777)
        (tmp_path / "inbox" / "x").touch(mode=0o666)
        script = (
            "import os, sys; os.setuid(12345); from pathlib import Path; from watcher.filing.mover import Filing\n"
            "root = Path(sys.argv[1])\n"
            "Filing(root / 'inbox', mode=0o640).move('x', None, None, root / 'sorted')\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(TOP)},
        )
        if "ModuleNotFoundError" in ended.stderr or "PermissionError: [Errno 13]" in ended.stderr:
            pytest.skip("another user can not reach the interpreter or the package")
        assert "Retry" in ended.stderr
        assert os.strerror(errno.EPERM) in ended.stderr
        assert (tmp_path / "inbox" / "x").exists()

    @pytest.mark.parametrize("wrong", ["640", "'0o640'", "'999'", "'0040'", "rw-r-----"])
    def test_it_is_an_octal_mode(self, tmp_path: Path, wrong: str) -> None:
        """Anything else is refused by check-config, also a mode by which the daemon could not read its own files."""
        (tmp_path / "config.yaml").write_text(f"output: {{file_mode: {wrong}}}\n")
        ended = mednet("check-config", "--config", str(tmp_path / "config.yaml"))
        assert (ended.returncode, "output.file_mode" in ended.stderr) == (3, True)
