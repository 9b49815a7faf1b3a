"""Structured logs: one canonical line for each file's outcome, and few others."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from watcher.core.records import Behind, Ending, Filed, Notice, Outcome, Returned, Shadowed
from watcher.monitoring.drift import Report
from watcher.monitoring.log_output import File, Output
from watcher.monitoring.rate_limit import WINDOW_S, Repeats

EVENTS = {
    Outcome.SORTED: "image.sorted",
    Outcome.REVIEW: "image.review",
    Outcome.QUARANTINE: "image.quarantined",
}

Logger = FilteringBoundLogger
Form = Literal["auto", "json", "console"]


class Journal:
    """What is logged, how, and where to. Can change while the daemon runs: :meth:`use`."""

    def __init__(
        self, stream: TextIO | Output, clock: Callable[[], float] = time.monotonic, *, priorities: bool = False
    ) -> None:
        """With ``priorities`` each line begins with the one of its level, as systemd's journal takes it off."""
        self._priorities = _PRIORITIES if priorities else {}
        self._stream, self._repeats, self._lock = stream, Repeats(clock), threading.Lock()
        self._clock, self._next_lost_s = clock, float("-inf")
        self._level = logging.INFO
        self._file: File | None = None
        self._last_error: Path | None = None
        self._json = structlog.processors.JSONRenderer()
        self._render: structlog.typing.Processor = self._json
        self.logger: Logger = structlog.wrap_logger(
            structlog.WriteLogger(cast(TextIO, stream)),
            processors=[self._filter, *_STAMPS, self._write],
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
            cache_logger_on_first_use=True,
        ).bind()

    def use(self, form: Form, level: str, file: File | None = None, last_error: Path | None = None) -> None:
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

        See :class:`watcher.monitoring.rate_limit.Repeats`.

        And how many lines were lost, where lines are written again.
        """
        with self._lock:
            due = self._repeats.due(all=all)
        for method, line in due:
            getattr(self.logger, method)(**line)
        for output, other in ((self._stream, self._file), (self._file, self._stream)):
            if isinstance(output, Output):
                self._tell_lost(output, other)

    def _tell_lost(self, output: Output, other: TextIO | Output | None) -> None:
        """When lines are written again; while they are not, once a minute where the other output has them."""
        now = self._clock()
        still = isinstance(other, Output) and not other.failing and now >= self._next_lost_s
        if lines := output.lost_before(still=still):
            self._next_lost_s = now + WINDOW_S
            place = output.path if isinstance(output, File) else "standard output"
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


def configure(form: Form, level: str, stream: TextIO | Output) -> Logger:
    """A logger that writes one line an event to ``stream``: JSON, or coloured text on a terminal."""
    journal = Journal(stream)
    journal.use(form, level)
    return journal.logger


def printable(name: str) -> str:
    """A file name as text that is safe in any log: control characters and bytes that are no UTF-8 escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def notices(log: Logger, kept: list[Notice]) -> None:
    """Write these lines, and empty the list."""
    for each in kept:
        getattr(log, each.level)(each.event, **each.fields)
    kept.clear()


def recovered(log: Logger, endings: Sequence[Ending]) -> None:
    """What was reconciled after somebody died."""
    for ending in endings:
        if ending.state == "missing":
            log.error("file.missing", id=ending.decision, note=ending.note)
    if endings:
        counts = {state: sum(e.state == state for e in endings) for state in ("filed", "returned", "missing")}
        log.warning("daemon.recovered", **counts)


def ledger(log: Logger, was: Behind | None, now: Behind | None) -> None:
    """That the ledger does not follow the files, once, and that it does again."""
    if now is not None and was is None:
        note = "recorded as soon as it can be written; until then nothing else is filed"
        log.error("ledger.behind", files=now.files, detail=now.why, note=note)
    elif now is None and was is not None:
        log.info("ledger.caught_up", files=was.files)


def outcome(
    log: Logger, filed: Filed, decision_id: int, batch: int, model: str | None, device: str, now_s: float
) -> None:
    """The canonical line of one file. ``batch`` is the first decision of its transaction.

    Times are milliseconds; ``total_ms`` counts from first sight.
    """
    d = filed.order.decision
    fields = _fields(filed, decision_id, batch, model, device, now_s)
    write = log.info if d.outcome is Outcome.SORTED else log.warning
    write(EVENTS[d.outcome], **fields, move_ms=round(filed.move_ms, 2))


def shadowed(
    log: Logger, result: Shadowed, decision_id: int, batch: int, model: str | None, device: str, now_s: float
) -> None:
    """The same in shadow mode, where nothing is moved: ``destination`` is where the file would have gone."""
    fields = _fields(result, decision_id, batch, model, device, now_s)
    log.info("image.shadowed", outcome=result.order.decision.outcome.value, **fields)


def returned(log: Logger, result: Returned, decision_id: int) -> None:
    """A file that was not moved and takes its way again from the start: it had changed, or gone."""
    log.info("image.returned", id=decision_id, name=printable(result.order.name), detail=printable(result.why))


def not_filed(log: Logger, failed: Sequence[Returned]) -> None:
    """One line for all files of a batch that their surroundings failed."""
    first = failed[0]
    log.error(
        "filing.failed",
        files=len(failed),
        name=printable(first.order.name),
        detail=printable(first.why),
        note="they stay in the inbox and are tried again, later each time",
    )


def drifted(log: Logger, report: Report) -> None:
    """What arrives is not what it was."""
    log.warning(
        "drift.suspected",
        figures=list(report.suspected),
        files=report.files,
        hours=round(report.hours, 2),
        review_rate=_rounded(report.window.review_rate),
        review_rate_reference=_rounded(report.reference.review_rate),
        confidence=_rounded(report.window.confidence),
        confidence_reference=_rounded(report.reference.confidence),
        class_mix_distance=_rounded(report.distance),
        classes={name: _rounded(share) for name, share in report.window.mix.items()},
        classes_reference={name: _rounded(share) for name, share in report.reference.mix.items()},
        against=dict(report.against),
        note="look at recent images: another scanner, another export, or images that are none of the classes?",
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _fields(
    result: Filed | Shadowed, decision_id: int, batch: int, model: str | None, device: str, now_s: float
) -> dict[str, Any]:
    order = result.order
    d, t = order.decision, order.timing
    return {
        "id": decision_id,
        "batch": batch,
        "name": printable(order.name),
        "digest": order.digest,
        "class": d.label,
        "confidence": round(d.confidence, 6),
        "runner_up": d.top[1][0] if len(d.top) > 1 else None,
        "reason": d.reason,
        "detail": None if d.detail is None else printable(d.detail),
        "destination": printable(result.destination),
        "model": model,
        "device": device,
        "queue_ms": round(t.queue_ms, 2),
        "decode_ms": round(t.decode_ms, 2),
        "infer_ms": round(t.infer_ms, 2),
        "total_ms": round((now_s - t.seen_s) * 1000, 2),
    }
