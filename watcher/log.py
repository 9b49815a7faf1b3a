"""Structured logs: one canonical line for each file's outcome, and few others."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

from watcher.records import Ending, Filed, Outcome

EVENTS = {
    Outcome.SORTED: "image.sorted",
    Outcome.REVIEW: "image.review",
    Outcome.QUARANTINE: "image.quarantined",
}

Logger = FilteringBoundLogger


class Output:
    """Writes whole lines to a descriptor. A log that can not be written must not stop the sorting.

    ``lost`` counts the lines that could not be written: the ledger has every outcome all the same.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._torn = stream, False
        self.lost = 0

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()

    def write(self, text: str) -> None:
        """Write one line, or count it as lost (disk full, nobody reads any more)."""
        line = b"\n" * self._torn + text.encode("utf-8", "backslashreplace")
        written = 0
        try:
            while written < len(line):
                written += os.write(self._stream.fileno(), line[written:])
            self._torn = False
        except OSError:
            self.lost += 1
            self._torn = self._torn or written > 0

    def flush(self) -> None:
        """Nothing is held back."""


def configure(form: Literal["auto", "json", "console"], level: str, stream: TextIO | Output) -> Logger:
    """A logger that writes one line an event to ``stream``: JSON, or coloured text on a terminal."""
    console = form == "console" or (form == "auto" and stream.isatty())
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty()) if console else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        render,
    ]
    wrapper = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
    logger = structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, stream)),
        processors=processors,
        wrapper_class=wrapper,
        cache_logger_on_first_use=True,
    )
    bound: Logger = logger.bind()
    return bound


def printable(name: str) -> str:
    """A file name as text that is safe in any log: control characters and bytes that are no UTF-8 escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def recovered(log: Logger, endings: Sequence[Ending]) -> None:
    """What was reconciled after somebody died."""
    for ending in endings:
        if ending.state == "missing":
            log.error("file.missing", id=ending.decision, note=ending.note)
    if endings:
        counts = {state: sum(e.state == state for e in endings) for state in ("filed", "returned", "missing")}
        log.warning("daemon.recovered", **counts)


def outcome(
    log: Logger, filed: Filed, decision_id: int, batch: int, model: str | None, device: str, now_s: float
) -> None:
    """The canonical line of one file. ``batch`` is the first decision of its transaction.

    Times are milliseconds; ``total_ms`` counts from first sight.
    """
    order = filed.order
    d, t = order.decision, order.timing
    fields: dict[str, Any] = {
        "id": decision_id,
        "batch": batch,
        "name": printable(order.name),
        "digest": order.digest,
        "class": d.label,
        "confidence": round(d.confidence, 6),
        "runner_up": d.top[1][0] if len(d.top) > 1 else None,
        "reason": d.reason,
        "detail": None if d.detail is None else printable(d.detail),
        "destination": printable(filed.destination),
        "model": model,
        "device": device,
        "queue_ms": round(t.queue_ms, 2),
        "decode_ms": round(t.decode_ms, 2),
        "infer_ms": round(t.infer_ms, 2),
        "move_ms": round(filed.move_ms, 2),
        "total_ms": round((now_s - t.seen_s) * 1000, 2),
    }
    write = log.info if d.outcome is Outcome.SORTED else log.warning
    write(EVENTS[d.outcome], **fields)
