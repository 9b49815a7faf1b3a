"""Wait for what other processes do, longer on a machine that is busy with other work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

LONGEST_S = 300.0
"""Seconds after which a wait fails. What succeeds never takes so long, on however busy a machine."""


def until(
    condition: Callable[[], object], problem: Callable[[], str] = lambda: "", longest_s: float = LONGEST_S
) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not hold after ``longest_s``; the message is what ``problem`` returns then.
    """
    deadline = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < deadline, problem()
        time.sleep(0.02)


def slowness() -> float:
    """Return how many times longer than alone a process takes just now, at least 1.

    It is the number of processes that want to run for each CPU. Times within which the product must do something are
    multiplied by it.
    """
    runnable = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return max(1.0, max(runnable, os.getloadavg()[0]) / len(os.sched_getaffinity(0)))
