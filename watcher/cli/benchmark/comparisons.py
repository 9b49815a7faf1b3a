"""Run the programs that the daemon is compared with: the simple loop and the bare limit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from watcher.cli.benchmark import input_files
from watcher.cli.benchmark.measured_process import Process
from watcher.core.errors import Fatal


def simple_loop(
    root: Path, weights: Path, pool: Sequence[Path], count: int, network: Literal["dense", "compressed"]
) -> float:
    """Return the files per second of the simple loop. Its files are dropped as they are on the daemon."""
    inbox, out, staging = root / "inbox", root / "sorted", root / "staging"
    inbox.mkdir(parents=True)
    names = input_files.stage(pool, 0, count, staging)
    done = 0

    def enough(lines: list[bytes]) -> bool:
        nonlocal done
        done += len(lines)
        return done >= count

    try:
        with Process(
            "watcher.cli.benchmark.simple_loop", [str(inbox), str(out), str(weights), network], root
        ) as process:
            process.wait_for(lambda lines: b"ready" in lines)
            began_s = time.monotonic()
            input_files.drop(names, staging, inbox)
            took_s = process.wait_for(enough) - began_s
        if any(inbox.iterdir()):
            raise Fatal("the simple loop left files in its inbox", "Try fewer --images.")
        return count / took_s
    finally:
        shutil.rmtree(root, ignore_errors=True)


def bare_limit(root: Path, weights: Path, pool: Path, count: int, size: int) -> float:
    """Return the files per second of decoding and classifying alone, in batches of ``size``."""
    root.mkdir(parents=True)
    output: list[bytes] = []

    def enough(lines: list[bytes]) -> bool:
        output.extend(lines)
        return bool(output)

    try:
        with Process(
            "watcher.cli.benchmark.bare_limit", [str(pool), str(count), str(weights), str(size)], root
        ) as process:
            process.wait_for(enough)
        return float(output[0])
    finally:
        shutil.rmtree(root, ignore_errors=True)
