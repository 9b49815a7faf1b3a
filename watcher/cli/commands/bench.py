"""``bench``: measure the daemon against the simple loop that people write first, and against the bare limit.

All are measured in turn in one run, on the same files, so that their ratios hold even on a machine that is busy with
other work.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from watcher.cli.benchmark import comparisons, daemon_run, input_files, machine
from watcher.cli.benchmark.daemon_run import Burst, Footprint
from watcher.cli.benchmark.measurements import Figure, percentile, ratios, spread, table
from watcher.config.settings import Batch
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint
from watcher.training.data import labelled_images
from watcher.training.data.synthetic_images import Sketch

SLOW_FILES = 600
"""Number of files for the simple loop. It is slow, and its speed does not depend on the number."""

LATENCY_FILES = 120
"""Number of single files whose latency is measured."""


def run(args: argparse.Namespace) -> int:
    """Measure, then print a table or one JSON object."""
    if args.images < 1 or args.runs < 1:
        raise Fatal("--images and --runs must be 1 or more", "The defaults are 5833 and 3.", Exit.USAGE)
    weights = (args.weights or shipped_files.weights()).resolve()
    model = checkpoint.load(weights)  # before anything is started
    signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does: processes are stopped and files removed
    with tempfile.TemporaryDirectory(prefix="mednet-bench-", dir=args.dir, ignore_cleanup_errors=True) as temporary:
        root = Path(temporary).resolve()
        pool, origin = _pool(args, root / "pool")
        facts = {
            **machine.describe(root),
            "images": f"{args.images} files, {origin}",
            "weights": f"{model.name}, digest {model.digest[:12]}",
        }
        measured = _measure(args, root, weights, pool)
    figures = _figures(measured)
    print(_json(facts, figures, measured) if args.json else _text(facts, figures, measured))
    return Exit.OK


@dataclass
class Measured:
    """The measurements: files per second of each run, milliseconds of each single file, memory.

    ``dense`` and ``compressed`` are the simple loop with either network, ``bare`` is the bare limit.
    """

    bursts: list[Burst]
    dense: list[float]
    compressed: list[float]
    bare: list[float]
    latencies_ms: list[float]
    soak: list[Footprint]


def _measure(args: argparse.Namespace, root: Path, weights: Path, pool: Sequence[Path]) -> Measured:
    measured = Measured([], [], [], [], [], [])
    uncompressed = shipped_files.weights("mednet-improved.safetensors").resolve()
    slow, single = ([pool[i] for i in spread(len(pool), count)] for count in (SLOW_FILES, LATENCY_FILES))
    for number in range(args.runs):
        directory = root / f"run-{number}"
        _print_progress(f"run {number + 1} of {args.runs}: the daemon")
        measured.bursts.append(daemon_run.burst(directory / "daemon", weights, pool, args.images))
        _print_progress(f"run {number + 1} of {args.runs}: the bare limit")
        measured.bare.append(
            comparisons.bare_limit(directory / "bare", weights, root / "pool", args.images, Batch().size)
        )
        _print_progress(f"run {number + 1} of {args.runs}: the simple loop, {len(slow)} files, twice")
        measured.dense.append(comparisons.simple_loop(directory / "dense", uncompressed, slow, len(slow), "dense"))
        measured.compressed.append(
            comparisons.simple_loop(directory / "compressed", weights, slow, len(slow), "compressed")
        )
    _print_progress(f"latency: {LATENCY_FILES} single files")
    measured.latencies_ms = daemon_run.latencies_ms(root / "latency", weights, single, LATENCY_FILES)
    if args.soak:
        _print_progress(f"soak: {args.soak} files")
        measured.soak = daemon_run.soak(root / "soak", weights, pool, args.soak)
    return measured


def _pool(args: argparse.Namespace, pool: Path) -> tuple[list[Path], str]:
    """Put the files to drop into the directory ``pool``. Return their paths, and a description of them."""
    pool.mkdir()
    if args.data is None:
        sketch = Sketch.load(shipped_files.weights("sketch.safetensors"))
        return input_files.sampled(sketch, args.images, pool), "SYNTHETIC images sampled from the shipped sketch"
    listing = labelled_images.listing(args.data, args.split, args.part)
    part = f", part {args.part} of {args.split.name}" if args.split else ""
    copies = input_files.copied(listing.root, listing.paths, args.images, pool)
    return copies, f"real images of {args.data.resolve().name}{part}"


def _figures(measured: Measured) -> list[Figure]:
    """Return every figure, in the order of the table."""
    bursts, latencies_ms = measured.bursts, measured.latencies_ms
    daemon = Figure(
        "a   daemon: watch, decode, classify, ledger, move", "files/s", tuple(burst.files_per_s for burst in bursts)
    )
    dense = Figure("b   simple loop, dense network (mednet-improved, not factored)", "files/s", tuple(measured.dense))
    compressed = Figure("b'  simple loop, network as shipped", "files/s", tuple(measured.compressed))
    bare = Figure("c   decode and classify alone, from memory", "files/s", tuple(measured.bare))
    latencies = (
        ("p50", percentile(latencies_ms, 50)),
        ("p99", percentile(latencies_ms, 99)),
        ("max", max(latencies_ms)),
    )
    sums_mb = tuple(burst.peak_mb + burst.children_mb for burst in bursts)
    return [
        *(daemon, dense, compressed, bare),
        ratios("a/b", daemon, dense, 1),
        ratios("a/b'", daemon, compressed, 1),
        ratios("a/c", daemon, bare, 2),
        *(Figure(f"latency of single files, {name}", "ms", (value,), 1) for name, value in latencies),
        Figure("daemon: start to ready", "s", tuple(burst.ready_s for burst in bursts), 2),
        Figure("daemon: peak memory, main process", "MB", tuple(burst.peak_mb for burst in bursts)),
        Figure("daemon: peak memory, children", "MB", tuple(burst.children_mb for burst in bursts)),
        Figure("daemon: peak memory, sum (shared pages count twice)", "MB", sums_mb),
    ]


def _text(facts: dict[str, str], figures: list[Figure], measured: Measured) -> str:
    width = max(map(len, facts))
    fact_lines = [f"{name:{width}}  {value}" for name, value in facts.items()]
    lines = [
        *fact_lines,
        "",
        f"median (least .. most) of {len(measured.bursts)} runs; ratios run by run",
        "",
        table(figures),
    ]
    if measured.soak:
        lines += ["", "resident memory of the daemon while files keep coming, its children in parentheses:"]
        lines += [_footprint_text(measured.soak[i]) for i in spread(len(measured.soak), 6)]
    return "\n".join(lines)


def _footprint_text(footprint: Footprint) -> str:
    return f"after {footprint.files:9,} files  {footprint.daemon_mb:6.0f} MB  ({footprint.children_mb:.0f} MB)"


def _json(facts: dict[str, str], figures: list[Figure], measured: Measured) -> str:
    fields: dict[str, Any] = {**facts, "figures": {figure.name.strip(): figure.to_dict() for figure in figures}}
    fields["latencies_ms"] = [round(value, 2) for value in measured.latencies_ms]
    fields["soak"] = [vars(footprint) for footprint in measured.soak]
    return json.dumps(fields)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_progress(progress: str) -> None:
    print(f"bench: {progress} ...", file=sys.stderr, flush=True)
