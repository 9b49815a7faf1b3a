"""Structured logs: one canonical line for each file's outcome, and few others."""

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
    """What is logged, how, and where to. Can change while the daemon runs: :meth:`use`."""

    def __init__(
        self, stream: TextIO | LineOutput, clock: Callable[[], float] = time.monotonic, *, priorities: bool = False
    ) -> None:
        """With ``priorities`` each line begins with the one of its level, as systemd's journal takes it off."""
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
        """Write lines of this level or above; to ``file`` too, as JSON; the last error into a file of its own."""
        terminal = self._stream.isatty()
        console = form == "console" or (form == "auto" and terminal)
        self._render = structlog.dev.ConsoleRenderer(colors=terminal) if console else self._json
        self._level, self._last_error = logging.getLevelNamesMapping()[level.upper()], last_error
        old, self._file = self._file, file
        if old is not None and old is not file:
            old.close()

    def flush(self, *, all: bool = False) -> None:
        """Write what was held back long enough, or (``all``) whatever was.

        See :class:`watcher.monitoring.rate_limit.RateLimiter`.

        And how many lines were lost, where lines are written again.
        """
        with self._lock:
            due = self._repeats.due(all=all)
        for method, line in due:
            getattr(self.logger, method)(**line)
        for output, other in ((self._stream, self._file), (self._file, self._stream)):
            if isinstance(output, LineOutput):
                self._tell_lost(output, other)

    def _tell_lost(self, output: LineOutput, other: TextIO | LineOutput | None) -> None:
        """When lines are written again; while they are not, once a minute where the other output has them."""
        now = self._clock()
        still = isinstance(other, LineOutput) and not other.failing and now >= self._next_lost_s
        if lines := output.lost_before(still=still):
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
        written = None
        if self._file is not None or self._render is self._json or method in ("error", "critical"):
            written = str(self._json(logger, method, structlog.processors.format_exc_info(logger, method, {**line})))
            if self._file is not None:
                with self._lock:
                    self._file.write(written + "\n")
            if self._last_error is not None and method in ("error", "critical"):
                _replace(self._last_error, written)
        told = written if self._render is self._json else self._render(logger, method, line)
        return self._priorities.get(method, "") + str(told)


_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
"""Of sd-daemon(3)."""

_STAMPS: list[structlog.typing.Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _replace(path: Path, line: str) -> None:
    """Best effort: the log has it."""
    with contextlib.suppress(OSError):
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(line + "\n", "utf-8", "backslashreplace")
        fresh.replace(path)


def configure(form: Form, level: str, stream: TextIO | LineOutput) -> Logger:
    """A logger that writes one line an event to ``stream``: JSON, or coloured text on a terminal."""
    daemon_log = DaemonLog(stream)
    daemon_log.use(form, level)
    return daemon_log.logger
