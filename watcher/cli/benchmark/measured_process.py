"""A process under measurement: what it writes, what memory it takes, and its certain end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import watcher
from watcher.core.errors import Fatal

POLL_S = 0.02
SILENCE_S = 120.0
"""A process that writes nothing for so long while something is awaited has failed."""

STOP_S = 30.0


class Process:
    """Runs ``python -m module arguments``, its output in files in ``directory``. A context manager."""

    def __init__(self, module: str, arguments: Sequence[str], directory: Path) -> None:
        self.module = module
        self.started_s = time.monotonic()
        self._output, self._errors = directory / f"{module}.out", directory / f"{module}.err"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=directory,
                env=_environment(os.environ),
            )
        self._reader = self._output.open("rb")
        self._rest = b""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def lines(self) -> list[bytes]:
        """Whole lines that were written to standard output since the last call."""
        *whole, self._rest = (self._rest + self._reader.read()).split(b"\n")
        return whole

    def wait_for(self, enough: Callable[[list[bytes]], bool], poll_s: float = POLL_S) -> float:
        """Hand lines to ``enough`` as they come, until it says so. Gives that moment (monotonic seconds).

        Raises:
            Fatal: the process ended, or wrote nothing for ``SILENCE_S``.
        """
        heard_s = time.monotonic()
        while True:
            ended = self._process.poll() is not None
            lines = self.lines()
            if enough(lines):
                return time.monotonic()
            if lines:
                heard_s = time.monotonic()
            elif ended or time.monotonic() - heard_s > SILENCE_S:
                raise self.failure("it ended early" if ended else f"nothing came from it for {SILENCE_S:g} s")
            time.sleep(poll_s)

    def failure(self, why: str) -> Fatal:
        """An error that shows the last lines the process wrote."""
        told = [line for path in (self._output, self._errors) for line in path.read_text(errors="replace").splitlines()]
        last = "\n  ".join(told[-8:])
        return Fatal(f"{self.module}: {why}", f"Its last words:\n  {last}")

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if that does not do. Gives the exit code."""
        self._reader.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def memory_mb(self, field: str) -> tuple[float, float]:
        """``VmHWM`` (peak) or ``VmRSS`` (now) in MB: of the process, and of its children together."""
        children = sum(_memory_mb(pid, field) for pid in _descendants(self.pid))
        return _memory_mb(self.pid, field), children


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would override the measured daemon's settings."""
    kept = {name: value for name, value in given.items() if not name.startswith("MEDNET_")}
    home = str(Path(watcher.__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (home, given.get("PYTHONPATH"))))
    return kept


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from _descendants(child)


def _memory_mb(pid: int, field: str) -> float:
    """Megabytes (10^6 bytes) of a field of ``/proc/PID/status``; 0 for a process that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
