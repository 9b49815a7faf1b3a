"""Prepares an empty directory for the demo, and removes only what a demo made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from watcher.cli.demo import summary
from watcher.core.errors import Exit, Fatal
from watcher.core.lock import Lock

MARKER = ".mednet-demo"


MADE = (*summary.PLACES, "state", "outgoing", "config.yaml", "daemon.log", "contact-sheet.png")
"""What the demo makes in its directory, and all that it removes there."""


CONFIG = """\
# Made by `mednet-watcher demo`. Short times, so that nobody waits.
inbox:
  path: inbox
  settle_s: 0.5
  patience_s: 3.0
  scan_interval_s: 1.0
output:
  sorted: sorted
  review: review
  quarantine: quarantine
state:
  path: state
log:
  format: json
"""


def prepare(directory: Path) -> Path:
    """An empty demo directory, its absolute path. Removes only what an earlier demo made.

    Raises:
        Fatal: exit code 5, the directory holds other things or can not be
            written; exit code 6, a daemon runs in it.
    """
    root = Path(os.path.abspath(directory))
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()) and not (root / MARKER).is_file():
            raise Fatal(
                f"{root} is not empty, and no demo made it", "Give --dir another, or a new, directory.", Exit.DIRECTORY
            )
        if (root / "state").is_dir():
            lock = Lock(root / "state" / "daemon.lock")
            lock.acquire()
            lock.release()
        (root / MARKER).touch()
        for name in MADE:
            _remove(root / name)
        for name in ("inbox", "outgoing"):
            (root / name).mkdir()
        (root / "config.yaml").write_text(CONFIG)
    except OSError as error:
        raise Fatal(f"{root} can not be prepared: {error}", "Give --dir another directory.", Exit.DIRECTORY) from error
    return root


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
