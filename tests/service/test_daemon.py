"""The daemon as a process, on a real directory, with the shipped weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Sampler, digest, mednet
from tests.support.repository import TOP
from tests.support.torch_missing import skip_without_torch
from watcher.core.lock import Lock


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler()


def test_sorts_whatever_way_files_arrive(tmp_path: Path, sampler: Sampler) -> None:
    """Files there before the start, written, moved in, renamed and hard-linked are each sorted exactly once."""
    daemon = Daemon(tmp_path, fresh=True)
    images = sampler.many(30)
    (daemon.inbox / "before.jpeg").write_bytes(images[0])
    with daemon:
        for number, image in enumerate(images[1:], 1):
            _deliver(daemon, number, image)
        daemon.until_filed(30)
        assert daemon.stop() == 0
    assert daemon.digests() == Counter(digest(image) for image in images)
    assert os.listdir(daemon.inbox) == []
    ids = [line["id"] for line in daemon.outcomes()]
    assert sorted(ids) == list(range(1, 31))
    for line in daemon.outcomes():
        assert digest(Path(line["destination"]).read_bytes()) == line["digest"]


def _deliver(daemon: Daemon, number: int, image: bytes) -> None:
    name, outside = f"{number}.jpeg", daemon.root / f"{number}"
    if number % 4 == 0:
        (daemon.inbox / name).write_bytes(image)
    elif number % 4 == 1:
        outside.write_bytes(image)
        outside.rename(daemon.inbox / name)
    elif number % 4 == 2:
        (daemon.inbox / f"{name}.part").write_bytes(image)
        (daemon.inbox / f"{name}.part").rename(daemon.inbox / name)
    else:
        outside.write_bytes(image)
        os.link(outside, daemon.inbox / name)


def test_recognises_the_sampled_classes(tmp_path: Path, sampler: Sampler) -> None:
    """Most images sampled from a class's sketch end in that class's directory."""
    with Daemon(tmp_path) as daemon:
        for label in sampler.classes:
            for number in range(10):
                (daemon.inbox / f"{label}-{number}.jpeg").write_bytes(sampler.jpeg(label))
        daemon.until_filed(60)
    right = sum(line["class"] == line["name"].split("-")[0] for line in daemon.outcomes())
    assert right >= 54


def test_same_name_twice_keeps_both(tmp_path: Path, sampler: Sampler) -> None:
    """A second file of a name that is taken in the class directory gets a suffix; neither is lost."""
    first, second = sampler.jpeg("Hand"), sampler.jpeg("Hand")
    with Daemon(tmp_path, "review: {min_confidence: 0}\n") as daemon:
        (daemon.inbox / "x.jpeg").write_bytes(first)
        daemon.until_filed(1)
        (daemon.inbox / "x.jpeg").write_bytes(second)
        daemon.until_filed(2)
    assert daemon.digests() == Counter([digest(first), digest(second)])


def test_unreadable_files_go_to_quarantine_with_a_reason(tmp_path: Path, sampler: Sampler) -> None:
    """A file that is no whole image waits for its patience, then lies in quarantine beside a JSON reason."""
    image = sampler.jpeg("CXR")
    bad = {"empty.jpeg": b"", "half.jpeg": image[: len(image) // 2], "text.jpeg": b"no image at all\n"}
    with Daemon(tmp_path) as daemon:
        for name, data in bad.items():
            (daemon.inbox / name).write_bytes(data)
        os.symlink("/etc/hostname", daemon.inbox / "link.jpeg")
        os.mkfifo(daemon.inbox / "fifo.jpeg")
        daemon.until_filed(5)
    reasons = {line["name"]: line["reason"] for line in daemon.events("image.quarantined")}
    assert reasons == {
        "empty.jpeg": "empty",
        "half.jpeg": "truncated",
        "text.jpeg": "unsupported_format",
        "link.jpeg": "not_a_file",
        "fifo.jpeg": "not_a_file",
    }
    quarantine = daemon.root / "quarantine"
    assert set(os.listdir(quarantine)) == {n for name in reasons for n in (name, f"{name}.reason.json")}
    assert os.readlink(quarantine / "link.jpeg") == "/etc/hostname"


def test_a_slow_writer_is_never_sorted_early(tmp_path: Path, sampler: Sampler) -> None:
    """A file whose writer pauses longer than settle_s is sorted once, whole."""
    image = sampler.jpeg("HeadCT")
    with Daemon(tmp_path) as daemon:
        with (daemon.inbox / "slow.jpeg").open("wb", buffering=0) as file:
            file.write(image[:700])
            (daemon.inbox / "other.jpeg").write_bytes(sampler.jpeg("Hand"))
            daemon.until_filed(1)
            os.utime(file.fileno())  # still alive, still the same bytes
            assert [line["name"] for line in daemon.outcomes()] == ["other.jpeg"]
            file.write(image[700:])
        daemon.until_filed(2)
    assert daemon.outcomes()[1]["digest"] == digest(image)


def test_names_that_forge_or_break_logs_are_harmless(tmp_path: Path, sampler: Sampler) -> None:
    """Newlines, bytes that are no UTF-8 and leading dashes in names: each file sorted, each log line whole."""
    names = [b'a\n{"event": "image.sorted"}.jpeg', b"caf\xe9.jpeg", b"-rf.jpeg", b"x" * 250 + b".jpeg", b"\x1b[2J.jpeg"]
    with Daemon(tmp_path) as daemon:
        for name in names:
            image = sampler.jpeg("CXR")
            (daemon.inbox / os.fsdecode(name)).write_bytes(image)
        daemon.until_filed(len(names))
    assert len(daemon.outcomes()) == len(names)


def test_second_daemon_refuses(tmp_path: Path) -> None:
    """A second daemon on the same state says who holds it and exits with code 6; the first goes on."""
    with Daemon(tmp_path) as daemon:
        second = mednet("run", "--config", str(daemon.config))
        assert second.returncode == 6
        assert daemon.process and str(daemon.process.pid) in second.stderr
        assert "Traceback" not in second.stderr
        assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_lost_when_it_ends_under_load(tmp_path: Path, sampler: Sampler, number: int) -> None:
    """Ended in the middle of 400 files, by either signal or killed: after a restart each lies somewhere once."""
    images = sampler.many(400)
    with Daemon(tmp_path, stub=True) as daemon:
        for position, image in enumerate(images):
            (daemon.inbox / f"{position}.jpeg").write_bytes(image)
        daemon.until_filed(50)
        assert daemon.stop(number) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        assert daemon.digests() == Counter(digest(image) for image in images)
        daemon.start()
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    assert daemon.digests() == Counter(digest(image) for image in images)
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "ledger.sqlite3")) as ledger:
        filed = ledger.execute("select count(*), count(distinct destination) from ending where state = 'filed'")
        assert filed.fetchone() == (400, 400)
        assert ledger.execute("select count(*) from unended").fetchone() == (0,)


def test_goes_on_when_the_inbox_comes_back(tmp_path: Path, sampler: Sampler) -> None:
    """An inbox that disappears is said once, waited for, watched again, and sorted from."""
    with Daemon(tmp_path) as daemon:
        shutil.rmtree(daemon.inbox)
        daemon.until(lambda: bool(daemon.events("inbox.unreachable")))
        daemon.inbox.mkdir()
        (daemon.inbox / "a.jpeg").write_bytes(sampler.jpeg("CXR"))
        daemon.until_filed(1)
        assert len(daemon.events("inbox.unreachable")) == 1
        daemon.until(lambda: bool(daemon.events("inbox.reachable")))
        (daemon.inbox / "b.jpeg").write_bytes(sampler.jpeg("CXR"))
        daemon.until_filed(2)
        assert daemon.stop() == 0


def test_status_tells_what_the_log_tells(tmp_path: Path, sampler: Sampler) -> None:
    """``status`` counts what was filed, says whether the daemon runs, and exits 1 once it does not."""
    with Daemon(tmp_path, "review: {min_confidence: 0}\n") as daemon:
        (daemon.inbox / "a.jpeg").write_bytes(sampler.jpeg("CXR"))
        daemon.until_filed(1)
        running = mednet("status", "--config", str(daemon.config))
        assert (running.returncode, "yes, process" in running.stdout) == (0, True)
        assert "all time    sorted 1" in running.stdout
        daemon.stop()
    assert mednet("status", "--config", str(daemon.config)).returncode == 1


class TestRefusals:
    """Bad input at the edges: a message that says what to do, a documented exit code, no traceback."""

    @pytest.mark.parametrize(
        ("config", "code", "told"),
        [
            ("inbox: {path: nowhere}\n", 5, "nowhere"),
            ("model: {weights: nowhere.safetensors}\n", 4, "nowhere.safetensors does not exist"),
            ("model: {weights: config.yaml}\n", 4, "can not be read"),
            ("model: {device: cuda}\n", 4, "no CUDA device"),
            ("output: {sorted: blocked}\n", 5, "blocked/"),
            ("state: {path: blocked/state}\n", 5, "blocked/state"),
        ],
    )
    def test_start(self, tmp_path: Path, config: str, code: int, told: str) -> None:
        """Each reason not to start is told in words, with its own exit code."""
        if "cuda" in config:
            skip_without_torch()
        if "cuda" in config and shutil.which("nvidia-smi"):
            pytest.skip("there is a GPU here, so cuda is no mistake")
        (tmp_path / "inbox").mkdir()
        (tmp_path / "blocked").touch()
        (tmp_path / "config.yaml").write_text(config)
        ended = mednet("run", "--config", str(tmp_path / "config.yaml"))
        assert (ended.returncode, "Traceback" in ended.stderr) == (code, False)
        assert told in ended.stderr
        assert _logged(ended.stdout)["problem"] in ended.stderr

    def test_another_daemon_is_logged(self, tmp_path: Path) -> None:
        """The refusal is also in the log."""
        held = Lock(tmp_path / "state" / "daemon.lock")
        held.acquire()
        (tmp_path / "inbox").mkdir()
        (tmp_path / "config.yaml").touch()
        ended = mednet("run", cwd=tmp_path)
        assert ended.returncode == 6
        assert "another daemon" in _logged(ended.stdout)["problem"]
        held.release()

    def test_a_defect_is_logged(self, tmp_path: Path) -> None:
        """An unforeseen error at the start is one JSON line with its traceback, and exit code 1."""
        (tmp_path / "inbox").mkdir()
        (tmp_path / "config.yaml").touch()
        code = (
            "import sys; from pathlib import Path\n"
            "from watcher.service import build; from watcher.cli.commands import run\n"
            "def fail(*_, **__): raise KeyError('x')\n"
            "build.build = fail; sys.exit(run.serve(Path('config.yaml'), None))"
        )
        environ = {**os.environ, "PYTHONPATH": str(TOP)}
        ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (1, "")
        assert "KeyError: 'x'" in _logged(ended.stdout, "daemon.crashed")["exception"]

    @pytest.mark.parametrize("error", ["Fatal('x', 'y')", "KeyError('x')"])
    def test_nothing_stays_open(self, tmp_path: Path, error: str) -> None:
        """A start that fails once the ledger is open closes it, and ends the decoders."""
        (tmp_path / "inbox").mkdir()
        (tmp_path / "config.yaml").touch()
        code = (
            "import contextlib, os, sys; from pathlib import Path\n"
            "from watcher.core.errors import Fatal; from watcher.service import start\n"
            f"def load(*_): raise {error}\n"
            "with contextlib.suppress(Fatal): start.serve(Path('config.yaml'), load)\n"
            "assert not any('ledger' in os.path.realpath(link) for link in Path('/proc/self/fd').iterdir())\n"
            "with contextlib.suppress(ChildProcessError): os.waitpid(-1, os.WNOHANG); sys.exit('a child is left')"
        )
        environ = {**os.environ, "PYTHONPATH": str(TOP)}
        ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert (tmp_path / "state" / "ledger.sqlite3").exists()

    def test_three_mistakes_at_once(self, tmp_path: Path) -> None:
        """A config with three mistakes names all three, with their lines."""
        (tmp_path / "config.yaml").write_text("inbox:\n  settel_s: 1\nbatch:\n  size: none\nlog:\n  level: loud\n")
        ended = mednet("run", "--config", str(tmp_path / "config.yaml"))
        assert ended.returncode == 3
        assert all(f"config.yaml:{line}:" in ended.stderr for line in (2, 4, 6))
        assert "settle_s" in ended.stderr
        assert "settle_s" in _logged(ended.stdout)["problem"]


def _logged(text: str, event: str = "daemon.failed") -> dict[str, str]:
    """The one line that tells of the end, as the catalogue has it and at its level."""
    [line] = [line for line in map(json.loads, text.splitlines()) if line["event"] == event]
    assert line["level"] == "critical"
    return line
