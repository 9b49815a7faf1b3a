"""``demo``: the real daemon, at work on synthetic images before your eyes. Needs no data set."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from watcher.cli.demo import summary, synthetic_arrivals
from watcher.cli.demo.synthetic_arrivals import Drop
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.core.lock import Lock
from watcher.monitoring.log import EVENTS
from watcher.training.data.synthetic_images import Sketch

MARKER = ".mednet-demo"
MADE = (*summary.PLACES, "state", "outgoing", "config.yaml", "daemon.log", "contact-sheet.png")
"""What the demo makes in its directory, and all that it removes there."""

READY_S = 120.0
STALLED_S = 30.0
STOP_S = 30.0
PACE_S = 0.03
OUTCOMES = frozenset(EVENTS.values())

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


def run(args: argparse.Namespace) -> int:
    """Prepare, start the daemon, drop files, show what becomes of them, stop it, account for every file."""
    if args.images < 1:
        raise Fatal(f"--images {args.images} leaves nothing to show", "Give at least 1.", Exit.USAGE)
    sketch = Sketch.load(shipped_files.weights("sketch.safetensors"))
    root = prepare(args.dir)
    print(f"{summary.SYNTHETIC}\n\nstarting the daemon on {root / 'inbox'} ...", flush=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no daemon behind either
    try:
        with _Daemon(root) as daemon:
            print(f"{daemon.wait_ready()}\n\n     s", flush=True)
            dropped = _drop_and_watch(daemon, synthetic_arrivals.plan(args.images, sketch, np.random.default_rng(0)))
            exit_code = daemon.stop()
    finally:
        signal.signal(signal.SIGTERM, before)
    return _conclude(root, dropped, daemon.lines, exit_code)


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


class _Daemon:
    """``watcher run`` as a process, its log in a file. ``lines`` holds what it has logged so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[dict[str, Any]] = []
        self._log = root / "daemon.log"
        self._rest, self._offset = b"", 0
        self._started = time.monotonic()

    def __enter__(self) -> _Daemon:
        command = [sys.executable, "-m", "watcher", "run", "--config", str(self.root / "config.yaml")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    def stop(self) -> int | None:
        """End it by SIGTERM and give its exit code, None if it had to be killed."""
        if self.running:
            self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        finally:
            self.new()

    def new(self) -> list[dict[str, Any]]:
        """The lines logged since the last call. What is no JSON (a traceback) is left to the file."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        fresh = list(_objects(whole))
        self.lines += fresh
        return fresh

    def wait_ready(self) -> str:
        """Wait until it says that it is ready; gives a line to show.

        Raises:
            Fatal: it ended before, or took longer than :data:`READY_S`.
        """
        deadline = time.monotonic() + READY_S
        while True:
            running = self.running  # asked first: what it logged before it ended is then read
            for line in self.new():
                if line["event"] == "daemon.ready":
                    return f"ready after {time.monotonic() - self._started:.1f} s, on {line.get('device', '?')}"
            if not running:
                raise self._failed(f"the daemon ended with exit code {self._process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise self._failed(f"the daemon was not ready after {READY_S:.0f} s")
            time.sleep(0.05)

    def _failed(self, problem: str) -> Fatal:
        tail = self._log.read_text(errors="replace").splitlines()[-12:]
        shown = "\n".join(f"    {line[:300]}" for line in tail) or "    (it logged nothing)"
        return Fatal(f"{problem}; the end of its log:\n{shown}", f"All of it is in {self._log}.")


def _environment() -> dict[str, str]:
    """The environment without settings that would lead the daemon out of the demo's directory."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MEDNET_") or k.startswith("MEDNET_MODEL__")}


def _objects(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and "event" in value:
                yield value


def _drop_and_watch(daemon: _Daemon, drops: Sequence[Drop]) -> list[Drop]:
    """Drop every file, showing what the daemon says meanwhile; gives those that were really dropped.

    Slow writers and second files of a name wait in threads, so that the others go on.
    """
    watch, stop = _Show(daemon), threading.Event()
    spots = (daemon.root / "inbox", daemon.root / "outgoing", stop)
    with ThreadPoolExecutor(8) as pool:
        try:
            futures: list[Future[bool]] = []
            for drop in drops:
                futures.append(pool.submit(synthetic_arrivals.deliver, drop, *spots))
                watch.show()
                time.sleep(PACE_S)
            while daemon.running and not all(future.done() for future in futures):
                watch.show()
                time.sleep(0.05)
        finally:  # also when interrupted: nobody waits for files that nobody will sort
            stop.set()
            pool.shutdown(cancel_futures=True)
    try:
        done = [drop for drop, future in zip(drops, futures, strict=True) if not future.cancelled() and future.result()]
    except OSError as error:
        raise Fatal(f"a file can not be put into the inbox: {error}", "Give --dir another directory.") from error
    watch.until(len(done))
    return done


class _Show:
    """Prints the outcomes as they come."""

    def __init__(self, daemon: _Daemon) -> None:
        self._daemon, self._count = daemon, 0
        self._started_s = self._last_s = time.monotonic()

    def show(self) -> None:
        """Print what is new."""
        for line in self._daemon.new():
            if line["event"] in OUTCOMES:
                self._count, self._last_s = self._count + 1, time.monotonic()
                print(f"{time.monotonic() - self._started_s:6.1f}  {_human(line)}", flush=True)

    def until(self, count: int) -> None:
        """Go on until so many outcomes have been seen, the daemon ends, or nothing comes any more."""
        self._last_s = time.monotonic()
        while self._count < count and self._daemon.running and time.monotonic() - self._last_s < STALLED_S:
            self.show()
            time.sleep(0.05)
        self.show()


def _human(line: dict[str, Any]) -> str:
    name = f"{line.get('name', '?')!s:28.28}"
    kind = str(line["event"]).removeprefix("image.")
    label = f"{line.get('class') or '-':10} {summary.percent(line.get('confidence')):>9}"
    if kind == "sorted":
        return f"{name} -> {label}"
    if line.get("class"):
        return f"{name} -> {label}  {kind}: {line.get('reason')}"
    return f"{name} -> {kind}: {line.get('reason')}"


def _conclude(root: Path, dropped: Sequence[Drop], lines: Sequence[dict[str, Any]], exit_code: int | None) -> int:
    found = summary.find(root, dropped, lines)
    print()
    for text in summary.report(root, found, exit_code):
        print(text)
    summary.save_sheet(root, found, root / "contact-sheet.png")
    print(f"\nfiles: {root}/{{sorted,review,quarantine}}\nlog:   {root / 'daemon.log'}")
    print(f"sheet: {root / 'contact-sheet.png'}\n\n{summary.SYNTHETIC}")
    good = exit_code == 0 and all(each.accounted for each in found)
    return Exit.OK if good else Exit.FAILED
