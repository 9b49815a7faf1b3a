"""The real daemon, but for its network: a stand-in that decides by brightness, and needs no torch.

``python -m tests.support.stub_daemon CONFIG``. For tests of what happens to files.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import numpy as np

from watcher.config import loader
from watcher.core import no_overwrite, shipped_files
from watcher.core.errors import Fatal
from watcher.core.records import Scored
from watcher.filing import mover
from watcher.inbox import scan
from watcher.model import checkpoint
from watcher.monitoring import log
from watcher.service import stall_detection, start, stations
from watcher.service.stages import file


def network(images: np.ndarray) -> Scored:
    """One of six classes by the mean grey level, and a dark image is unsure: every outcome occurs."""
    while os.path.exists(os.environ.get("STUB_HANG_NETWORK", "")):
        time.sleep(0.01)
    time.sleep(float(os.environ.get("STUB_INFER_S", "0")))
    levels = images.reshape(len(images), -1).mean(axis=1)
    logits = np.zeros((len(images), 6), np.float32)
    logits[np.arange(len(images)), (levels / 256 * 6).astype(int)] = np.where(levels < 40, 0.1, 8)
    return Scored(logits)


def load(settings: loader.Config, weights: checkpoint.Checkpoint, logger: log.Logger):  # type: ignore[no-untyped-def]
    while os.path.exists(os.environ.get("STUB_HANG_LOAD", "")):
        time.sleep(0.01)
    if os.path.exists(os.environ.get("STUB_FAIL_LOAD", "")):
        raise KeyError("nobody foresaw this")
    if weights.digest == checkpoint.load(shipped_files.weights()).digest:
        return network, lambda: "stub"
    return (
        lambda images: Scored(np.roll(network(images).logits, 1, axis=1))
    ), lambda: "stub"  # other weights, other classes


def identify(directory: scan.Inbox, name: str, found=scan.Inbox.identify):  # type: ignore[no-untyped-def]
    """A file system that does not answer."""
    while os.path.exists(os.environ.get("STUB_HANG_LOOK", "")):
        time.sleep(0.01)
    return found(directory, name)


def flush(slow: mover.Mover, found=mover.Mover.flush):  # type: ignore[no-untyped-def]
    """A disk that takes its time over a move."""
    time.sleep(float(os.environ.get("STUB_MOVE_S", "0")))
    return found(slow)


def without_renameat2(*_: object) -> int:
    """A file system that does not know the call."""
    import ctypes

    ctypes.set_errno(errno.EINVAL)
    return -1


def without_links(*_: object, **__: object) -> None:
    """A file system that does not know hard links either."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def main(arguments: list[str]) -> int:
    """Run the daemon with the config in ``arguments``, and with the faults that the environment asks for."""
    if os.environ.get("STUB_NO_RENAMEAT2"):
        no_overwrite._libc.renameat2 = without_renameat2
    if os.environ.get("STUB_NO_LINKS"):
        os.link = without_links
    file.PAUSE_S = float(os.environ.get("STUB_PAUSE_S", file.PAUSE_S))
    mover.Mover.flush = flush  # type: ignore[method-assign]
    scan.Inbox.identify = identify  # type: ignore[method-assign]
    if limit := float(os.environ.get("STUB_LIMIT_S", "0")):
        stations.stall_limits = lambda settings: stall_detection.StallLimits(*[limit] * 7)
    try:
        return start.serve(Path(arguments[0]), load)
    except Fatal as error:
        sys.stderr.write(f"{error}\n")
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
