"""``doctor``: what it says of directories and hosts that work, and of those that do not. It leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import Producer, check
from tests.support.repository import TOP
from tests.support.torch_missing import needs_torch, skip_without_torch
from tests.support.waiting import LONGEST_S
from watcher.config.loader import load
from watcher.core import mounts, no_overwrite
from watcher.images.formats import detect
from watcher.inbox.scan import Inbox
from watcher.service.doctor import directory_checks, directory_probe, program_checks


class House:
    """A config file with its directories, and what doctor says of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, root / "config.yaml"
        self.config.touch()
        for name in ("inbox", "sorted", "review", "quarantine", "state"):
            (root / name).mkdir()

    def run(self, *wrap: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """The exit code, and the checks by what they looked at (a fault before what is well)."""
        skip_without_torch()
        words = ["doctor", "--json", "--config", str(self.config)]
        if wrap:
            line = [*wrap, sys.executable, "-m", "watcher", *words]
            environ = {**os.environ, "PYTHONPATH": str(TOP)}
            ended = subprocess.run(line, capture_output=True, text=True, timeout=LONGEST_S, env=environ, check=False)
        else:
            ended = mednet(*words)
        assert ended.stderr == ""
        told = [json.loads(text) for text in ended.stdout.splitlines()]
        return ended.returncode, {each["what"]: each for each in sorted(told, key=lambda each: each["state"] != "ok")}

    def left(self) -> list[str]:
        """Every file in it but its config file."""
        return [path.name for path in self.root.rglob("*") if path.is_file() and path != self.config]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def bad(told: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the checks that are not ok. Each of them has advice."""
    assert all((each["advice"] is None) == (each["state"] == "ok") for each in told.values())
    return {what: each["state"] for what, each in told.items() if each["state"] != "ok"}


def test_all_is_well(house: House) -> None:
    """On a plain directory everything works, exit code 0, and nothing is left behind."""
    code, told = house.run()
    assert (code, bad(told), house.left()) == (0, {}, [])
    assert told.keys() >= {"events", "weights", "device", "ledger", "inbox to sorted", "decoder JPEG", "decoder PNG"}
    assert told["inbox to sorted"]["told"] == "one rename, on one file system"
    assert told["events"]["told"].startswith("reported ")


def test_in_shadow_mode(house: House) -> None:
    """Nothing is moved, so nothing is asked of the places, and nothing is tried in the inbox."""
    settings = load(house.config, {"MEDNET_MODE": "shadow"})
    for name in ("sorted", "review", "quarantine"):
        (house.root / name).rmdir()
    checks = {check.subject: check.state for check in directory_checks.directories(settings)}
    assert set(checks) == {"user", "inbox", "state", "state space", "inbox file system", "state file system"}
    assert set(checks.values()) == {"ok"}


def test_before_the_first_start(house: House) -> None:
    """If only the inbox exists, nothing is made; it is said that the first start makes what is missing."""
    for name in ("sorted", "review", "quarantine", "state"):
        (house.root / name).rmdir()
    code, told = house.run()
    assert (code, bad(told), sorted(os.listdir(house.root))) == (0, {}, ["config.yaml", "inbox"])
    assert "not there yet" in told["sorted"]["told"]


def test_for_people(house: House) -> None:
    """Without ``--json`` it is one line a check and a last one that counts, with the advice below what needs it."""
    house.config.write_text("model: {weights: nowhere}\n")
    ended = mednet("doctor", "--config", str(house.config))
    lines = ended.stdout.splitlines()
    assert (ended.returncode, lines[-1].split(", ")[-1]) == (1, "1 will not work")
    place = next(number for number, line in enumerate(lines) if line.startswith("fail  weights"))
    assert lines[place + 1].strip().startswith("Set model.weights")


@needs_torch
def test_torch_is_not_asked_without_need(house: House) -> None:
    """Torch is not imported if there is no choice of device."""
    house.config.write_text("model: {device: cpu}\n")
    program = (
        f"import sys; from watcher.cli import main; code = main.main(['doctor', '--config', {str(house.config)!r}]);"
        "sys.exit(code + 10 * ('torch' in sys.modules))"
    )
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    assert (
        subprocess.run([sys.executable, "-c", program], env=environ, check=False, capture_output=True).returncode == 0
    )


@needs_torch
@pytest.mark.parametrize(("runtime", "there", "state", "told"), [
    ("auto", True, "ok", "by onnxruntime"),
    ("onnxruntime", True, "ok", "by onnxruntime"),
    ("auto", False, "ok", "can not be imported"),
    ("onnxruntime", False, "fail", "can not be imported"),
    ("torch", False, "ok", "cpu, torch"),
])  # fmt: skip
def test_what_computes_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, there: bool, state: str, told: str
) -> None:
    """It is told; asked for by name and installed but broken, it is a fault that says what to install."""
    for name in ("onnx", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("" if there else "raise TypeError('Descriptors cannot be created')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = program_checks.device("cpu", runtime)
    assert (found.state, told in found.result) == (state, True)
    assert (found.advice is not None and "mednet-watcher[onnx]" in found.advice) is (state == "fail")


@needs_torch
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("inbox: {path: nowhere}", {"inbox": "fail"}),
        ("inbox: {path: config.yaml}", {"inbox": "fail"}),
        ("inbox: {sentinel: mounted}", {"inbox": "fail"}),
        ("output: {review: config.yaml/below}", {"review": "fail"}),
        ("output: {rejected: config.yaml/below}", {"rejected": "fail"}),
        ("model: {weights: config.yaml}", {"weights": "fail"}),
        ("model: {device: cpu, threads: 4096}", {"cores": "warn"}),
        ("decode: {memory_mb: 40}", {f"decoder {name}": "fail" for name in detect.NAMES}),
    ],
)
def test_what_will_not_work(house: House, settings: str, wanted: dict[str, str]) -> None:
    """Each fault is told as what it is, with advice, and the other checks go on. Warnings leave the exit code at 0."""
    house.config.write_text(settings + "\n")
    told = program_checks.checks(load(house.config, {}))
    found = {each.subject: each.state for each in told if each.state != "ok"}
    assert found == wanted


def test_damaged_ledger(house: House) -> None:
    """A ledger that can not be read fails, with its own advice."""
    (house.root / "state" / "ledger.sqlite3").write_bytes(b"x" * 5000)
    code, told = house.run()
    assert (code, bad(told)) == (1, {"ledger": "fail"})


def test_another_file_system(house: House) -> None:
    """To another file system files are copied: a warning for that way only, and no probe stays on either side."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or os.stat(shared).st_dev == os.stat(house.root).st_dev:
        pytest.skip("needs /dev/shm as another file system")
    place = shared / f"mednet-{os.getpid()}"
    place.mkdir()
    try:
        house.config.write_text(f"output: {{review: {place}}}\n")
        code, told = house.run()
        assert (code, bad(told), house.left(), os.listdir(place)) == (0, {"inbox to review": "warn"}, [], [])
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(("watch", "code", "state"), [("auto", 0, "warn"), ("events", 1, "fail")])
def test_no_watch_left(house: House, watch: str, code: int, state: str) -> None:
    """Without an inotify watch events are missing: that fails only if they are insisted upon."""
    limited = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_inotify_watches && exec "$@"', "sh"]
    if subprocess.run([*limited, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces, whose own limit is set here")
    house.config.write_text(f"inbox: {{watch: {watch}}}\n")
    ended, told = house.run(*limited)
    assert (ended, bad(told)) == (code, {"events": state})


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    if os.getuid() != 0 or not shutil.which("bindfs"):
        pytest.skip("needs root and bindfs (Debian: bindfs)")
    (tmp_path / "behind").mkdir()
    mount = tmp_path / "fuse"
    mount.mkdir()
    if subprocess.run(["bindfs", tmp_path / "behind", mount], capture_output=True, check=False).returncode:
        pytest.skip("FUSE can not be mounted here")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_share(tmp_path: Path, fuse: Path) -> None:
    """An inbox on a share is scanned only, which is well; the ledger there is not. What is found is really so."""
    house = House(tmp_path)
    (fuse / "inbox").mkdir()
    house.config.write_text(f"inbox: {{path: {fuse / 'inbox'}}}\nstate: {{path: {fuse / 'state'}}}\n")
    code, told = house.run()
    assert code == 1
    assert bad(told).keys() >= {"state file system", "inbox to sorted"}
    assert "only scans find files" in told["events"]["told"]
    assert "fuse" in told["inbox file system"]["told"]
    assert house.left() == []


def test_beside_a_running_daemon(tmp_path: Path) -> None:
    """Again and again while a daemon sorts: it takes no probe for a file, and loses none of its own."""
    daemon = Daemon(tmp_path, stub=True)
    producer = Producer(daemon, seed=11)
    with daemon:
        for _ in range(3):
            producer.drop(10)
            ended = mednet("doctor", "--json", "--config", str(daemon.config))
            assert ended.returncode == 0, ended.stdout
            assert f"process {daemon.process.pid}" in ended.stdout  # type: ignore[union-attr]
        daemon.until_filed(30)
        assert daemon.stop() == 0
    assert len(daemon.outcomes()) == 30
    assert os.listdir(daemon.inbox) == []
    check(daemon, producer.dropped)


class TestJudgements:
    """Of what this machine does not have, judged by its figures."""

    def test_directories_below(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that are sorted too are counted; one that can not be emptied, or is not entered, is worth a warning."""
        (tmp_path / "a/b").mkdir(parents=True)
        check = directory_checks.inbox(Inbox(tmp_path, recursive=True))
        assert (check.state, "0 files wait in it and in 2 directories" in check.result) == ("ok", True)
        monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "a/b")
        check = directory_checks.inbox(Inbox(tmp_path, recursive=True))
        assert (check.state, "1 of them can not be written, 0 are not entered" in check.result) == ("warn", True)
        assert directory_checks.inbox(Inbox(tmp_path)).state == "ok"

    @pytest.mark.parametrize(
        ("options", "settle_s", "state"),
        [
            ("rw", 2.0, "warn"),
            ("rw", 3.5, "ok"),
            ("rw,acregmin=1", 2.0, "ok"),
            ("rw,acregmin=10", 5.0, "warn"),
            ("rw,noac", 0.5, "ok"),
            ("rw,actimeo=60", 30.0, "warn"),
        ],
    )
    def test_nfs_cache(self, options: str, settle_s: float, state: str) -> None:
        """A client that remembers a file's size longer than settle_s would call a growing file quiet."""
        [mount] = mounts.parse(f"30 27 0:1 / /x rw - nfs4 nas:/x {options}")
        assert directory_checks.nfs(mount, settle_s).state == state

    @pytest.mark.parametrize(
        ("blocks", "inodes", "free_inodes", "state"),
        [
            (10**7, 10**6, 10**6, "ok"),
            (10**7, 0, 0, "ok"),
            (1000, 10**6, 10**6, "warn"),
            (10**7, 10**6, 99, "warn"),
            (0, 10**6, 10**6, "fail"),
            (10**7, 10**6, 0, "fail"),
        ],
    )
    def test_space(self, blocks: int, inodes: int, free_inodes: int, state: str) -> None:
        """Little room is worth a warning, none is a fault; file systems that count no inodes run out of none."""
        found = os.statvfs_result((4096, 4096, 10**8, blocks, blocks, inodes, free_inodes, free_inodes, 0, 255))
        assert directory_checks.space("inbox", found).state == state

    @pytest.mark.parametrize(
        ("kept", "grain_s"),
        [
            (directory_probe.ODD_NS, 1e-9),
            (1_700_000_001_123_456_700, 1e-7),
            (1_700_000_001_120_000_000, 1e-2),
            (1_700_000_001_000_000_000, 1.0),
            (1_700_000_000_000_000_000, 2.0),
        ],
    )
    def test_grain(self, kept: int, grain_s: float) -> None:
        """From what became of a time it is told how finely it was kept: ext4, NTFS, exFAT, ext3, FAT."""
        assert directory_probe._time_step_s(kept) == pytest.approx(grain_s)

    def test_ways(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """File systems without renameat2, and without links, are recognised by trying."""
        assert directory_probe.probe(tmp_path).move_method == "renameat2"
        monkeypatch.setattr(no_overwrite, "rename_in_one_call", lambda *_: False)
        assert directory_probe.probe(tmp_path).move_method == "link"

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
        assert (directory_probe.probe(tmp_path).move_method, directory_probe.probe(tmp_path).hard_links) == (
            "reserve",
            False,
        )
        assert os.listdir(tmp_path) == []

    def test_wrong_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A user who does not own the state directory is told as which user to run the command."""
        assert directory_checks.user(tmp_path).state == "ok"
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        told = directory_checks.user(tmp_path)
        assert told.state == "warn" and "sudo -u" in str(told.advice)
