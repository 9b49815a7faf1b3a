"""The loop people write first, to measure the daemon against: a handler that does it all, file by file.

Events tell of a file, Pillow decodes it, the network scores it alone,
``shutil.move`` files it. No batch, no ledger, no second process, and nothing
survives a crash. Run as ``python -m watcher.cli.benchmark.simple_loop INBOX OUT
WEIGHTS dense|compressed``; tells of each file on standard output, until SIGTERM.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from watcher.model import checkpoint, classifier, mednet


class Handler(FileSystemEventHandler):
    """Does everything in watchdog's own thread, as the examples do."""

    def __init__(self, net: mednet.MedNet, classes: tuple[str, ...], out: Path) -> None:
        self._net, self._classes, self._out = net, classes, out

    def on_created(self, event: FileSystemEvent) -> None:
        """A file moved in from elsewhere, or just begun."""
        self._sort(os.fsdecode(event.src_path))

    def on_moved(self, event: FileSystemEvent) -> None:
        """A file renamed within the inbox."""
        self._sort(os.fsdecode(event.dest_path))

    def on_closed(self, event: FileSystemEvent) -> None:
        """A file written to its end."""
        self._sort(os.fsdecode(event.src_path))

    def _sort(self, path: str) -> None:
        if not os.path.isfile(path):
            return
        with Image.open(path) as image:
            pixels = np.array(image.convert("L"), dtype=np.float32)
        pixels -= pixels.min()
        pixels /= max(float(pixels.max()), 1.0)
        pixels -= pixels.mean()
        with torch.no_grad():
            logits = self._net(torch.from_numpy(pixels)[None, None]).logits
        label = self._classes[int(logits[0, : len(self._classes)].argmax())]
        shutil.move(path, self._out / label / os.path.basename(path))
        _say(label)


def main(argv: list[str]) -> None:
    """Watch until SIGTERM."""
    inbox, out, weights = map(Path, argv[:3])
    found = checkpoint.load(weights)
    compressed = classifier.build(found)
    net = compressed if argv[3] == "compressed" else mednet.expand(compressed).eval()
    for label in found.classes:
        (out / label).mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        net(torch.zeros(1, 1, compressed.config.side, compressed.config.side))
    observer = Observer()
    observer.schedule(Handler(net, found.classes, out), str(inbox))
    observer.start()
    _say("ready")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    observer.stop()


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Before any thread is made, so that all inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(sys.argv[1:])
