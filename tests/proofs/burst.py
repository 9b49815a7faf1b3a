"""A burst: ``make burst`` renames 100,000 files into the inbox of the real daemon at once, and looks for each.

First a tenth of them, into a daemon of its own: memory that grows with the inbox would show.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from watcher.cli.benchmark import daemon_run, input_files
from watcher.cli.commands.bench import _machine
from watcher.core import shipped_files
from watcher.training.data.synthetic_images import Sketch


def burst(root: Path, pool: list[Path], count: int) -> tuple[str, float]:
    """Drop, wait, look for each. Gives a line on it, and the peak memory of the main process in MB."""
    sys.stderr.write(f"burst: {count:,} files ...\n")
    with daemon_run.daemon(root, shipped_files.weights()) as daemon:
        names = input_files.stage(pool, 0, count, daemon.staging)
        lost: list[int] = []

        def enough(lines: list[bytes]) -> bool:
            daemon.outcomes += sum(b'"image.' in line for line in lines)
            lost.extend(json.loads(line)["losses"] for line in lines if b'"inbox.events_lost"' in line)
            return daemon.outcomes >= count

        began_s = time.monotonic()
        input_files.drop(names, daemon.staging, daemon.inbox)
        dropped_s = time.monotonic() - began_s
        took_s = daemon.process.wait_for(enough) - began_s
        daemon.verify(names)
        peak_mb, children_mb = daemon.process.memory_mb("VmHWM")
    return (
        f"{count:9,} {dropped_s:11.1f} s {took_s:10.1f} s {count / took_s:11,.0f} {len(lost):16} "
        f"{peak_mb:10.0f} MB {children_mb:7.0f} MB",
        peak_mb,
    )


def main() -> None:
    """Run both, print the table."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--files", type=int, default=100_000)
    words.add_argument("--most-mb", type=float, default=60, help="how much more memory ten times the files may take")
    args = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="mednet-burst-") as temporary:
        root = Path(temporary)
        (root / "pool").mkdir()
        pool = input_files.sampled(Sketch.load(shipped_files.weights("sketch.safetensors")), args.files, root / "pool")
        machine = _machine(root)
        small, few_mb = burst(root / "small", pool, max(1, args.files // 10))
        large, many_mb = burst(root / "large", pool, args.files)
    sys.stdout.write(
        f"{machine['date']}, {machine['machine']}, {machine['files on'].split(',')[0]}\n"
        "    files   dropped in     sorted in     files/s  events lost told      peak memory   children\n"
        f"{small}\n{large}\nevery file landed once under its name, and none stayed\n"
    )
    if many_mb - few_mb > args.most_mb:
        raise SystemExit(f"memory grows with the inbox: {many_mb - few_mb:.0f} MB more for ten times the files")


if __name__ == "__main__":
    main()
