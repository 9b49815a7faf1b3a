"""Write structured logs: one canonical line for the outcome of each file, and few others."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from watcher.core.printable import printable
from watcher.monitoring.log_output import LineOutput, LogFile
from watcher.monitoring.rate_limit import WINDOW_S, RateLimiter

Logger = FilteringBoundLogger
Form = Literal["auto", "json", "console"]


class DaemonLog:
    """The daemon's logger, whose format, level and files can change while the daemon runs (see :meth:`use`)."""

    def __init__(
        self, stream: TextIO | LineOutput, clock: Callable[[], float] = time.monotonic, *, priorities: bool = False
    ) -> None:
        """Log to a stream. With ``priorities`` each line begins with its level's priority, for systemd's journal."""
        self._priorities = _PRIORITIES if priorities else {}
        self._stream, self._repeats, self._lock = stream, RateLimiter(clock), threading.Lock()
        self._clock, self._next_lost_s = clock, float("-inf")
        self._level = logging.INFO
        self._file: LogFile | None = None
        self._last_error: Path | None = None
        self._json = structlog.processors.JSONRenderer()
        self._render: structlog.typing.Processor = self._json
        self.logger: Logger = structlog.wrap_logger(
            structlog.WriteLogger(cast(TextIO, stream)),
            processors=[self._filter, *_STAMPS, self._write],
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
            cache_logger_on_first_use=True,
        ).bind()

    def use(self, form: Form, level: str, file: LogFile | None = None, last_error: Path | None = None) -> None:
        """Log lines of this level or above from now on.

        They also go to ``file``, as JSON. The last error is kept in the file ``last_error``.
        """
        terminal = self._stream.isatty()
        console = form == "console" or (form == "auto" and terminal)
        self._render = structlog.dev.ConsoleRenderer(colors=terminal) if console else self._json
        self._level, self._last_error = logging.getLevelNamesMapping()[level.upper()], last_error
        old, self._file = self._file, file
        if old is not None and old is not file:
            old.close()

    def flush(self, *, all: bool = False) -> None:
        """Write the repeated lines whose window is over, or ``all`` that are held back.

        See :class:`watcher.monitoring.rate_limit.RateLimiter`. An output that lost lines, and can be written again,
        gets a line with their number.
        """
        with self._lock:
            due = self._repeats.due(all=all)
        for method, line in due:
            getattr(self.logger, method)(**line)
        for output, other in ((self._stream, self._file), (self._file, self._stream)):
            if isinstance(output, LineOutput):
                self._log_lost_lines(output, other)

    def _log_lost_lines(self, output: LineOutput, other: TextIO | LineOutput | None) -> None:
        """Log how many lines an output lost, once it can be written again.

        Before that they are logged once a minute, if the other output can be written.
        """
        now = self._clock()
        while_failing = isinstance(other, LineOutput) and not other.failing and now >= self._next_lost_s
        if lines := output.lost_before(while_failing=while_failing):
            self._next_lost_s = now + WINDOW_S
            place = output.path if isinstance(output, LogFile) else "standard output"
            self.logger.warning("log.lines_lost", lines=lines, place=printable(str(place)))

    def _filter(self, logger: Any, method: str, line: EventDict) -> EventDict:
        if logging.getLevelNamesMapping()[method.upper()] < self._level:
            raise structlog.DropEvent
        with self._lock:
            if "repeated" not in line and self._repeats.hold(method, dict(line)):
                raise structlog.DropEvent
        return line

    def _write(self, logger: Any, method: str, line: EventDict) -> Any:
        json_line = None
        if self._file is not None or self._render is self._json or method in ("error", "critical"):
            json_line = str(self._json(logger, method, structlog.processors.format_exc_info(logger, method, {**line})))
            if self._file is not None:
                with self._lock:
                    self._file.write(json_line + "\n")
            if self._last_error is not None and method in ("error", "critical"):
                _replace(self._last_error, json_line)
        text = json_line if self._render is self._json else self._render(logger, method, line)
        return self._priorities.get(method, "") + str(text)


_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
"""Prefixes of each level, from sd-daemon(3)."""

_STAMPS: list[structlog.typing.Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _replace(path: Path, line: str) -> None:
    """Write a file with this one line, replacing the old file. Errors are ignored, because the log has the line."""
    with contextlib.suppress(OSError):
        new_path = path.with_name(f".{path.name}.new")
        new_path.write_text(line + "\n", "utf-8", "backslashreplace")
        new_path.replace(path)


def configure(form: Form, level: str, stream: TextIO | LineOutput) -> Logger:
    """Return a logger that writes one line for each event to ``stream``: JSON, or coloured text on a terminal."""
    daemon_log = DaemonLog(stream)
    daemon_log.use(form, level)
    return daemon_log.logger
