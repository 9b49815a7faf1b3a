"""Decoder processes: a file that crashes or hangs one takes nothing else with it.

One process does the work. When it dies, or spends more than ``timeout_s`` on a
file, that file is rejected and the rest goes to a new process. When a file
merely takes long, the files behind it move to another process at once.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from watcher.core.errors import Fatal
from watcher.core.records import Decoded, Identity, Rejected
from watcher.images import decoder_process, dicom_filenames, dicom_vocabulary
from watcher.images.decode import SIDE

AHEAD = 48
"""Files sent to one process ahead of its answers: it works on while the parent is busy.

As many answers as a Unix socket's buffer takes by default."""

STRAGGLE_S = 0.5
"""A file that takes longer than this no longer holds up the ones behind it."""

MOST_CHILDREN = 4

START_S = 60.0
"""How long a process may take to start."""

REASONS = {
    *("empty", "truncated", "damaged", "unreadable", "unsupported_format", "too_large", "too_complex"),
    *("no_permission", "not_a_file", "not_found", "no_pixel_data", "needs_dicom_extra"),
}
"""What a decoder may say of a file: reasons label metrics, so they are few and known."""

BLAMED = ("decoder_crashed", "decoder_hung")
"""What is said of a file whose decoder did not answer."""

_HOME = str(Path(__file__).resolve().parents[2])

Result = Decoded | Rejected


class _Child:
    """One process, the names it still owes an answer for, and since when it works on the first."""

    def __init__(self, directory: str, limits: dict[str, object], now: float) -> None:
        # Packets: one call sends or receives one whole message.
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -P: what lies in the working directory is nobody's module.
            command = [sys.executable, "-P", "-m", "watcher.images.decoder_process", str(theirs.fileno()), directory]
            # A group of its own: what is sent to ours (Ctrl-C) is ours to answer.
            # Each BLAS thread would reserve address space, which is limited, and none is needed.
            path = os.pathsep.join(filter(None, [_HOME, os.environ.get("PYTHONPATH")]))
            environ = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [*command, json.dumps(limits)], pass_fds=[theirs.fileno()], env=environ, process_group=0
            )
        self.owes: deque[str] = deque()
        self.since = now
        self.retiring = False
        self.answered = False
        self.loading = self.loaded = False

    def send(self, name: str, now: float) -> None:
        if not self.owes:
            self.since = now
        self.owes.append(name)
        self.channel.send(decoder_process.ASK + os.fsencode(name))

    def greets(self, message: bytes) -> bool:
        """True for the first message of all, by which the process says that it is ready."""
        first, self.answered = not self.answered, True
        return first and message == decoder_process.HELLO

    def loads(self, message: bytes) -> bool:
        """True once in its life: it loads what DICOM files need, and the file it works on is not to blame."""
        self.loading = not self.loaded and message == decoder_process.LOADING
        self.loaded |= self.loading
        return self.loading

    @property
    def starting(self) -> bool:
        """Whether its time is its own just now, and no file's."""
        return self.loading or not self.answered

    def receive(self) -> bytes | None:
        """The next message, or None for now. Raises EOFError when the process has ended."""
        try:
            message = self.channel.recv(decoder_process.PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not message:
            raise EOFError
        return message

    def stop(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


class DecoderPool:
    """Feed it names with :meth:`submit`, fetch results with :meth:`collect`.

    ``directory`` is what relative names are relative to. ``limits`` are
    ``max_bytes``, ``max_pixels`` and ``memory_mb`` (of address space, for one
    process). ``tags`` are what is wanted of DICOM files for their names. The clock
    gives monotonic seconds.
    """

    def __init__(
        self,
        directory: Path | None,
        limits: dict[str, int],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        tags: tuple[str, ...] = (),
    ) -> None:
        self._directory, self._timeout_s, self._clock = str(directory or ""), timeout_s, clock
        self._limits: dict[str, object] = {**limits, "tags": tags}
        self._backlog: deque[str] = deque()
        self._children: list[_Child] = []
        self._failed_starts = 0

    def __len__(self) -> int:
        """Files submitted and not yet answered for."""
        return len(self._backlog) + sum(len(child.owes) for child in self._children)

    def start(self) -> None:
        """Start a process ahead of the first file, so that the first file need not wait for it."""
        if not self._children:
            self._children.append(_Child(self._directory, self._limits, self._clock()))

    @property
    def connections(self) -> list[socket.socket]:
        """What to wait on: readable when :meth:`collect` has something."""
        return [child.channel for child in self._children]

    def due_s(self) -> float | None:
        """When a file will have taken too long, or None while nothing is owed."""
        dues = [c.since + (self._timeout_s if c.retiring else self._patience(c)) for c in self._children if c.owes]
        return min(dues, default=None)

    def _patience(self, child: _Child) -> float:
        """How long a file may hold up the ones behind it: all its time if there is nobody to take them."""
        alone = len(self._children) >= MOST_CHILDREN
        if child.starting:
            return START_S
        return self._timeout_s if alone else min(STRAGGLE_S, self._timeout_s)

    def submit(self, name: str) -> None:
        """Decode one more file."""
        self._backlog.append(name)
        self._feed()

    def collect(self) -> Iterator[Result]:
        """What has been answered since the last call. Never blocks."""
        for child in list(self._children):
            yield from self._answers(child)
        yield from self._late()
        self._feed()

    def _answers(self, child: _Child) -> Iterator[Result]:
        while True:
            try:
                message = child.receive()
                if message is None:
                    return
                about_itself = child.greets(message) or child.loads(message)
                result = None if about_itself else _result(child.owes[0], message)
            except (EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
                # Died, or answered nonsense: the file in its hands is to blame.
                yield from self._blame(child, "decoder_crashed", "the decoder process died on this file")
                return
            child.since, self._failed_starts = self._clock(), 0
            if child.loading:
                self._limits["expects_dicom"] = True  # who follows loads it before its first file
            if result is not None:
                child.owes.popleft()
                yield result
                if child.retiring:
                    self._drop(child)
                    return

    def _late(self) -> Iterator[Result]:
        now = self._clock()
        for child in [c for c in self._children if c.owes]:
            spent = now - child.since
            if spent > (START_S if child.starting else self._timeout_s):
                yield from self._blame(child, "decoder_hung", f"not decoded within {self._timeout_s:g} s")
            elif not child.retiring and spent > self._patience(child):
                child.retiring = True
                self._take_back(child)

    def _blame(self, child: _Child, reason: str, detail: str) -> Iterator[Result]:
        if not child.answered:
            return self._failed_to_start(child)
        name = child.owes.popleft() if child.owes else None
        self._take_back(child, keep=0)
        self._drop(child)
        if name is not None:
            yield Rejected(name, reason, detail)

    def _failed_to_start(self, child: _Child) -> None:
        """No file is to blame for a process that never began; a few of them in a row are."""
        self._take_back(child, keep=0)
        self._drop(child)
        self._failed_starts += 1
        if self._failed_starts >= MOST_CHILDREN:
            raise Fatal(
                f"{self._failed_starts} decoder processes in a row ended before they were ready",
                "Raise decode.memory_mb, or look at what they wrote to standard error.",
            )

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
    """An answer, believed only in its form: whoever took over a decoder can lie about a picture, no more.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: it is no answer.
    """
    line, _, pixels = message.partition(b"\n")
    told: dict[str, Any] = json.loads(line)
    identity, digest = _identity(told.get("identity")), told.get("digest")
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("no digest")
    if "reason" in told:
        reason = told["reason"] if told["reason"] in REASONS else "unreadable"
        return Rejected(name, reason, str(told["detail"])[:500], identity, digest, told.get("gone") is True)
    if identity is None or digest is None:
        raise ValueError("an answer without identity or digest")
    image = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)
    frames = told["frames"]
    if type(frames) is not int:
        raise ValueError("no number of frames")
    said = dicom_vocabulary.modality(told["modality"]), dicom_vocabulary.body_part(told["body_part"])
    tags = tuple((str(tag), dicom_filenames.checked(tag, value)) for tag, value in told["tags"].items())
    return Decoded(name, identity, digest, image, told["blank"] is True, float(told["decode_ms"]), frames, *said, tags)


def _identity(values: list[int] | None) -> Identity | None:
    if values is None:
        return None
    if len(values) != 4 or not all(type(value) is int for value in values):
        raise ValueError("no identity")
    return Identity(*values)
