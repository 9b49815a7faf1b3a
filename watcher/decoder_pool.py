"""Decoder processes: a file that crashes or hangs one takes nothing else with it.

One process does the work. When it dies, or spends more than ``timeout_s`` on a
file, that file is rejected and the rest goes to a new process. When a file
merely takes long, the files behind it move to another process at once.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from watcher import decoder_child
from watcher.decode import SIDE
from watcher.records import Decoded, Rejected

AHEAD = 48
"""Files sent to one process ahead of its answers: it works on while the parent is busy.

As many answers as a Unix socket's buffer takes by default."""

STRAGGLE_S = 0.5
"""A file that takes longer than this no longer holds up the ones behind it."""

MOST_CHILDREN = 4

Result = Decoded | Rejected


class _Child:
    """One process, the names it still owes an answer for, and since when it works on the first."""

    def __init__(self, directory: str, limits: dict[str, int], now: float) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-m", "watcher.decoder_child", str(theirs.fileno()), directory]
            # Each BLAS thread would reserve address space, which is limited, and none is needed.
            environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen([*command, json.dumps(limits)], pass_fds=[theirs.fileno()], env=environ)
            self.connection = Connection(os.dup(ours.fileno()))
        self.owes: deque[str] = deque()
        self.since = now
        self.retiring = False
        self.answered = False

    def send(self, name: str, now: float) -> None:
        if not self.owes:
            self.since = now
        self.owes.append(name)
        self.connection.send_bytes(os.fsencode(name))

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class DecoderPool:
    """Feed it names with :meth:`submit`, fetch results with :meth:`collect`.

    ``directory`` is what relative names are relative to. ``limits`` are
    ``max_bytes``, ``max_pixels`` and ``memory_mb`` (of address space, for one
    process). The clock gives monotonic seconds.
    """

    def __init__(
        self,
        directory: Path | None,
        limits: dict[str, int],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._limits, self._timeout_s, self._clock = str(directory or ""), limits, timeout_s, clock
        self._backlog: deque[str] = deque()
        self._children: list[_Child] = []

    def __len__(self) -> int:
        """Files submitted and not yet answered for."""
        return len(self._backlog) + sum(len(child.owes) for child in self._children)

    def start(self) -> None:
        """Start a process ahead of the first file, so that the first file need not wait for it."""
        if not self._children:
            self._children.append(_Child(self._directory, self._limits, self._clock()))

    @property
    def connections(self) -> list[Connection]:
        """What to wait on: readable when :meth:`collect` has something."""
        return [child.connection for child in self._children]

    def due_s(self) -> float | None:
        """When a file will have taken too long, or None while nothing is owed."""
        dues = [c.since + (self._timeout_s if c.retiring else self._patience(c)) for c in self._children if c.owes]
        return min(dues, default=None)

    def _patience(self, child: _Child) -> float:
        """How long a file may hold up the ones behind it: all its time if there is nobody to take them."""
        alone = not child.answered or len(self._children) >= MOST_CHILDREN
        return self._timeout_s if alone else min(STRAGGLE_S, self._timeout_s)

    def submit(self, name: str) -> None:
        """Decode one more file."""
        self._backlog.append(name)
        self._feed()

    def collect(self) -> Iterator[Result]:
        """What has been answered since the last call. Never blocks."""
        for connection in wait(self.connections, timeout=0) if self._children else []:
            child = next(c for c in self._children if c.connection is connection)
            yield from self._answers(child)
        yield from self._late()
        self._feed()

    def _answers(self, child: _Child) -> Iterator[Result]:
        try:
            while child.connection.poll():
                message = child.connection.recv_bytes(1 << 16)
                child.since, child.answered = self._clock(), True
                if not message:
                    continue  # its hello
                yield _result(child.owes.popleft(), message)
                if child.retiring:
                    self._drop(child)
                    return
        except (EOFError, OSError, ValueError, KeyError, IndexError):
            # Died, or answered nonsense: the file in its hands is to blame.
            yield from self._blame(child, "decoder_crashed", "the decoder process died on this file")

    def _late(self) -> Iterator[Result]:
        now = self._clock()
        for child in [c for c in self._children if c.owes]:
            spent = now - child.since
            if spent > self._timeout_s:
                yield from self._blame(child, "decoder_hung", f"not decoded within {self._timeout_s:g} s")
            elif not child.retiring and spent > self._patience(child):
                child.retiring = True
                self._take_back(child)

    def _blame(self, child: _Child, reason: str, detail: str) -> Iterator[Result]:
        name = child.owes.popleft() if child.owes else None
        self._take_back(child, keep=0)
        self._drop(child)
        if name is not None:
            yield Rejected(name, reason, detail)

    def _take_back(self, child: _Child, keep: int = 1) -> None:
        while len(child.owes) > keep:
            self._backlog.appendleft(child.owes.pop())

    def _drop(self, child: _Child) -> None:
        self._children.remove(child)
        child.stop()

    def _feed(self) -> None:
        while self._backlog:
            ready = [c for c in self._children if not c.retiring]
            if not ready:
                if len(self._children) >= MOST_CHILDREN:
                    return
                self.start_another()
                continue
            child = ready[0]
            if len(child.owes) >= AHEAD:
                return
            try:
                child.send(self._backlog[0], self._clock())
            except OSError:
                child.owes.pop()  # it has died: collect() sees that, blames the first and takes back the rest
                return
            self._backlog.popleft()

    def start_another(self) -> None:
        """One more process, for the files behind one that takes long."""
        self._children.append(_Child(self._directory, self._limits, self._clock()))

    def close(self) -> None:
        """End every process. Files not answered for are simply not decoded."""
        for child in list(self._children):
            self._drop(child)
        self._backlog.clear()


def _result(name: str, message: bytes) -> Result:
    line, _, pixels = message.partition(b"\n")
    told: dict[str, Any] = json.loads(line)
    identity = decoder_child.identity(told.get("identity"))
    digest = told.get("digest")
    if "reason" in told:
        gone = bool(told.get("gone"))
        return Rejected(name, str(told["reason"]), str(told["detail"]), identity, digest, gone)
    image = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)
    if identity is None or digest is None:
        raise ValueError("an answer without identity or digest")
    return Decoded(name, identity, str(digest), image, bool(told["blank"]), float(told["decode_ms"]))
