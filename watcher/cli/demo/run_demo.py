"""Start the daemon for the demo, drop files and show their outcomes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from watcher.cli.demo import summary, synthetic_arrivals
from watcher.cli.demo.synthetic_arrivals import Drop
from watcher.core.errors import Exit, Fatal
from watcher.service.log_lines import EVENTS

READY_S = 120.0
"""Seconds that the daemon may take to be ready."""

STALLED_S = 30.0
"""Seconds without an outcome after which no more are expected."""

STOP_S = 30.0
"""Seconds that the daemon may take to end."""

PACE_S = 0.03
"""Seconds between two files that are dropped."""

OUTCOMES = frozenset(EVENTS.values())
"""Events of the log that are a file's outcome."""


class Daemon:
    """A process that runs ``watcher run``, with its log in a file. ``lines`` holds the log lines read so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[dict[str, Any]] = []
        self._log = root / "daemon.log"
        self._rest, self._offset = b"", 0
        self._started_s = time.monotonic()

    def __enter__(self) -> Daemon:
        command = [sys.executable, "-m", "watcher", "run", "--config", str(self.root / "config.yaml")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._process.poll() is None

    def stop(self) -> int | None:
        """End the daemon by SIGTERM. Return its exit code, or None if it had to be killed."""
        if self.running:
            self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        finally:
            self.new_lines()

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the lines logged since the last call. Other output (a traceback) is left in the file."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *complete, self._rest = (self._rest + data).split(b"\n")
        new = list(_entries(complete))
        self.lines += new
        return new

    def wait_ready(self) -> str:
        """Wait until the daemon is ready. Return a line to show.

        Raises:
            Fatal: the daemon ended before, or took longer than :data:`READY_S`.
        """
        deadline = time.monotonic() + READY_S
        while True:
            running = self.running  # before reading, so that all lines that it logged before its end are read
            for line in self.new_lines():
                if line["event"] == "daemon.ready":
                    return f"ready after {time.monotonic() - self._started_s:.1f} s, on {line.get('device', '?')}"
            if not running:
                raise self._failure(f"the daemon ended with exit code {self._process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise self._failure(f"the daemon was not ready after {READY_S:.0f} s")
            time.sleep(0.05)

    def _failure(self, problem: str) -> Fatal:
        tail = self._log.read_text(errors="replace").splitlines()[-12:]
        shown = "\n".join(f"    {line[:300]}" for line in tail) or "    (it logged nothing)"
        return Fatal(f"{problem}; the end of its log:\n{shown}", f"All of it is in {self._log}.")


def _environment() -> dict[str, str]:
    """Return the environment without settings that would lead the daemon out of the demo's directory."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MEDNET_") or k.startswith("MEDNET_MODEL__")}


def _entries(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and "event" in value:
                yield value


def drop_and_watch(daemon: Daemon, drops: Sequence[Drop]) -> list[Drop]:
    """Drop every file, and print the outcomes as they come. Return the files that were really dropped.

    Slow writers, and files that wait for their name to become free, wait in threads, so that the others go on.
    """
    printer, stop = _OutcomePrinter(daemon), threading.Event()
    inbox, outgoing = daemon.root / "inbox", daemon.root / "outgoing"
    with ThreadPoolExecutor(8) as pool:
        try:
            futures: list[Future[bool]] = []
            for drop in drops:
                futures.append(pool.submit(synthetic_arrivals.deliver, drop, inbox, outgoing, stop))
                printer.print_new()
                time.sleep(PACE_S)
            while daemon.running and not all(future.done() for future in futures):
                printer.print_new()
                time.sleep(0.05)
        finally:  # also when interrupted, so that no thread goes on
            stop.set()
            pool.shutdown(cancel_futures=True)
    try:
        pairs = zip(drops, futures, strict=True)
        delivered = [drop for drop, future in pairs if not future.cancelled() and future.result()]
    except OSError as error:
        raise Fatal(f"a file can not be put into the inbox: {error}", "Give --dir another directory.") from error
    printer.print_until(len(delivered))
    return delivered


class _OutcomePrinter:
    """Prints outcomes of files as they come."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._count = daemon, 0
        self._started_s = self._last_s = time.monotonic()

    def print_new(self) -> None:
        """Print the outcomes that were logged since the last call."""
        for line in self._daemon.new_lines():
            if line["event"] in OUTCOMES:
                self._count, self._last_s = self._count + 1, time.monotonic()
                print(f"{time.monotonic() - self._started_s:6.1f}  {_text(line)}", flush=True)

    def print_until(self, count: int) -> None:
        """Print outcomes until there were ``count``, the daemon ends, or none comes for :data:`STALLED_S`."""
        self._last_s = time.monotonic()
        while self._count < count and self._daemon.running and time.monotonic() - self._last_s < STALLED_S:
            self.print_new()
            time.sleep(0.05)
        self.print_new()


def _text(line: dict[str, Any]) -> str:
    name = f"{line.get('name', '?')!s:28.28}"
    kind = str(line["event"]).removeprefix("image.")
    label = f"{line.get('class') or '-':10} {summary.percent(line.get('confidence')):>9}"
    if kind == "sorted":
        return f"{name} -> {label}"
    if line.get("class"):
        return f"{name} -> {label}  {kind}: {line.get('reason')}"
    return f"{name} -> {kind}: {line.get('reason')}"


def conclude(root: Path, dropped: Sequence[Drop], lines: Sequence[dict[str, Any]], exit_code: int | None) -> int:
    """Account for every dropped file, print the summary and draw the contact sheet. Return the exit code."""
    files = summary.find(root, dropped, lines)
    print()
    for line in summary.report(root, files, exit_code):
        print(line)
    summary.save_sheet(root, files, root / "contact-sheet.png")
    print(f"\nfiles: {root}/{{sorted,review,quarantine}}\nlog:   {root / 'daemon.log'}")
    print(f"sheet: {root / 'contact-sheet.png'}\n\n{summary.SYNTHETIC}")
    well = exit_code == 0 and all(file.accounted for file in files)
    return Exit.OK if well else Exit.FAILED
