"""How many cores there are for this process: fewer than the machine has, in a service or a container."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The control group of this process, and where they all are: cgroups(7), version 2."""


def usable() -> int:
    """Those it may run on, or fewer by the quota of its control group or one above it (``CPUQuota=`` of systemd).

    More threads than that would spend the quota at once, and then all stand still until the next period.
    """
    quotas = [quota for quota in map(_quota, _groups()) if quota is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def _groups() -> list[Path]:
    """The group and those above it; none where the kernel does not tell."""
    try:
        lines = GROUP.read_text().splitlines()
    except OSError:
        return []
    [path] = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")] or [""]
    here = GROUPS / path
    return [here, *(above for above in here.parents if above.is_relative_to(GROUPS))]


def _quota(group: Path) -> float | None:
    """In cores; None: no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is no number
    return None
