"""``bench``: the daemon against the loop people write first, and against the bare limit.

All in one run and in turn, on the same files, so that the ratios hold on a
machine that does other things too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from watcher import __version__
from watcher.cli.benchmark import comparisons, daemon_run, input_files
from watcher.cli.benchmark.daemon_run import Burst, Footprint
from watcher.cli.benchmark.measurements import Figure, percentile, ratios, spread, table
from watcher.config.settings import Batch
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint
from watcher.training.data import labelled_images
from watcher.training.data.synthetic_images import Sketch

SLOW_FILES = 600
"""Files the simple loop gets: it is slow, and its speed does not depend on their number."""

LATENCY_FILES = 120


def run(args: argparse.Namespace) -> int:
    """Measure, then print a table or one JSON object."""
    if args.images < 1 or args.runs < 1:
        raise Fatal("--images and --runs must be 1 or more", "The defaults are 5833 and 3.", Exit.USAGE)
    weights = (args.weights or shipped_files.weights()).resolve()
    model = checkpoint.load(weights)  # before anything is started
    signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does: processes stopped, files removed
    with tempfile.TemporaryDirectory(prefix="mednet-bench-", dir=args.dir, ignore_cleanup_errors=True) as temporary:
        root = Path(temporary).resolve()
        pool, told = _pool(args, root / "pool")
        facts = {
            **_machine(root),
            "images": f"{args.images} files, {told}",
            "weights": f"{model.name}, digest {model.digest[:12]}",
        }
        measured = _measure(args, root, weights, pool)
    figures = _figures(measured)
    print(_json(facts, figures, measured) if args.json else _text(facts, figures, measured))
    return Exit.OK


@dataclass
class Measured:
    """All that was measured: files per second of each run, milliseconds of each single file, memory."""

    bursts: list[Burst]
    dense: list[float]
    compressed: list[float]
    bare: list[float]
    latencies_ms: list[float]
    soak: list[Footprint]


def _measure(args: argparse.Namespace, root: Path, weights: Path, pool: Sequence[Path]) -> Measured:
    m = Measured([], [], [], [], [], [])
    proof = shipped_files.weights("mednet-improved.safetensors").resolve()
    slow, single = ([pool[i] for i in spread(len(pool), count)] for count in (SLOW_FILES, LATENCY_FILES))
    for number in range(args.runs):
        place = root / f"run-{number}"
        _tell(f"run {number + 1} of {args.runs}: the daemon")
        m.bursts.append(daemon_run.burst(place / "daemon", weights, pool, args.images))
        _tell(f"run {number + 1} of {args.runs}: the bare limit")
        m.bare.append(comparisons.bare_limit(place / "bare", weights, root / "pool", args.images, Batch().size))
        _tell(f"run {number + 1} of {args.runs}: the simple loop, {len(slow)} files, twice")
        m.dense.append(comparisons.simple_loop(place / "dense", proof, slow, len(slow), "dense"))
        m.compressed.append(comparisons.simple_loop(place / "compressed", weights, slow, len(slow), "compressed"))
    _tell(f"latency: {LATENCY_FILES} single files")
    m.latencies_ms = daemon_run.latencies_ms(root / "latency", weights, single, LATENCY_FILES)
    if args.soak:
        _tell(f"soak: {args.soak} files")
        m.soak = daemon_run.soak(root / "soak", weights, pool, args.soak)
    return m


def _pool(args: argparse.Namespace, pool: Path) -> tuple[list[Path], str]:
    """The files to drop, in the directory ``pool``, and what they are."""
    pool.mkdir()
    if args.data is None:
        sketch = Sketch.load(shipped_files.weights("sketch.safetensors"))
        return input_files.sampled(sketch, args.images, pool), "SYNTHETIC images sampled from the shipped sketch"
    found = labelled_images.listing(args.data, args.split, args.part)
    part = f", part {args.part} of {args.split.name}" if args.split else ""
    return input_files.copied(
        found.root, found.paths, args.images, pool
    ), f"real images of {args.data.resolve().name}{part}"


def _figures(m: Measured) -> list[Figure]:
    """Every figure, in the order of the table."""
    a = Figure("a   daemon: watch, decode, classify, ledger, move", "files/s", tuple(b.files_per_s for b in m.bursts))
    b = Figure("b   simple loop, dense network (mednet-improved, not factored)", "files/s", tuple(m.dense))
    compressed = Figure("b'  simple loop, network as shipped", "files/s", tuple(m.compressed))
    c = Figure("c   decode and classify alone, from memory", "files/s", tuple(m.bare))
    peak = tuple(b.peak_mb + b.children_mb for b in m.bursts)
    figures = [
        *(a, b, compressed, c),
        *(ratios("a/b", a, b, 1), ratios("a/b'", a, compressed, 1), ratios("a/c", a, c, 2)),
        *(
            Figure(f"latency of single files, {name}", "ms", (value,), 1)
            for name, value in (
                ("p50", percentile(m.latencies_ms, 50)),
                ("p99", percentile(m.latencies_ms, 99)),
                ("max", max(m.latencies_ms)),
            )
        ),
        Figure("daemon: start to ready", "s", tuple(b.ready_s for b in m.bursts), 2),
        Figure("daemon: peak memory, main process", "MB", tuple(b.peak_mb for b in m.bursts)),
        Figure("daemon: peak memory, children", "MB", tuple(b.children_mb for b in m.bursts)),
        Figure("daemon: peak memory, sum (shared pages count twice)", "MB", peak),
    ]
    return figures


def _text(facts: dict[str, str], figures: list[Figure], m: Measured) -> str:
    width = max(map(len, facts))
    told = [f"{name:{width}}  {value}" for name, value in facts.items()]
    lines = [*told, "", f"median (least .. most) of {len(m.bursts)} runs; ratios run by run", "", table(figures)]
    if m.soak:
        lines += ["", "resident memory of the daemon while files keep coming, its children in parentheses:"]
        lines += [_footprint(m.soak[i]) for i in spread(len(m.soak), 6)]
    return "\n".join(lines)


def _footprint(f: Footprint) -> str:
    return f"after {f.files:9,} files  {f.daemon_mb:6.0f} MB  ({f.children_mb:.0f} MB)"


def _json(facts: dict[str, str], figures: list[Figure], m: Measured) -> str:
    told: dict[str, Any] = {**facts, "figures": {f.name.strip(): f.to_dict() for f in figures}}
    told["latencies_ms"] = [round(value, 2) for value in m.latencies_ms]
    told["soak"] = [vars(f) for f in m.soak]
    return json.dumps(told)


def _machine(directory: Path) -> dict[str, str]:
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
    """The type of the file system a directory is on, as the kernel calls it."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[2] == number:
                return line.partition(" - ")[2].split()[0]
    except (OSError, IndexError):
        pass
    return "an unknown file system"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(progress: str) -> None:
    print(f"bench: {progress} ...", file=sys.stderr, flush=True)
