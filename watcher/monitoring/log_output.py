"""Write log lines to a stream or a file, without ever stopping the daemon.

A log that can not be written must not stop the sorting, nor must a pipe whose reader has stalled: a full pipe blocks
its writer for as long, whatever signals arrive. So a line that can not be written waits for a moment, once, and the
lines after it do not wait.
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

PATIENCE_S = 1.0
"""Seconds that a line waits for a stalled reader. The lines after it do not wait until the reader goes on."""

RECENT_BYTES = 4 * 2**20
"""Bytes of the last lines that are remembered, in case the file is truncated before they were copied."""


class LineOutput:
    """Writes whole lines to the file descriptor of a stream.

    ``lost`` counts the lines that could not be written. The ledger has every outcome nevertheless.
    """

    def __init__(self, stream: TextIO | None = None, patience_s: float = PATIENCE_S) -> None:
        self._stream, self._patience_s = stream, patience_s
        self._fd = -1
        self._max_bytes = select.PIPE_BUF  # of one write
        self._rest = b""  # the end of a line that was begun, to be written before the next line
        self._failing = False
        self.lost = self._reported = 0

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> None:
        """Write one line, or count it as lost (the disk is full, or the reader is gone or stalled)."""
        line = text.encode("utf-8", "backslashreplace")
        try:
            fd = self._descriptor()
        except OSError:
            rest, unwritten = self._rest, line
        else:
            until_s = time.monotonic() + (0.0 if self._failing else self._patience_s)
            rest = self._push(fd, self._rest, until_s)
            unwritten = line if rest else self._push(fd, line, until_s)
        self.lost += unwritten == line
        self._rest, self._failing = rest if unwritten == line else unwritten, bool(unwritten)
        if not unwritten:
            with contextlib.suppress(OSError):  # a pipe has no position to ask for
                self._after_line(line)

    @property
    def failing(self) -> bool:
        """True if the last line could not be written."""
        return self._failing

    def lost_before(self, *, while_failing: bool = False) -> int:
        """Return how many lines were lost since the last call.

        While lines can not be written this is 0, except with ``while_failing``, for a caller who can report it in
        another output.
        """
        if self._failing and not while_failing:
            return 0
        lost, self._reported = self.lost - self._reported, self.lost
        return lost

    def flush(self) -> None:
        """Do nothing: no line is buffered."""

    def _after_line(self, line: bytes) -> None:
        """Do what is needed after each line that was written."""

    def _push(self, fd: int, data: bytes, until_s: float) -> bytes:
        """Write as much as is possible until a monotonic time. Return the bytes that were not written."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        with contextlib.suppress(OSError):
            while data and poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
                data = data[os.write(fd, data[: self._max_bytes]) :]
        return data

    def _descriptor(self) -> int:
        assert self._stream is not None
        if self._fd < 0:
            self._fd, self._max_bytes = _unshared(self._stream.fileno())
        return self._fd


def _unshared(fd: int) -> tuple[int, int]:
    """Return a file descriptor for the same stream that never blocks, and how many bytes one write may have.

    A pipe is opened anew as non-blocking, because other processes share the description of ``fd`` itself. If that
    fails, ``fd`` is used: a pipe that is ready takes PIPE_BUF bytes without blocking, see pipe(7).
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        with contextlib.suppress(OSError):  # another user owns the pipe, or there is no /proc
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return fd, 1 << 30 if stat.S_ISREG(mode) else select.PIPE_BUF


def is_journal(stream: TextIO, journal_stream: str | None) -> bool:
    """Return True if a stream leads to systemd's journal.

    ``journal_stream`` is the variable JOURNAL_STREAM, where systemd gives device and inode, see systemd.exec(5).
    """
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


def _shorten(fd: int, size: int, whole: int) -> None:
    """Truncate a copy of ``size`` bytes to its ``whole`` lines, if it was made while a line was being written.

    Errors are ignored.
    """
    if whole < size:
        with contextlib.suppress(OSError):  # the copy may not be written, or there is no /proc
            writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(writable, whole)
            finally:
                os.close(writable)


class LogFile(LineOutput):
    """Appends lines to the file at a path, and follows its rotation.

    Rotation may move the file away, with or without making a new one; the next line makes it if needed. Or it may copy
    the file and then truncate it (``copytruncate``). Then the lines that were written between copy and truncation are
    written again, if the copy lies beside the file and is not compressed: it is found by its last bytes. Each line is
    one write to one file, so no line is torn. Only a copy can end within a line that was just being written. Such an
    end is cut off the copy, because the line is written again.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OSError: the file can not be opened.
        """
        super().__init__()
        self.path, self._max_bytes = path, 1 << 30
        self._recent: deque[tuple[int, bytes]] = deque()  # lines of this file, each with the offset of its end
        self._recent_bytes = 0
        self._open()

    def _open(self) -> None:
        # The path may be a pipe: O_NONBLOCK, so that neither this call nor a later write waits for its reader.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self.path, flags, 0o640)
        self.close()
        status = os.fstat(fd)
        self._fd, self._device_inode, self._rest = fd, (status.st_dev, status.st_ino), b""
        self._forget()

    def _descriptor(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self.path)
            if self._fd >= 0 and (status.st_dev, status.st_ino) == self._device_inode:
                return self._fd
        self._open()
        return self._fd

    def _after_line(self, line: bytes) -> None:
        rewrite = deque(self._lost_by_truncation(line))
        while rewrite:  # the file may be truncated again meanwhile
            lost = rewrite.popleft()
            os.write(self._fd, lost)
            rewrite.extendleft(reversed(self._lost_by_truncation(lost)))

    def _lost_by_truncation(self, line: bytes) -> list[bytes]:
        """Remember a line just written. If the file was truncated before it, return the lines that no copy has."""
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        truncated = bool(self._recent) and end - len(line) < self._recent[-1][0]
        lost = self._not_copied() if truncated else []
        if truncated:
            self._forget()
        self._remember(end, line)
        return lost

    def _remember(self, end: int, line: bytes) -> None:
        self._recent.append((end, line))
        self._recent_bytes += len(line)
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[1])

    def _forget(self) -> None:
        self._recent.clear()
        self._recent_bytes = 0

    def _not_copied(self) -> list[bytes]:
        """Return the last lines of the truncated file that its copy beside it lacks. Without a copy there are none."""
        recent = b"".join(line for _, line in self._recent)
        end = self._recent[-1][0]
        begin = end - len(recent)
        for copy in self.path.parent.glob(f"{glob.escape(self.path.name)}?*"):
            with contextlib.suppress(OSError), copy.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                tail = recent[: size - begin][-4096:] if begin < size <= end else b""
                file.seek(size - len(tail))
                if tail and file.read() == tail:
                    whole = max((line_end for line_end, _ in self._recent if line_end <= size), default=begin)
                    _shorten(file.fileno(), size, whole)
                    return [line for line_end, line in self._recent if line_end > size]
        return []

    def close(self) -> None:
        """Close the file. The next line opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def log_file(settings: loader.Config) -> LogFile | None:
    """Open the file that the log is written to as well. Return None if the config names none.

    Raises:
        Fatal: exit code 5; the file can not be opened.
    """
    path = settings.log.file
    if path is None:
        return None
    try:
        return LogFile(path)
    except OSError as error:
        raise Fatal(
            f"the log file {path} can not be written: {error.strerror}",
            f"Make its directory, or set another log.file. {mounts.write_advice(path)}",
            Exit.DIRECTORY,
        ) from error
