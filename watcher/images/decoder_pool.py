"""Decode files in processes of their own, so that a file that crashes or hangs one harms no other file.

One process does the work. If it dies, or spends more than ``timeout_s`` on a file, that file is rejected and the other
files go to a new process. If a file is only slow, the files behind it go to another process at once.
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
from pathlib import Path

from watcher.core.errors import Fatal
from watcher.core.records import Rejected
from watcher.images import decoder_answers, decoder_process
from watcher.images.decoder_answers import Result

SENT_AHEAD = 48
"""The number of files sent to one process before its answers, so that it works on while the parent is busy.

The buffer of a Unix socket holds as many answers by default."""

SLOW_S = 0.5
"""Seconds after which a file no longer holds up the files behind it."""

MAX_PROCESSES = 4

START_S = 60.0
"""Seconds that a process may take to start."""

FAILURES = ("decoder_crashed", "decoder_hung")
"""The reasons for which a file is rejected if its decoder did not answer."""

_IMPORT_PATH = str(Path(__file__).resolve().parents[2])


class _Child:
    """A decoder process, the names of the files it has not answered for, and the time it began with the first."""

    def __init__(self, directory: str, limits: dict[str, object], now: float) -> None:
        # With SEQPACKET, one call sends or receives one whole message.
        self.channel, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with child_end:
            # -P keeps files in the working directory from being imported.
            command = [sys.executable, "-P", "-m", decoder_process.__name__, str(child_end.fileno()), directory]
            # One BLAS thread is enough, and each would reserve address space, which is limited.
            path = os.pathsep.join(filter(None, [_IMPORT_PATH, os.environ.get("PYTHONPATH")]))
            environ = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            # The process gets a group of its own, because only the parent answers signals to its group (Ctrl-C).
            self.process = subprocess.Popen(
                [*command, json.dumps(limits)], pass_fds=[child_end.fileno()], env=environ, process_group=0
            )
        self.pending: deque[str] = deque()
        self.since = now
        self.retiring = False
        self.answered = False
        self.loading = self.loaded = False

    def send(self, name: str, now: float) -> None:
        if not self.pending:
            self.since = now
        self.pending.append(name)
        self.channel.send(decoder_process.ASK + os.fsencode(name))

    def is_hello(self, message: bytes) -> bool:
        """Return True for the first message, by which the process says that it is ready."""
        first, self.answered = not self.answered, True
        return first and message == decoder_process.HELLO

    def is_loading(self, message: bytes) -> bool:
        """Return True for the one message by which the process says that it loads the reader of DICOM files."""
        self.loading = not self.loaded and message == decoder_process.LOADING
        self.loaded |= self.loading
        return self.loading

    @property
    def starting(self) -> bool:
        """True while the process starts or loads a reader, so that no file is to blame for the time it takes."""
        return self.loading or not self.answered

    def receive(self) -> bytes | None:
        """Return the next message, or None if there is none yet.

        Raises:
            EOFError: The process has ended.
        """
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
    """A pool of decoder processes. :meth:`submit` takes names of files, :meth:`collect` returns results.

    Args:
        directory: The directory that relative names start from.
        limits: ``max_bytes``, ``max_pixels`` and ``memory_mb`` (of address space, for one process).
        timeout_s: Seconds that one file may take.
        clock: A function that returns monotonic seconds.
        tags: The tags of DICOM files that their new names are made of.
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
        """Return the number of files that have no result yet."""
        return len(self._backlog) + sum(len(child.pending) for child in self._children)

    def start(self) -> None:
        """Start a process before the first file, so that this file need not wait for it."""
        if not self._children:
            self.start_another()

    @property
    def connections(self) -> list[socket.socket]:
        """The sockets to wait on. One is readable when :meth:`collect` has results."""
        return [child.channel for child in self._children]

    def due_s(self) -> float | None:
        """Return the time at which a file will have taken too long, or None if there is no file."""
        dues = [c.since + (self._timeout_s if c.retiring else self._patience(c)) for c in self._children if c.pending]
        return min(dues, default=None)

    def _patience(self, child: _Child) -> float:
        """Return the seconds for which a file may hold up the files behind it."""
        if child.starting:
            return START_S
        none_to_spare = len(self._children) >= MAX_PROCESSES
        return self._timeout_s if none_to_spare else min(SLOW_S, self._timeout_s)

    def submit(self, name: str) -> None:
        """Queue a file."""
        self._backlog.append(name)
        self._feed()

    def collect(self) -> Iterator[Result]:
        """Yield the results that came in since the last call, without waiting.

        Raises:
            Fatal: Several processes in a row ended before they were ready.
        """
        for child in list(self._children):
            yield from self._answers(child)
        yield from self._reject_late_files()
        self._feed()

    def _answers(self, child: _Child) -> Iterator[Result]:
        while True:
            try:
                message = child.receive()
                if message is None:
                    return
                about_itself = child.is_hello(message) or child.is_loading(message)
                result = None if about_itself else decoder_answers.parse(child.pending[0], message)
            except (EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
                # The process died, or its answer makes no sense. The file that it worked on is to blame.
                yield from self._reject_first(child, "decoder_crashed", "the decoder process died on this file")
                return
            child.since, self._failed_starts = self._clock(), 0
            if child.loading:
                self._limits["expects_dicom"] = True  # later processes load the reader before their first file
            if result is not None:
                child.pending.popleft()
                yield result
                if child.retiring:
                    self._drop(child)
                    return

    def _reject_late_files(self) -> Iterator[Result]:
        now = self._clock()
        for child in [c for c in self._children if c.pending]:
            spent = now - child.since
            if spent > (START_S if child.starting else self._timeout_s):
                yield from self._reject_first(child, "decoder_hung", f"not decoded within {self._timeout_s:g} s")
            elif not child.retiring and spent > self._patience(child):
                child.retiring = True
                self._take_back(child)

    def _reject_first(self, child: _Child, reason: str, detail: str) -> Iterator[Result]:
        """End a process, and reject the file that it worked on. The other files go back to the queue."""
        if not child.answered:
            return self._failed_to_start(child)
        name = child.pending.popleft() if child.pending else None
        self._take_back(child, keep=0)
        self._drop(child)
        if name is not None:
            yield Rejected(name, reason, detail)

    def _failed_to_start(self, child: _Child) -> None:
        """Put all files of a process back that ended before it was ready, because none of them is to blame.

        Raises:
            Fatal: Several processes in a row did so.
        """
        self._take_back(child, keep=0)
        self._drop(child)
        self._failed_starts += 1
        if self._failed_starts >= MAX_PROCESSES:
            raise Fatal(
                f"{self._failed_starts} decoder processes in a row ended before they were ready",
                "Raise decode.memory_mb, or read what they wrote to standard error.",
            )

    def _take_back(self, child: _Child, keep: int = 1) -> None:
        """Put the files of a process back into the queue, except for the first ``keep``."""
        while len(child.pending) > keep:
            self._backlog.appendleft(child.pending.pop())

    def _drop(self, child: _Child) -> None:
        self._children.remove(child)
        child.stop()

    def _feed(self) -> None:
        while self._backlog:
            ready = [c for c in self._children if not c.retiring]
            if not ready:
                if len(self._children) >= MAX_PROCESSES:
                    return
                self.start_another()
                continue
            child = ready[0]
            if len(child.pending) >= SENT_AHEAD:
                return
            try:
                child.send(self._backlog[0], self._clock())
            except OSError:
                child.pending.pop()  # the process has died, and collect() will notice
                return
            self._backlog.popleft()

    def start_another(self) -> None:
        """Start a process."""
        self._children.append(_Child(self._directory, self._limits, self._clock()))

    def close(self) -> None:
        """End all processes. Files without a result get none."""
        for child in list(self._children):
            self._drop(child)
        self._backlog.clear()
