"""``make study``: ended at any point, nothing goes on behind the operator's back. With a stand-in for the trainings."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import waiting
from tests.support.repository import TOP
from tests.support.waiting import LONGEST_S

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def start(home: Path, script: str) -> subprocess.Popen[bytes]:
    """Start ``make study`` as a terminal does, each training being this shell script."""
    for installed in (".locked", ".torch", ".installed"):
        (home / installed).touch()
    program = home / "mednet-watcher"
    program.write_text(f"#!/bin/sh\necho $$ >> {home}/pids\n{script}\n")
    program.chmod(0o755)
    settings = {"DATA": "d", "SPLIT": "s", "RUNS": home, "VENV": home, "BIN": home}
    return subprocess.Popen(
        ["make", "study", *(f"{name}={value}" for name, value in settings.items())],
        cwd=TOP,
        # OMP_NUM_THREADS counts as the number of cores for nproc.
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "OMP_"))},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )


def running(home: Path) -> list[int]:
    """Those of the stand-ins that are alive; one that nobody has waited for yet is not."""
    found = []
    for pid in (home / "pids").read_text().split() if (home / "pids").exists() else []:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
        except FileNotFoundError:
            continue
        if state != "Z":
            found.append(int(pid))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_it_ends_its_trainings(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, which the trainings themselves do not hear, leaves none of them running; nor does SIGTERM."""
    making = start(tmp_path, "exec sleep 1000")
    waiting.until(lambda: len(running(tmp_path)) == len(os.sched_getaffinity(0)))
    os.killpg(making.pid, number)
    assert making.wait(timeout=LONGEST_S) != 0
    waiting.until(lambda: running(tmp_path) == [])
