"""Measure the bare limit: decoding and classifying without watching, moving, a ledger or a second process.

The daemon's own decoder and classifier work on files that are in memory already, batch after batch. Run as
``python -m watcher.cli.benchmark.bare_limit POOL COUNT WEIGHTS BATCH``; writes the files per second to standard output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from watcher.images import decode
from watcher.model import checkpoint, classifier


def main(argv: list[str]) -> None:
    """Measure once, and print the files per second."""
    pool, count, weights, size = Path(argv[0]), int(argv[1]), Path(argv[2]), int(argv[3])
    distinct = [file.read_bytes() for file in sorted(pool.iterdir())]
    files = [distinct[number % len(distinct)] for number in range(count)]
    classifier.use_threads(0)
    network = classifier.Classifier(classifier.build(checkpoint.load(weights)), classifier.choose_device("auto"))
    for warm_up_size in (size, count % size):
        if warm_up_size:
            network(np.zeros((warm_up_size, decode.SIDE, decode.SIDE), np.uint8))
    decode.warm_up()
    began_s = time.perf_counter()
    for first in range(0, count, size):
        network(np.stack([decode.grey64(data) for data in files[first : first + size]]))
    sys.stdout.write(f"{count / (time.perf_counter() - began_s)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
