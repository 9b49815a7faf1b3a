"""The systemd service: its files by systemd's own tools, and the whole of it under a real systemd."""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Sampler, mednet
from tests.support.repository import TOP
from tests.support.systemd_container import Container, missing
from tests.support.waiting import LONGEST_S
from watcher.cli.commands import install_service
from watcher.config import loader
from watcher.config.settings import Review
from watcher.core import shipped_files
from watcher.core.errors import Exit
from watcher.core.records import Outcome
from watcher.images import decode
from watcher.model import checkpoint, classifier, thresholds
from watcher.model.decision import Network, Policy, decide

UNIT = "etc/systemd/system/mednet-watcher.service"
# Python's own library as well: where it was built to look for it may be hidden from the service.
ENVIRONMENT = (
    "PYTHONPATH=/opt/mednet-watcher/site:/opt/mednet-watcher/repo\nLD_LIBRARY_PATH=/opt/mednet-watcher/python/lib\n"
)
CONFIG = "/etc/mednet-watcher/config.yaml"
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not there")


def install(prefix: Path, *words: str) -> Path:
    ended = mednet("install-service", "--prefix", str(prefix), *words)
    assert ended.returncode == 0, ended.stderr
    return prefix / UNIT


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=LONGEST_S, check=False)


@needs_systemd
@pytest.mark.parametrize(
    ("words", "most"), [((), 0.5), (("--gpu",), 1.0), (("--metrics",), 1.5), (("--gpu", "--metrics"), 1.5)]
)
def test_what_systemd_says_of_the_unit(tmp_path: Path, words: tuple[str, ...], most: float) -> None:
    """`verify` prints nothing at all, and the exposure stays below its bound, with each drop-in."""
    unit = install(tmp_path, *words)
    verified = analyze("verify", str(unit))
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    told = analyze("security", "--offline=yes", str(unit)).stdout
    [exposure] = re.findall(r"Overall exposure level for mednet-watcher\.service: ([0-9.]+)", told)
    print(f"exposure {exposure} of 10 with {' '.join(words) or 'no drop-in'}")
    assert float(exposure) <= most


def test_what_a_restart_may_mend(tmp_path: Path) -> None:
    """Mistakes of the operator end the service for good; a disk, a mount, a daemon that dies slowly never do.

    Nor, with the GPU drop-in, does a driver that is loaded late.
    """
    unit = install(tmp_path, "--gpu")
    never = re.findall("^RestartPreventExitStatus=(.*)$", unit.read_text(), re.MULTILINE)
    assert [set(map(int, each.split())) for each in never] == [{Exit.USAGE, Exit.CONFIG, Exit.MODEL}]
    gpu = (unit.with_name(f"{unit.name}.d") / "gpu.conf").read_text()
    never = re.findall("^RestartPreventExitStatus=(.*)$", gpu, re.MULTILINE)
    assert [set(map(int, each.split())) for each in never] == [set(), {Exit.USAGE, Exit.CONFIG}]
    assert "StartLimitIntervalSec=0" in unit.read_text()


@needs_systemd
def test_the_file_in_the_repository_is_a_unit_as_it_is() -> None:
    """Nothing in it is to be filled in."""
    verified = analyze("verify", str(TOP / "systemd" / "mednet-watcher.service"))
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It names every file, and makes none."""
    ended = mednet("install-service", "--prefix", str(tmp_path / "root"), "--dry-run", "--gpu")
    assert ended.returncode == 0
    assert all(name in ended.stdout for name in (UNIT, "sysusers.d", "tmpfiles.d", "config.yaml", "gpu.conf"))
    assert not (tmp_path / "root").exists()


def test_what_is_the_operators_stays(tmp_path: Path) -> None:
    """Installed again, a changed config and environment are kept, and a changed unit is put right."""
    unit = install(tmp_path)
    yours = [tmp_path / "etc/mednet-watcher" / name for name in ("config.yaml", "environment")]
    for path in (*yours, unit):
        path.write_text("# changed\n")
    install(tmp_path)
    assert [path.read_text() for path in yours] == ["# changed\n"] * 2
    assert "[Service]" in unit.read_text()
    assert not list(tmp_path.rglob("*.new"))


def test_the_installed_config_fits_the_unit(tmp_path: Path) -> None:
    """It is valid, differs from the shipped one by its paths alone, and each lies where the unit lets it write."""
    unit = install(tmp_path).read_text()
    found = loader.load(tmp_path / "etc/mednet-watcher/config.yaml", {})
    shipped = loader.load(TOP / "config.yaml", {})
    output = found.output
    images = [found.inbox.path, output.sorted, output.review, output.quarantine, output.rejected]
    [mounts] = re.findall("^RequiresMountsFor=(.*)$", unit, re.MULTILINE)
    assert mounts.split() == [str(path) for path in images]
    [writable] = re.findall("^ReadWritePaths=(.*)$", unit, re.MULTILINE)
    assert all(path.is_relative_to(writable) for path in images)
    assert "StateDirectory=mednet-watcher" in unit
    assert str(found.state.path) == "/var/lib/mednet-watcher"
    same = {"output": {"file_mode"}, "inbox": set(type(found.inbox).model_fields) - {"path"}}
    for section, value in found.sections():
        if section != "state":
            assert value.model_dump(include=same.get(section)) == getattr(shipped, section).model_dump(
                include=same.get(section)
            )


def test_the_program_is_found(tmp_path: Path) -> None:
    """If the program is not in the unit's PATH, a drop-in names its directory."""
    unit = install(tmp_path)
    drop_in = unit.with_name(f"{unit.name}.d") / "program.conf"
    assert f"PATH={Path(sys.executable).parent}:/opt/mednet-watcher/bin:" in drop_in.read_text()


def test_a_program_that_the_service_can_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also through a link from where the service could: it is the program's own place that counts."""
    program, link = tmp_path / "venv" / "mednet-watcher", tmp_path / "bin" / "mednet-watcher"
    program.parent.mkdir()
    link.parent.mkdir()
    program.touch()
    link.symlink_to(program)
    monkeypatch.setattr(sys, "argv", [str(link)])
    monkeypatch.setattr(install_service, "_HIDDEN", (str(program.parent),))
    args = argparse.Namespace(prefix=tmp_path / "root", gpu=False, metrics=False, dry_run=False)
    assert install_service.run(args) == 0
    assert f"can not see {program.parent}" in capsys.readouterr().err
    drop_in = tmp_path / "root" / f"{UNIT}.d" / "program.conf"
    assert f"PATH={program.parent}:" in drop_in.read_text()


def test_a_prefix_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    """Exit code 5 and what to do, no traceback."""
    (tmp_path / "etc").touch()
    ended = mednet("install-service", "--prefix", str(tmp_path))
    assert (ended.returncode, "Traceback" in ended.stderr, "--prefix" in ended.stderr) == (5, False, True)


@pytest.fixture
def booted(tmp_path: Path) -> Iterator[Container]:
    """A container with the service installed, its watchdog made impatient, and not yet started."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with Container(tmp_path) as container:
        shell(container, "mednet-watcher install-service")
        container.write("/etc/mednet-watcher/environment", ENVIRONMENT)
        container.write(f"/{UNIT}.d/test.conf", "[Service]\nWatchdogSec=3\nTimeoutAbortSec=2\nRestartSec=1\n")
        for command in ("systemd-sysusers", "systemd-tmpfiles --create mednet-watcher.conf", "systemctl daemon-reload"):
            container.run(*command.split())
        yield container


def shell(container: Container, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run as an operator would, the program on the path."""
    own = f"export PATH=$PATH:/opt/mednet-watcher/bin {' '.join(ENVIRONMENT.split())}"
    return container.run("sh", "-c", f"{own}; {script}", check=check)


@functools.cache
def network() -> tuple[Network, Policy]:
    weights = checkpoint.load(shipped_files.weights())
    station = classifier.Classifier(classifier.build(weights), classifier.choose_device("cpu"))
    return classifier.make_scorer(station, weights), thresholds.policy(Review(), weights)


def sure(sampler: Sampler, label: str) -> bytes:
    """A sample that the shipped network files: it is the service that is tested."""
    score, policy = network()
    for _ in range(50):
        content = sampler.jpeg(label)
        [decision] = decide(score(decode.grey64(content)[None]), [False], policy)
        if (decision.outcome, decision.label) == (Outcome.SORTED, label):
            return content
    raise AssertionError(f"none of 50 samples of {label} is filed")


def drop(container: Container, sampler: Sampler, label: str, name: str) -> None:
    container.write(f"/srv/radiology/inbox/{name}", sure(sampler, label))


def until_sorted(container: Container, count: int) -> list[str]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = container.run("sh", "-c", "cd /srv/radiology/sorted && find . -type f").stdout.split()
        if len(found) >= count:
            return sorted(found)
        time.sleep(0.2)
    raise AssertionError(container.run("journalctl", "--no-pager", "-o", "cat", "-n", "30").stdout)


@pytest.mark.slow
def test_under_a_real_systemd(booted: Container) -> None:
    """As installed and confined, the service sorts images of every class; stuck, it is restarted; nothing is lost.

    systemd itself is process 1 of a container. Printed is the session, for `make service`.
    """
    sampler = Sampler()
    booted.run("sed", "-i", "s/patience_s: 30.0/patience_s: 1.0/", CONFIG)
    booted.run("systemctl", "start", "mednet-watcher")  # comes back when READY=1 has been sent
    for number, label in enumerate(sampler.classes):
        drop(booted, sampler, label, f"{number}.jpeg")
    assert until_sorted(booted, 6) == sorted(f"./{label}/{n}.jpeg" for n, label in enumerate(sampler.classes))
    print(booted.run("systemctl", "status", "mednet-watcher", "--no-pager", "-n", "0").stdout)
    _confined(booted)
    _ask_the_journal(booted)
    booted.run(
        "sed",
        "-i",
        "s/patience_s: 30.0/patience_s: 1.0/;s/min_confidence: null/min_confidence: 0.9/",
        "/etc/mednet-watcher/config.yaml",
    )
    booted.run("systemctl", "reload", "mednet-watcher")
    booted.run("sh", "-c", "until journalctl -u mednet-watcher -g reload.done; do sleep 0.5; done")
    pid = booted.main_pid()
    booted.run("kill", "-STOP", pid)
    drop(booted, sampler, "Hand", "during.jpeg")
    until_sorted(booted, 7)
    assert booted.main_pid() != pid
    assert booted.run("systemctl", "show", "-P", "NRestarts", "mednet-watcher").stdout.strip() == "1"
    booted.run("systemctl", "stop", "mednet-watcher")
    assert booted.run("systemctl", "is-failed", "mednet-watcher", check=False).stdout.strip() == "inactive"
    journal = booted.run("journalctl", "--no-pager", "-u", "mednet-watcher").stdout
    print(journal)
    assert "Watchdog timeout" in journal
    assert '"changed": ["review.min_confidence"]' in journal
    assert '"event": "daemon.stopped"' in journal


def _ask_the_journal(booted: Container) -> None:
    """Every query of docs/monitoring runs, and finds what there is to find."""
    booted.write("/srv/radiology/inbox/bad.txt", "no image")
    booted.run("sh", "-c", "until ls /srv/radiology/quarantine/bad.txt; do sleep 0.5; done")
    text = (TOP / "docs" / "monitoring" / "README.md").read_text()
    queries = re.findall("^    (journalctl .*)$", text, re.MULTILINE)
    assert len(queries) >= 6
    for query in queries:
        told = shell(booted, query if "|" in query else f"{query} --no-pager")
        print(f"$ {query}\n{told.stdout}")
        assert told.stdout.strip()
        if "-p warning" in query:
            assert "image.quarantined" in told.stdout
            assert "image.sorted" not in told.stdout


def _confined(booted: Container) -> None:
    """Another user, no capabilities, no new privileges, system calls filtered, the system read-only."""
    status = booted.run("cat", f"/proc/{booted.main_pid()}/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert facts["Uid"].split("\t")[0] != "0"
    assert (facts["CapBnd"], facts["NoNewPrivs"], facts["Seccomp"]) == ("0" * 16, "1", "2")
    _within_limits(booted)
    mounts = booted.run("cat", f"/proc/{booted.main_pid()}/mounts").stdout.splitlines()
    options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
    assert "ro" in options["/"]
    assert "rw" in options["/srv/radiology"]
    print("".join(f"{key}:\t{facts[key]}\n" for key in ("Uid", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters")))


def _within_limits(booted: Container) -> None:
    """Threads and memory of the service and its decoder lie far below what the unit allows them.

    The decoder has the limit of its own that the config sets: the filter of system calls lets it.
    """
    unit = (TOP / "systemd" / "mednet-watcher.service").read_text()
    [tasks] = re.findall(r"^TasksMax=(\d+)$", unit, re.MULTILINE)
    [gigabytes] = re.findall(r"^MemoryHigh=(\d+)G$", unit, re.MULTILINE)
    pids = [booted.main_pid(), *booted.run("pgrep", "-P", booted.main_pid()).stdout.split()]
    told = "".join(booted.run("cat", f"/proc/{pid}/status").stdout for pid in pids)
    peak_kb, threads = (
        sum(map(int, re.findall(rf"^{key}:\s*(\d+)", told, re.MULTILINE))) for key in ("VmHWM", "Threads")
    )
    print(f"\n{len(pids)} processes, {threads} threads, at most {peak_kb // 1024} MiB")
    assert len(pids) == 2
    assert threads < int(tasks) / 2
    assert peak_kb < int(gigabytes) * 2**20 / 2
    limits = booted.run("cat", f"/proc/{pids[1]}/limits").stdout
    assert re.search(rf"^Max address space +{1024 << 20} ", limits, re.MULTILINE)


@pytest.mark.slow
def test_what_goes_wrong_on_call(booted: Container) -> None:
    """Each mishap is said where an operator looks, and what mends itself is waited for."""
    shell(
        booted,
        f"sed -i 's/interval_s: 5.0/interval_s: 0.5/;s/settle_s: 2.0/settle_s: 0.3/;s/port: null/port: 0/' {CONFIG}",
    )
    _metrics_without_the_drop_in(booted)
    _another_has_the_lock(booted)
    _a_typo(booted)
    _an_inbox_elsewhere(booted)
    _who_asks(booted)
    sampler = Sampler()
    _metrics(booted)
    _another_user_delivers(booted, sampler)
    _a_share_comes_and_goes(booted, sampler)
    print(f"$ journalctl -u mednet-watcher -p warning -o cat\n{_warnings(booted)}")


def _warnings(booted: Container) -> str:
    return booted.run("journalctl", "-u", "mednet-watcher", "-p", "warning", "-o", "cat", "--no-pager").stdout


def _metrics_without_the_drop_in(booted: Container) -> None:
    """The unit opens no network: the service does not start, and says which drop-in does."""
    assert shell(booted, "systemctl start mednet-watcher", check=False).returncode == 1
    assert "`mednet-watcher install-service --metrics`" in _warnings(booted)
    shell(booted, "systemctl stop mednet-watcher; mednet-watcher install-service --metrics; systemctl daemon-reload")


def _another_has_the_lock(booted: Container) -> None:
    """As one that a dead mount keeps from dying: the service comes up when it is gone."""
    state, user = "/var/lib/mednet-watcher", "setpriv --reuid mednet-watcher --regid mednet-watcher --clear-groups"
    script = f"({user} flock {state}/daemon.lock sleep 4 >/dev/null 2>&1 &); sleep 0.3;"
    assert shell(booted, f"{script} systemctl start mednet-watcher", check=False).returncode == 1
    assert "another daemon" in _warnings(booted)
    shell(booted, "until systemctl is-active mednet-watcher; do sleep 0.2; done")


def _a_typo(booted: Container) -> None:
    """Reloaded, the service goes on and says so in its status; restarted, it does not start and says why."""
    shell(booted, f"cp {CONFIG} /tmp/good; sed -i 's/patience_s/patiense_s/' {CONFIG}; systemctl reload mednet-watcher")
    shell(booted, "until systemctl status mednet-watcher | grep 'config on disk was refused'; do sleep 0.2; done")
    assert shell(booted, "systemctl restart mednet-watcher", check=False).returncode == 1
    last = _warnings(booted).split('"event": "reload.refused"')[-1]
    assert all(word in last for word in ("did you mean `patience_s`", "daemon.failed"))
    assert shell(booted, "sleep 2; systemctl is-failed mednet-watcher").stdout.strip() == "failed"
    shell(booted, f"cp /tmp/good {CONFIG}; systemctl restart mednet-watcher")


def _an_inbox_elsewhere(booted: Container) -> None:
    """Outside what the unit lets it write, the advice is the key that does; and it works."""
    shell(
        booted,
        f"install -d -o mednet-watcher /mnt/pacs; sed -i 's#path: /srv/radiology/inbox#path: /mnt/pacs#' {CONFIG}",
    )
    assert shell(booted, "systemctl restart mednet-watcher", check=False).returncode == 1
    assert "ReadWritePaths=" in _warnings(booted)
    booted.write(f"/{UNIT}.d/elsewhere.conf", "[Service]\nReadWritePaths=/mnt/pacs\n")
    shell(booted, "systemctl daemon-reload; systemctl restart mednet-watcher")
    shell(booted, f"rm /{UNIT}.d/elsewhere.conf; cp /tmp/good {CONFIG}; systemctl daemon-reload")
    shell(booted, "systemctl restart mednet-watcher")


def _who_asks(booted: Container) -> None:
    """``status`` finds the service's config by itself; who may not look is not told that nothing runs."""
    assert "running     yes, process" in shell(booted, "cd /; mednet-watcher status").stdout
    nobody = shell(
        booted, "cd /; setpriv --reuid nobody --regid nogroup --clear-groups mednet-watcher status", check=False
    )
    assert (nobody.returncode, nobody.stdout, "can not be entered" in nobody.stderr) == (5, "", True)


def _metrics(booted: Container) -> None:
    """Read over the loopback interface, which metrics.conf opens."""
    lines = booted.run("journalctl", "-u", "mednet-watcher", "-g", "metrics.serving", "-o", "cat", "--no-pager").stdout
    port = json.loads(lines.splitlines()[-1])["port"]
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}/metrics", timeout=LONGEST_S
    ) as answer:  # the container has our network
        assert b"mednet_inbox_reachable 1.0" in answer.read()


def _another_user_delivers(booted: Container, sampler: Sampler) -> None:
    """A member of the service's group, by the modes that tmpfiles.d gave."""
    booted.write("/tmp/a.jpeg", sure(sampler, "Hand"))
    shell(booted, "useradd --system --groups mednet-watcher ris; chmod 644 /tmp/a.jpeg")
    copy = "sh -c 'umask 027; cp /tmp/a.jpeg /srv/radiology/inbox'"
    shell(booted, f"setpriv --reuid ris --regid ris --init-groups {copy}")
    assert until_sorted(booted, 1) == ["./Hand/a.jpeg"]


def _a_share_comes_and_goes(booted: Container, sampler: Sampler) -> None:
    """Mounted over the inbox while the service runs, it is sorted from; unmounted, what lies beneath is."""
    own = "mode=2770,uid=mednet-watcher,gid=mednet-watcher"
    booted.run("mount", "-t", "tmpfs", "-o", own, "share", "/srv/radiology/inbox")
    drop(booted, sampler, "CXR", "share.jpeg")
    until_sorted(booted, 2)
    booted.run("umount", "/srv/radiology/inbox")
    drop(booted, sampler, "CXR", "beneath.jpeg")
    until_sorted(booted, 3)
    assert booted.run("systemctl", "show", "-P", "NRestarts", "mednet-watcher").stdout.strip() == "0"
