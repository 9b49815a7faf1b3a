"""Where log lines are written. A log that can not be written must not stop the sorting.

Not even one whose reader has stalled: a full pipe would hold the writer for as
long, signals or not. So nothing is written that would have to wait, but for a
moment, once.
"""

from __future__ import annotations

import contextlib
import glob
import os
import select
import stat
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from watcher.config import loader
from watcher.core import mounts
from watcher.core.errors import Exit, Fatal
from watcher.monitoring import log_output

PATIENCE_S = 1.0
"""How long a line waits for a reader who is behind. Until he goes on, those after it do not wait at all."""

RECENT = 4 * 2**20
"""Bytes of the last lines that are kept, in case the file is cut before they were copied."""


class LineOutput:
    """Writes whole lines to a stream's descriptor.

    ``lost`` counts the lines that could not be written: the ledger has every outcome all the same.
    """

    def __init__(self, stream: TextIO | None = None, patience_s: float = PATIENCE_S) -> None:
        self._stream, self._patience_s = stream, patience_s
        self._fd = -1
        self._most = select.PIPE_BUF
        self._rest = b""  # of a line that was begun: goes before the next
        self._failing = False
        self.lost = self._told = 0

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> None:
        """Write one line, or count it as lost (disk full, nobody reads any more or just now)."""
        line = text.encode("utf-8", "backslashreplace")
        try:
            fd = self._descriptor()
        except OSError:
            rest, left = self._rest, line
        else:
            until_s = time.monotonic() + (0.0 if self._failing else self._patience_s)
            rest = self._push(fd, self._rest, until_s)
            left = line if rest else self._push(fd, line, until_s)
        self.lost += left == line
        self._rest, self._failing = rest if left == line else left, bool(left)
        if not left:
            with contextlib.suppress(OSError):  # a pipe has no end to look at
                self._wrote(line)

    @property
    def failing(self) -> bool:
        """Whether the last line could not be written."""
        return self._failing

    def lost_before(self, *, still: bool = False) -> int:
        """How many lines were lost since the last call, once lines are written again: until then none.

        With ``still`` those that are being lost count, too: for who can be told elsewhere.
        """
        if self._failing and not still:
            return 0
        lost, self._told = self.lost - self._told, self.lost
        return lost

    def flush(self) -> None:
        """Nothing is held back."""

    def _wrote(self, line: bytes) -> None:
        """What is to be done after each line."""

    def _push(self, fd: int, data: bytes, until_s: float) -> bytes:
        """Write what can be written without waiting beyond a time. Gives what can not."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        with contextlib.suppress(OSError):
            while data and poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
                data = data[os.write(fd, data[: self._most]) :]
        return data

    def _descriptor(self) -> int:
        assert self._stream is not None
        if self._fd < 0:
            self._fd, self._most = _unshared(self._stream.fileno())
        return self._fd


def _unshared(fd: int) -> tuple[int, int]:
    """What to write to, and how much at most at a time so that it does not block.

    That our end does not block is said of a pipe opened anew: the one given is other processes', too. Where that can
    not be had, what may be written takes PIPE_BUF bytes, by pipe(7).
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        with contextlib.suppress(OSError):  # another user made it, or there is no /proc
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return fd, 1 << 30 if stat.S_ISREG(mode) else select.PIPE_BUF


def is_journal(stream: TextIO, told: str | None) -> bool:
    """Whether a stream leads to systemd's journal, by what systemd told in JOURNAL_STREAM (see systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except OSError:
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


def _shorten(fd: int, size: int, whole: int) -> None:
    """Take the half line off the end of a copy, where it was made while that line was written. Best effort."""
    if whole < size:
        with contextlib.suppress(OSError):  # not ours to write, or there is no /proc
            same = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(same, whole)
            finally:
                os.close(same)


class LogFile(LineOutput):
    """Appends to whatever file has the name just now.

    Rotation may move the file away, with or without making another (the next line makes it), or copy and then cut it
    (``copytruncate``). What was written between copy and cut is written again, as far as the copy lies beside the
    file, uncompressed: it is found by its own last bytes. Each line is one write to one file: never torn. Only a copy
    can end within a line, that was just being written: such an end is taken off it, for the line is written again.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OSError: it can not be opened.
        """
        super().__init__()
        self.path, self._most = path, 1 << 30
        self._recent: deque[tuple[int, bytes]] = deque()  # lines of this file, each with where it ended
        self._kept = 0
        self._open()

    def _open(self) -> None:
        # A pipe, too: the description is our own, and must neither wait for a reader now nor block later.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self.path, flags, 0o640)
        self.close()
        found = os.fstat(fd)
        self._fd, self._which, self._rest = fd, (found.st_dev, found.st_ino), b""
        self._forget()

    def _descriptor(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self.path)
            if self._fd >= 0 and (found.st_dev, found.st_ino) == self._which:
                return self._fd
        self._open()
        return self._fd

    def _wrote(self, line: bytes) -> None:
        again = deque(self._cut_before(line))
        while again:  # the file may be cut once more meanwhile
            lost = again.popleft()
            os.write(self._fd, lost)
            again.extendleft(reversed(self._cut_before(lost)))

    def _cut_before(self, line: bytes) -> list[bytes]:
        """Remember a line just written. If the file was cut before it: the lines that no copy has."""
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        cut = bool(self._recent) and end - len(line) < self._recent[-1][0]
        lost = self._not_copied() if cut else []
        if cut:
            self._forget()
        self._remember(end, line)
        return lost

    def _remember(self, end: int, line: bytes) -> None:
        self._recent.append((end, line))
        self._kept += len(line)
        while self._kept > RECENT:
            self._kept -= len(self._recent.popleft()[1])

    def _forget(self) -> None:
        self._recent.clear()
        self._kept = 0

    def _not_copied(self) -> list[bytes]:
        """The file was cut: its last lines that no copy beside it has. None where there is no such copy."""
        kept = b"".join(line for _, line in self._recent)
        end = self._recent[-1][0]
        begin = end - len(kept)
        for copy in self.path.parent.glob(f"{glob.escape(self.path.name)}?*"):
            with contextlib.suppress(OSError), copy.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                same = kept[: size - begin][-4096:] if begin < size <= end else b""
                file.seek(size - len(same))
                if same and file.read() == same:
                    whole = max((ended for ended, _ in self._recent if ended <= size), default=begin)
                    _shorten(file.fileno(), size, whole)
                    return [line for ended, line in self._recent if ended > size]
        return []

    def close(self) -> None:
        """Close the file. The next line opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def log_file(settings: loader.Config) -> log_output.LogFile | None:
    """The file that the log is written to as well, if any.

    Raises:
        Fatal: exit code 5; it can not be opened.
    """
    path = settings.log.file
    if path is None:
        return None
    try:
        return log_output.LogFile(path)
    except OSError as error:
        raise Fatal(
            f"the log file {path} can not be written: {error.strerror}",
            f"Make its directory, or set log.file. {mounts.write_advice(path)}",
            Exit.DIRECTORY,
        ) from error
