"""Run a process that is measured: read its output and its memory, and end it."""

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
"""Seconds of silence after which a process that is waited for has failed."""

STOP_S = 30.0


class Process:
    """A process ``python -m module arguments`` with its output in files in ``directory``. A context manager."""

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
        """Process id."""
        return self._process.pid

    def lines(self) -> list[bytes]:
        """Return the complete lines that were written to standard output since the last call."""
        *whole, self._rest = (self._rest + self._reader.read()).split(b"\n")
        return whole

    def wait_for(self, enough: Callable[[list[bytes]], bool], poll_s: float = POLL_S) -> float:
        """Pass lines to ``enough`` as they come, until it returns True. Return that time, in monotonic seconds.

        Raises:
            Fatal: the process ended, or wrote nothing for ``SILENCE_S``.
        """
        last_line_s = time.monotonic()
        while True:
            ended = self._process.poll() is not None
            lines = self.lines()
            if enough(lines):
                return time.monotonic()
            if lines:
                last_line_s = time.monotonic()
            elif ended or time.monotonic() - last_line_s > SILENCE_S:
                raise self.failure("it ended early" if ended else f"it wrote nothing for {SILENCE_S:g} s")
            time.sleep(poll_s)

    def failure(self, why: str) -> Fatal:
        """Return an error that shows the last lines that the process wrote."""
        texts = (path.read_text(errors="replace") for path in (self._output, self._errors))
        lines = [line for text in texts for line in text.splitlines()]
        last = "\n  ".join(lines[-8:])
        return Fatal(f"{self.module}: {why}", f"Its last lines:\n  {last}")

    def stop(self) -> int:
        """End the process by SIGTERM, and by SIGKILL if it does not end in time. Return the exit code."""
        self._reader.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def memory_mb(self, field: str) -> tuple[float, float]:
        """Return ``VmHWM`` (peak) or ``VmRSS`` (now) in MB: that of the process, and the sum of its descendants."""
        children = sum(_memory_mb(pid, field) for pid in _descendants(self.pid))
        return _memory_mb(self.pid, field), children


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that override settings, and with this package on the path."""
    cleaned = {name: value for name, value in environ.items() if not name.startswith("MEDNET_")}
    home = str(Path(watcher.__file__).resolve().parent.parent)
    cleaned["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environ.get("PYTHONPATH"))))
    return cleaned


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from _descendants(child)


def _memory_mb(pid: int, field: str) -> float:
    """Return a field of ``/proc/PID/status`` in megabytes (10^6 bytes), or 0 if the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
