"""Count the CPU cores that this process may use: in a service or a container fewer than the machine has."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The file that names this process's control group, and the directory of all groups: cgroups(7), version 2."""


def count() -> int:
    """Return the number of cores that this process may run on, at least 1.

    A CPU quota of its control group, or of a group above it, lowers the number (``CPUQuota=`` of systemd). More
    threads than that would use up the quota at once, and then all of them would stand still until the next period.
    """
    quotas = [quota for quota in map(_quota, _groups()) if quota is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def _groups() -> list[Path]:
    """Return the directories of this process's control group and of those above it. Empty if they are unknown."""
    try:
        lines = GROUP.read_text().splitlines()
    except OSError:
        return []
    [path] = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")] or [""]
    own = GROUPS / path
    return [own, *(parent for parent in own.parents if parent.is_relative_to(GROUPS))]


def _quota(group: Path) -> float | None:
    """Return the CPU quota of a control group in cores, or None if it has no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)  # raises ValueError for "max", which stands for no limit
    return None
