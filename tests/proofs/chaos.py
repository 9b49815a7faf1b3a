"""Random kills: ``make chaos`` kills the real daemon a thousand times while files keep coming.

The network is a stand-in, so that a start takes a fraction of a second. After
the last kill the daemon drains the inbox, and every file is looked for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import Producer, check, metrics_of_all
from tests.support.repository import TOP


@dataclass
class Tally:
    """The figures of a run."""

    kills: int
    files: int
    before_ready: int
    recovered: int
    seconds: float


class Chaos:
    """A daemon in ``root``, to be killed; or several that share one inbox, killed in turn."""

    def __init__(self, root: Path, seed: int, workers: int = 1, people: bool = False) -> None:
        """With ``people``, somebody puts files back all the while, and is killed at it, too."""
        more = "shared: true, " if workers > 1 else ""
        fast = f"inbox: {{{more}settle_s: 0.05, patience_s: 0.2, scan_interval_s: 0.2}}\nmetrics: {{port: 0}}\n"
        self.daemons = [Daemon(root, fast, stub=True) for _ in range(workers)]
        for number, daemon in enumerate(self.daemons):
            daemon.log = root / f"log{number}"
        self.daemon = self.daemons[0]
        self.people = people
        self.commands: list[subprocess.Popen[bytes]] = []
        self.ended: Counter[int] = Counter()
        self.producer = Producer(self.daemon, seed)
        self.random = random.Random(seed)

    def run(self, kills: int, files_a_kill: int) -> Tally:
        """Kill, then drain and check. Fails by assertion."""
        started, before_ready = time.monotonic(), 0
        for number in range(1, kills + 1):
            before_ready += self._one_life(files_a_kill)
            if number % 50 == 0:
                sys.stderr.write(f"chaos: {number} kills, {self.producer.number} files dropped\n")
        for daemon in self.daemons:
            daemon.stop(signal.SIGKILL)
        while self.commands:
            self._kill_somebody()
        with contextlib.ExitStack() as stack:
            for daemon in self.daemons:
                stack.enter_context(daemon.start())
            self.daemon.until(self._drained)
            self.daemon.until(lambda: metrics_of_all(self.daemons)["mednet_files_pending"] == 0)
            told = metrics_of_all(self.daemons)
            for daemon in self.daemons:
                assert daemon.stop() == 0
        self._check(told)
        recovered = sum(e["filed"] + e["returned"] for d in self.daemons for e in d.events("daemon.recovered"))
        return Tally(kills, self.producer.number, before_ready, recovered, time.monotonic() - started)

    def _one_life(self, files: int) -> bool:
        """Start who is dead, drop files meanwhile, kill one at any moment. True if it was not even ready."""
        daemon = self.random.choice(self.daemons)
        ready = _ready(daemon) - daemon.alive  # one that goes on from before was ready in this life, too
        for each in self.daemons:
            if not each.alive:
                each.start(wait=False)
        if len(self.daemons) == 1 and self.random.random() < 0.9:
            daemon.until(lambda: _ready(daemon) > ready)
        self.producer.drop(files)
        if self.people:
            self._put_back()
        time.sleep(self.random.uniform(0, 0.25 if len(self.daemons) == 1 else 1))
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        return _ready(daemon) == ready

    def _put_back(self) -> None:
        """One more retry or undo, and an older one ends, by itself or not."""
        words = self.random.choice([["retry"], ["undo", "--since", "2s"], ["undo", "--since", "20s"]])
        command = [sys.executable, "-m", "watcher", *words, "--config", str(self.daemon.config)]
        environ = {**os.environ, "PYTHONPATH": str(TOP)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        self.commands.append(subprocess.Popen(command, env=environ, **quiet))  # type: ignore[call-overload]
        if len(self.commands) > 1:
            self._kill_somebody()

    def _kill_somebody(self) -> None:
        command = self.commands.pop(0)
        if self.random.random() < 0.5:
            command.kill()
        _, told = command.communicate(timeout=100)
        assert b"Traceback" not in told, told.decode()
        self.ended[command.returncode] += 1

    def _check(self, told: dict[str, float]) -> None:
        """Every file in one place, by the ledger, by the metrics, and by the audit."""
        check(self.daemon, self.producer.dropped, None if self.people else told)
        audited = mednet("audit", "--config", str(self.daemon.config))
        assert audited.returncode == 0, audited.stdout
        assert f"seen {self.producer.number:,} =" in audited.stdout

    def _drained(self) -> bool:
        return not any(path.is_file() and path.name != "id" for path in self.daemon.inbox.rglob("*"))


def _ready(daemon: Daemon) -> int:
    return daemon.log.read_bytes().count(b'"event": "daemon.ready"') if daemon.log.exists() else 0


def main() -> None:
    """Run and print the tally."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--kills", type=int, default=1000)
    words.add_argument("--files", type=int, default=6, help="files dropped in each life")
    words.add_argument("--workers", type=int, default=1, help="daemons that share the inbox")
    words.add_argument("--people", action="store_true", help="retry and undo all the while, killed as well")
    words.add_argument("--seed", type=int, default=int(time.time()))
    args = words.parse_args()
    root = Path(tempfile.mkdtemp(prefix="mednet-chaos-"))
    sys.stderr.write(f"chaos: seed {args.seed}, in {root}\n")
    chaos = Chaos(root, args.seed, args.workers, args.people)
    tally = chaos.run(args.kills, args.files)
    sys.stdout.write(
        f"{args.workers} daemon{'s' * (args.workers > 1)}, {tally.kills} kills ({tally.before_ready} before it was "
        f"ready), {tally.files} files, "
        f"{tally.recovered} moves reconciled at a start, {tally.seconds:.0f} s\n"
        "0 lost, 0 doubled, 0 unexplained: by SHA-256 over inbox, classes, review and quarantine, and by the ledger\n"
    )
    if args.people:
        killed, ended = chaos.ended[-signal.SIGKILL], chaos.ended.total()
        sys.stdout.write(f"{ended} times retry or undo beside it, {killed} of them killed at it\n")
        return
    sys.stdout.write("seen = sorted + review + quarantined + pending: in the metrics, and each as on disk\n")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
