"""Starts the daemon, drops files and shows what becomes of them."""

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


STALLED_S = 30.0


STOP_S = 30.0


PACE_S = 0.03


OUTCOMES = frozenset(EVENTS.values())


class Daemon:
    """``watcher run`` as a process, its log in a file. ``lines`` holds what it has logged so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[dict[str, Any]] = []
        self._log = root / "daemon.log"
        self._rest, self._offset = b"", 0
        self._started = time.monotonic()

    def __enter__(self) -> Daemon:
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


def drop_and_watch(daemon: Daemon, drops: Sequence[Drop]) -> list[Drop]:
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

    def __init__(self, daemon: Daemon) -> None:
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


def conclude(root: Path, dropped: Sequence[Drop], lines: Sequence[dict[str, Any]], exit_code: int | None) -> int:
    """Account for every dropped file, draw the contact sheet and print the summary. Gives the exit code."""
    found = summary.find(root, dropped, lines)
    print()
    for text in summary.report(root, found, exit_code):
        print(text)
    summary.save_sheet(root, found, root / "contact-sheet.png")
    print(f"\nfiles: {root}/{{sorted,review,quarantine}}\nlog:   {root / 'daemon.log'}")
    print(f"sheet: {root / 'contact-sheet.png'}\n\n{summary.SYNTHETIC}")
    good = exit_code == 0 and all(each.accounted for each in found)
    return Exit.OK if good else Exit.FAILED
