"""Sort files by the simple loop that people write first: an event handler that does everything, file by file.

On an event, Pillow decodes the file, the network scores it alone, and ``shutil.move`` files it. There is no batch, no
ledger and no second process, and a crash loses what was under way. Run as ``python -m
watcher.cli.benchmark.simple_loop INBOX OUT WEIGHTS dense|compressed``; prints a line for each file, until SIGTERM.
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
    """Does everything in watchdog's own thread, as watchdog's examples do."""

    def __init__(self, net: mednet.MedNet, classes: tuple[str, ...], out: Path) -> None:
        self._net, self._classes, self._out = net, classes, out

    def on_created(self, event: FileSystemEvent) -> None:
        """Sort a file that was moved in from elsewhere, or was just begun."""
        self._sort(os.fsdecode(event.src_path))

    def on_moved(self, event: FileSystemEvent) -> None:
        """Sort a file that was renamed within the inbox."""
        self._sort(os.fsdecode(event.dest_path))

    def on_closed(self, event: FileSystemEvent) -> None:
        """Sort a file that was written to its end."""
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
        _print_line(label)


def main(argv: list[str]) -> None:
    """Sort the files of the inbox until SIGTERM."""
    inbox, out, weights = map(Path, argv[:3])
    loaded = checkpoint.load(weights)
    compressed = classifier.build(loaded)
    net = compressed if argv[3] == "compressed" else mednet.expand(compressed).eval()
    for label in loaded.classes:
        (out / label).mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        net(torch.zeros(1, 1, compressed.config.side, compressed.config.side))
    observer = Observer()
    observer.schedule(Handler(net, loaded.classes, out), str(inbox))
    observer.start()
    _print_line("ready")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    observer.stop()


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Block the signals before any thread is made, so that all threads inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(sys.argv[1:])
