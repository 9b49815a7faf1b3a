"""Measure the real daemon, in a process and a directory of its own."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from watcher.cli.benchmark import input_files
from watcher.cli.benchmark.measured_process import Process
from watcher.core.errors import Fatal

_CONFIG = """\
inbox: {{path: {inbox}}}
model: {{weights: {weights}}}
log: {{format: json, level: info}}
"""

SOAK_CHUNK = 1000
PAUSE_S = (0.05, 0.25)
LATENCY_POLL_S = 0.001
LATENCY_LIMIT_S = 60.0


@dataclass
class Daemon:
    """A daemon that is ready. ``ready_s`` is the time from the start of its process until then."""

    process: Process
    root: Path
    ready_s: float
    outcomes: int = 0

    @property
    def inbox(self) -> Path:
        """Directory that the daemon watches."""
        return self.root / "inbox"

    @property
    def staging(self) -> Path:
        """Directory on the same file system that the daemon does not watch."""
        return self.root / "staging"

    def wait_until_filed(self, count: int) -> float:
        """Wait until the log has the outcomes of ``count`` files in all. Return that time, in monotonic seconds."""

        def enough(lines: list[bytes]) -> bool:
            self.outcomes += sum(b'"image.' in line for line in lines)
            return self.outcomes >= count

        return self.process.wait_for(enough)

    def landed(self) -> Counter[str]:
        """Return how many files of each name there are in the output directories."""
        filed = [p for place in ("sorted", "review", "quarantine") for p in (self.root / place).rglob("*")]
        return Counter(p.name for p in filed if p.is_file() and not p.name.endswith(".reason.json"))

    def verify(self, names: Sequence[str]) -> None:
        """Check that every file was filed exactly once, and none stayed in the inbox.

        Raises:
            Fatal: a file was lost, doubled or left.
        """
        left = sum(1 for _ in self.inbox.iterdir())
        if left or self.landed() != Counter(names) or self.outcomes != len(names):
            raise Fatal(
                f"of {len(names)} files {left} stayed in the inbox, {self.landed().total()} were filed, "
                f"the log has {self.outcomes} outcomes",
                "This is a defect of the daemon: please report it.",
            )


@contextlib.contextmanager
def daemon(root: Path, weights: Path) -> Iterator[Daemon]:
    """Start a daemon in the new directory ``root``. Stop it and remove the directory at the end."""
    (root / "inbox").mkdir(parents=True)
    config = root / "config.yaml"
    config.write_text(_CONFIG.format(inbox=json.dumps(str(root / "inbox")), weights=json.dumps(str(weights))))
    try:
        with Process("watcher", ["run", "--config", str(config)], root) as process:
            ready_s = process.wait_for(lambda lines: any(b'"daemon.ready"' in line for line in lines), 0.005)
            yield Daemon(process, root, ready_s - process.started_s)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class Burst:
    """Result of a burst: files per second, seconds until ready, peak memory in MB of the daemon and its children."""

    files_per_s: float
    ready_s: float
    peak_mb: float
    children_mb: float


def burst(root: Path, weights: Path, pool: Sequence[Path], count: int) -> Burst:
    """Drop ``count`` files at once, and measure the time from the first rename until the last file is filed."""
    with daemon(root, weights) as running:
        names = input_files.stage(pool, 0, count, running.staging)
        began_s = time.monotonic()
        input_files.drop(names, running.staging, running.inbox)
        took_s = running.wait_until_filed(count) - began_s
        running.verify(names)
        return Burst(count / took_s, running.ready_s, *running.process.memory_mb("VmHWM"))


def latencies_ms(root: Path, weights: Path, pool: Sequence[Path], count: int, seed: int = 0) -> list[float]:
    """Write files into an idle inbox, one at a time. Return the milliseconds from ``close()`` until each has left it.

    A move on one file system is a single rename, so a file leaves the inbox at the instant at which it appears in its
    class directory. The inbox is polled every millisecond, which adds up to a millisecond to each latency.
    """
    rng = random.Random(seed)
    latencies = []
    with daemon(root, weights) as running:
        sources = list(input_files.names(pool, 0, count))
        for source, name in sources:
            data, target = source.read_bytes(), running.inbox / name
            time.sleep(rng.uniform(*PAUSE_S))
            with target.open("wb", buffering=0) as file:
                file.write(data)
                closed_s = time.perf_counter()
            while target.exists():
                if time.perf_counter() - closed_s > LATENCY_LIMIT_S:
                    raise running.process.failure(f"a single file was not filed within {LATENCY_LIMIT_S:g} s")
                time.sleep(LATENCY_POLL_S)
            latencies.append((time.perf_counter() - closed_s) * 1000)
        running.wait_until_filed(count)
        running.verify([name for _, name in sources])
    return latencies


@dataclass(frozen=True)
class Footprint:
    """Resident memory in MB, of the daemon and of its children, after ``files`` files."""

    files: int
    daemon_mb: float
    children_mb: float


def soak(root: Path, weights: Path, pool: Sequence[Path], count: int) -> list[Footprint]:
    """Drop ``count`` files in chunks. Measure memory after every 5 chunks and at the end, when the inbox is empty."""
    footprints: list[Footprint] = []
    with daemon(root, weights) as running:
        for first in range(0, count, SOAK_CHUNK):
            size = min(SOAK_CHUNK, count - first)
            input_files.drop(input_files.stage(pool, first, size, running.staging), running.staging, running.inbox)
            running.wait_until_filed(first + size)
            if (first + size) % (5 * SOAK_CHUNK) == 0 or first + size == count:
                footprints.append(Footprint(first + size, *running.process.memory_mb("VmRSS")))
        running.verify([name for _, name in input_files.names(pool, 0, count)])
    return footprints
