"""A daemon whose config is changed while it runs."""

from __future__ import annotations

import signal
from pathlib import Path

from numpy.random import default_rng

from tests.support.daemon import Daemon
from tests.support.dropped_files import picture

FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"


class ReloadableDaemon:
    """A daemon, by default with a stand-in network, and what its config says now."""

    def __init__(self, root: Path, extra: str = "", daemon: Daemon | None = None) -> None:
        self.root, self.daemon = root, daemon or Daemon(root, FAST + extra, stub=True)
        self.base = self.daemon.config.read_text()
        self.number = 0

    def reload(self, text: str) -> dict[str, object]:
        """Write another config, and say how the daemon took it."""
        before = len(self.daemon.events("reload.done", "reload.refused"))
        self.daemon.config.write_text(text)
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGHUP)
        self.daemon.until(lambda: len(self.daemon.events("reload.done", "reload.refused")) > before)
        return self.daemon.events("reload.done", "reload.refused")[-1]

    def sort(self, grey: int = 200) -> dict[str, object]:
        """Drop one image, and say what became of it."""
        self.number += 1
        before = len(self.daemon.outcomes())
        (self.daemon.inbox / f"{self.number}.jpeg").write_bytes(picture(default_rng(grey)))
        self.daemon.until_filed(before + 1)
        return self.daemon.outcomes()[-1]
