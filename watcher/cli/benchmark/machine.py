"""Describe the machine that a benchmark runs on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from watcher import __version__


def describe(directory: Path) -> dict[str, str]:
    """Return the date, the machine, the versions, and the file system that the benchmark's files are on."""
    cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{_cpu()}, {cores} core{'s' * (cores != 1)}, Linux {platform.release()}",
        "versions": f"Python {platform.python_version()}, torch {metadata.version('torch')}, "
        f"mednet-watcher {__version__}",
        "files on": f"{_file_system(directory)}, read before (page cache warm)",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(directory: Path) -> str:
    """Return the type of the file system that a directory is on, as the kernel names it."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[2] == number:
                return line.partition(" - ")[2].split()[0]
    except (OSError, IndexError):
        pass
    return "an unknown file system"
