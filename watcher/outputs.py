"""Where log lines are written. A log that can not be written must not stop the sorting."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TextIO


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
        except OSError:
            self.lost += 1
            self._torn = self._torn or written > 0

    def flush(self) -> None:
        """Nothing is held back."""

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

    Rotation may move the file away, with or without making another (the next line makes it), or cut it
    (``copytruncate``: appending goes on at its new end). Each line is one write to one file: never torn.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OSError: it can not be opened.
        """
        super().__init__()
        self._path, self._fd = path, -1
        self._open()

    def _open(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self.close()
        found = os.fstat(fd)
        self._fd, self._which, self._torn = fd, (found.st_dev, found.st_ino), False

    def _descriptor(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self._path)
            if self._fd >= 0 and (found.st_dev, found.st_ino) == self._which:
                return self._fd
        self._open()
        return self._fd

    def close(self) -> None:
        """Close the file. The next line opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
