"""Where log lines are written. A log that can not be written must not stop the sorting."""

from __future__ import annotations

import contextlib
import glob
import os
from collections import deque
from pathlib import Path
from typing import TextIO

RECENT = 4 * 2**20
"""Bytes of the last lines that are kept, in case the file is cut before they were copied."""


class Output:
    """Writes whole lines to a stream's descriptor.

    ``lost`` counts the lines that could not be written: the ledger has every outcome all the same.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream, self._torn = stream, False
        self.lost = 0

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> None:
        """Write one line, or count it as lost (disk full, nobody reads any more)."""
        written = 0
        try:
            fd = self._descriptor()
            line = b"\n" * self._torn + text.encode("utf-8", "backslashreplace")
            while written < len(line):
                written += os.write(fd, line[written:])
            self._torn = False
            self._wrote(line)
        except OSError:
            self.lost += 1
            self._torn = self._torn or written > 0

    def flush(self) -> None:
        """Nothing is held back."""

    def _wrote(self, line: bytes) -> None:
        """What is to be done after each line."""

    def _descriptor(self) -> int:
        assert self._stream is not None
        return self._stream.fileno()


def is_journal(stream: TextIO, told: str | None) -> bool:
    """Whether a stream leads to systemd's journal, by what systemd told in JOURNAL_STREAM (see systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except OSError:
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


class File(Output):
    """Appends to whatever file has the name just now.

    Rotation may move the file away, with or without making another (the next line makes it), or copy and then cut it
    (``copytruncate``). What was written between copy and cut is written again, as far as the copy lies beside the
    file, uncompressed: it is found by its own last bytes. Each line is one write to one file: never torn.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OSError: it can not be opened.
        """
        super().__init__()
        self._path, self._fd = path, -1
        self._recent: deque[tuple[int, bytes]] = deque()  # lines of this file, each with where it ended
        self._kept = 0
        self._open()

    def _open(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self.close()
        found = os.fstat(fd)
        self._fd, self._which, self._torn = fd, (found.st_dev, found.st_ino), False
        self._forget()

    def _descriptor(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self._path)
            if self._fd >= 0 and (found.st_dev, found.st_ino) == self._which:
                return self._fd
        self._open()
        return self._fd

    def _wrote(self, line: bytes) -> None:
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        cut = bool(self._recent) and end - len(line) < self._recent[-1][0]
        lost = self._not_copied() if cut else []
        if cut:
            self._forget()
        self._remember(end, line)
        for again in lost:
            os.write(self._fd, again)
            self._remember(os.lseek(self._fd, 0, os.SEEK_CUR), again)

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
        for copy in self._path.parent.glob(f"{glob.escape(self._path.name)}?*"):
            with contextlib.suppress(OSError), copy.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                same = kept[: size - begin][-4096:] if begin < size <= end else b""
                file.seek(size - len(same))
                if same and file.read() == same:
                    return [line for ended, line in self._recent if ended > size]
        return []

    def close(self) -> None:
        """Close the file. The next line opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
