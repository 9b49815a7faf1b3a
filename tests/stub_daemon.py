"""The real daemon, but for its network: a stand-in that decides by brightness, and needs no torch.

``python stub_daemon.py CONFIG``. For tests of what happens to files.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np

from watcher import checkpoint, config, log, unique
from watcher.commands import run
from watcher.errors import Fatal


def network(images: np.ndarray) -> np.ndarray:
    """One of six classes by the mean grey level, and a dark image is unsure: every outcome occurs."""
    levels = images.reshape(len(images), -1).mean(axis=1)
    logits = np.zeros((len(images), 6), np.float32)
    logits[np.arange(len(images)), (levels / 256 * 6).astype(int)] = np.where(levels < 40, 0.1, 20)
    return logits


def load(settings: config.Config, weights: checkpoint.Checkpoint, logger: log.Logger):  # type: ignore[no-untyped-def]
    return network, lambda: "stub"


def without_renameat2(*_: object) -> int:
    """A file system that does not know the call."""
    import ctypes

    ctypes.set_errno(errno.EINVAL)
    return -1


def without_links(*_: object, **__: object) -> None:
    """A file system that does not know hard links either."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


if __name__ == "__main__":
    if os.environ.get("STUB_NO_RENAMEAT2"):
        unique._libc.renameat2 = without_renameat2
    if os.environ.get("STUB_NO_LINKS"):
        os.link = without_links
    try:
        sys.exit(run.serve(Path(sys.argv[1]), load))
    except Fatal as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.code)
