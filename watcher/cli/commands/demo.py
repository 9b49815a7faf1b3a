"""``demo``: run the real daemon on synthetic images, and show what it does. Needs no data set."""

from __future__ import annotations

import argparse
import signal

import numpy as np

from watcher.cli.demo import summary, synthetic_arrivals
from watcher.cli.demo.run_demo import Daemon, conclude, drop_and_watch
from watcher.cli.demo.workspace import prepare
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.training.data.synthetic_images import Sketch


def run(args: argparse.Namespace) -> int:
    """Start the daemon, drop files, show their outcomes, stop the daemon and account for every file."""
    if args.images < 1:
        raise Fatal(f"--images {args.images}: there is nothing to show", "Give at least 1.", Exit.USAGE)
    sketch = Sketch.load(shipped_files.weights("sketch.safetensors"))
    root = prepare(args.dir)
    print(f"{summary.SYNTHETIC}\n\nstarting the daemon on {root / 'inbox'} ...", flush=True)
    old_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the daemon as Ctrl-C does
    try:
        with Daemon(root) as daemon:
            print(f"{daemon.wait_ready()}\n\n     s", flush=True)
            dropped = drop_and_watch(daemon, synthetic_arrivals.plan(args.images, sketch, np.random.default_rng(0)))
            exit_code = daemon.stop()
    finally:
        signal.signal(signal.SIGTERM, old_handler)
    return conclude(root, dropped, daemon.lines, exit_code)
