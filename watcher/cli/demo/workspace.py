"""Prepare an empty directory for the demo. Only files that an earlier demo made are removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from watcher.cli.demo import summary
from watcher.core.errors import Exit, Fatal
from watcher.core.lock import Lock

MARKER = ".mednet-demo"
"""File that marks a directory as made by a demo."""

MADE = (*summary.PLACES, "state", "outgoing", "config.yaml", "daemon.log", "contact-sheet.png")
"""Files and directories that the demo makes in its directory, and the only ones that it removes there."""

CONFIG = """\
# Made by `mednet-watcher demo`. The times are short, so that nobody has to wait.
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
    """Prepare an empty directory, and return its absolute path. Only files that an earlier demo made are removed.

    Raises:
        Fatal: exit code 5; the directory holds other files, or can not be written. Exit code 6; a daemon runs in it.
    """
    root = Path(os.path.abspath(directory))
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()) and not (root / MARKER).is_file():
            raise Fatal(
                f"{root} is not empty, and no demo made it", "Give --dir a new or another directory.", Exit.DIRECTORY
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
