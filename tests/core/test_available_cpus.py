"""The number of threads fits the CPUs that a service may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from watcher.core import available_cpus


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The service's control group, on a machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(available_cpus, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(available_cpus, "GROUPS", tmp_path / "fs")
    (tmp_path / "cgroup").write_text("0::/system.slice/mednet-watcher.service\n")
    service = tmp_path / "fs" / "system.slice" / "mednet-watcher.service"
    service.mkdir(parents=True)
    return service


@pytest.mark.parametrize(
    ("service", "above", "count"),
    [
        ("200000 100000", "max 100000", 2),
        ("max 100000", "350000 100000", 4),
        ("800000 100000", "300000 100000", 3),
        ("10000 100000", "max 100000", 1),
        ("max 100000", "max 100000", 64),
        ("9900000 100000", "max 100000", 64),
        ("rubbish", "", 64),
    ],
)
def test_by_quota(groups: Path, service: str, above: str, count: int) -> None:
    """The tightest quota of the group and those above it, rounded up; without one, or beyond, all cores."""
    (groups / "cpu.max").write_text(f"{service}\n")
    (groups.parent / "cpu.max").write_text(f"{above}\n")
    assert available_cpus.count() == count


def test_where_the_kernel_does_not_tell(groups: Path) -> None:
    """No quota, no control group of version 2, no such file: the cores it may run on."""
    assert available_cpus.count() == 64
    available_cpus.GROUP.write_text("9:name=systemd:/\n1:cpu:/\n")
    assert available_cpus.count() == 64
    available_cpus.GROUP.unlink()
    assert available_cpus.count() == 64
