"""Run the real daemon, and commands, as processes on a real directory, and look at what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support import event_catalogue, fork_server, waiting
from tests.support.repository import TOP
from tests.support.torch_missing import skip_without_torch
from tests.support.waiting import LONGEST_S
from watcher.core import shipped_files
from watcher.training.data import synthetic_images

PATIENCE_S = 1.0
STUB = "tests.support.stub_daemon"
COMMAND = [sys.executable, "-m", "watcher", "run", "--config"]
STUB_COMMAND = [sys.executable, "-m", STUB]
MODULES = {"ablate": fork_server.TRAINING, "classify": fork_server.TORCH, "evaluate": fork_server.TORCH}


class Daemon:
    """A daemon in ``root``: config, inbox and everything else lie below it."""

    def __init__(self, root: Path, extra: str = "", *, stub: bool = False, fresh: bool = False) -> None:
        """Prepare a daemon with ``extra`` as more of config.yaml.

        With ``stub`` the network is a stand-in, see ``stub_daemon``. With ``fresh`` it starts as people start it, as a
        new Python, else as a process of the fork server.
        """
        if not stub:
            skip_without_torch()
        self.command = STUB_COMMAND if stub else COMMAND
        self.fresh = fresh
        self.environ: dict[str, str] = {}
        self.places = [root / place for place in ("inbox", "sorted", "review", "quarantine")]
        self.root, self.inbox, self.log = root, root / "inbox", root / "log"
        self.config = root / "config.yaml"
        self._read_bytes, self._lines = 0, list[dict[str, Any]]()
        self.process: subprocess.Popen[bytes] | fork_server.ForkedProcess | None = None
        self.inbox.mkdir(parents=True, exist_ok=True)
        pending = f"inbox: {{settle_s: 0.3, patience_s: {PATIENCE_S}, scan_interval_s: 0.5}}\n"
        self.config.write_text((extra if "inbox:" in extra else pending + extra) + "log: {format: json}\n")

    def __enter__(self) -> Daemon:
        return self if self.process and self.process.poll() is None else self.start()

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.log.exists():
            event_catalogue.check_text(self.log.read_bytes())

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, *, wait: bool = True) -> Daemon:
        ready = len(self.events("daemon.ready"))
        with self.log.open("ab") as log:
            environ = {**os.environ, "PYTHONPATH": str(TOP), **self.environ}
            streams = {"stdout": log.fileno(), "stderr": log.fileno()}
            if self.fresh or self.command not in (COMMAND, STUB_COMMAND):  # a test may put another program before it
                command = [*self.command, str(self.config)]
                self.process = subprocess.Popen(command, **streams, env=environ)
            elif self.command == STUB_COMMAND:
                self.process = fork_server.start(f"{STUB}:main", [str(self.config)], **streams, environ=environ)
            else:
                words = ["run", "--config", str(self.config)]
                self.process = fork_server.start(
                    "watcher.cli.main:main", words, **streams, environ=environ, modules=fork_server.TORCH
                )
        if wait:
            self.until(lambda: len(self.events("daemon.ready")) > ready)
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=LONGEST_S)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The log lines with one of these events. Every line must be JSON."""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self._read_bytes)
                fresh = log.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            self._lines += [json.loads(line) for line in whole.splitlines()]
        return [line for line in self._lines if not names or line["event"] in names]

    def outcomes(self) -> list[dict[str, Any]]:
        return self.events("image.sorted", "image.review", "image.quarantined")

    def until(self, condition: Callable[[], bool], longest_s: float = LONGEST_S) -> None:
        """Wait for something that the process does, while it runs."""

        def holds() -> bool:
            if condition():
                return True
            assert self.process is None or self.alive, self.log.read_text()[-2000:]
            return False

        waiting.until(holds, lambda: self.log.read_text()[-2000:], longest_s)

    def until_filed(self, count: int) -> None:
        self.until(lambda: len(self.outcomes()) >= count)

    def emptied(self) -> bool:
        """Return True if no file is left in the inbox, nor in a directory below."""
        return not any(names for _, _, names in os.walk(self.inbox))

    def digests(self) -> Counter[str]:
        """The content of every file in a place that an operator would look in, but for what the daemon itself wrote."""
        found: Counter[str] = Counter()
        for place in self.places:
            for path in place.rglob("*"):
                if path.is_file() and not path.name.endswith(".reason.json") and path.name != "id":
                    found[digest(path.read_bytes())] += 1
        return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Sampler:
    """Synthetic radiographs from the shipped sketch, each different."""

    def __init__(self, seed: int = 0) -> None:
        self._sketch = synthetic_images.Sketch.load(shipped_files.weights("sketch.safetensors"))
        self._rng = np.random.default_rng(seed)
        self.classes = self._sketch.classes

    def jpeg(self, label: str) -> bytes:
        """One image of a class, as the bytes of a JPEG file."""
        import io

        buffer = io.BytesIO()
        Image.fromarray(self._sketch.sample(label, self._rng)).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    def many(self, count: int) -> list[bytes]:
        return [self.jpeg(self.classes[i % len(self.classes)]) for i in range(count)]


def mednet(
    *words: str, cwd: Path | None = None, env: dict[str, str] | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, as a process: a forked one, or with ``fresh`` a new Python."""
    if words[0] in {*MODULES, "bench", "demo", "doctor"}:
        skip_without_torch()
    environ = {**os.environ, "PYTHONPATH": str(TOP), **(env or {})}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process: subprocess.Popen[bytes] | fork_server.ForkedProcess
        if fresh:
            command = [sys.executable, "-m", "watcher", *words]
            process = subprocess.Popen(command, stdout=out, stderr=err, cwd=cwd, env=environ)
        else:
            modules = MODULES.get(words[0], fork_server.PLAIN)
            streams = {"stdout": out.fileno(), "stderr": err.fileno()}
            process = fork_server.start(
                "watcher.cli.main:main", words, **streams, environ=environ, cwd=cwd, modules=modules
            )
        try:
            code = process.wait(timeout=LONGEST_S)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        ended = subprocess.CompletedProcess(words, code, out.read(), err.read())
    event_catalogue.check_text(ended.stdout.encode())
    return ended
