"""Write the log lines for modules that do not log themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from watcher.core.printable import printable
from watcher.core.records import Ending, Filed, LedgerLag, Notice, Outcome, Returned, Shadowed
from watcher.monitoring.drift import DriftReport
from watcher.monitoring.log import Logger
from watcher.review.verdicts import VerdictResult

EVENTS = {
    Outcome.SORTED: "image.sorted",
    Outcome.REVIEW: "image.review",
    Outcome.QUARANTINE: "image.quarantined",
}


"""Event that a file's outcome is logged as."""


def verdicts(log: Logger, results: Iterable[VerdictResult]) -> None:
    """Write one line for each verdict that was carried out, or could not be."""
    for result in results:
        _verdict(log, result)


def _verdict(log: Logger, result: VerdictResult) -> None:
    """Write the line of one verdict. The note is left out, because it may name a patient."""
    verdict = result.verdict
    fields = {
        "verdict": verdict.id,
        "name": printable(verdict.name),
        "digest": verdict.digest,
        "class": verdict.label,
        "by": printable(verdict.user),
    }
    if result.state == "filed":
        source, destination = printable(verdict.path), printable(result.destination or "")
        log.info("verdict.filed", **fields, id=result.id, source=source, destination=destination)
    elif result.state == "confirmed":
        log.info("verdict.confirmed", **fields, destination=printable(verdict.path))
    elif result.state == "left":
        log.warning("verdict.left", **fields, detail=printable(result.why or ""))
    else:
        log.warning("verdict.failed", **fields, detail=printable(result.why or ""))


def notices(log: Logger, pending: list[Notice]) -> None:
    """Write the lines that a module asks for, and empty the list."""
    for notice in pending:
        getattr(log, notice.level)(notice.event, **notice.fields)
    pending.clear()


def recovered(log: Logger, endings: Sequence[Ending]) -> None:
    """Log the decisions that were ended after a process had died."""
    for ending in endings:
        if ending.state == "missing":
            log.error("file.missing", id=ending.decision, note=ending.note)
    if endings:
        counts = {state: sum(ending.state == state for ending in endings) for state in ("filed", "returned", "missing")}
        log.warning("daemon.recovered", **counts)


def ledger(log: Logger, before: LedgerLag | None, now: LedgerLag | None) -> None:
    """Log once that files have moved and the ledger can not be written, and once that it has caught up."""
    if now is not None and before is None:
        note = "recorded as soon as the ledger can be written; until then nothing else is filed"
        log.error("ledger.behind", files=now.files, detail=now.why, note=note)
    elif now is None and before is not None:
        log.info("ledger.caught_up", files=before.files)


def outcome(
    log: Logger, filed: Filed, decision_id: int, batch: int, model: str | None, device: str, now_s: float
) -> None:
    """Write the canonical line of one file. ``batch`` is the first decision of its transaction.

    Times are in milliseconds; ``total_ms`` is the time since the file was first seen.
    """
    outcome = filed.order.decision.outcome
    fields = _fields(filed, decision_id, batch, model, device, now_s)
    write = log.info if outcome is Outcome.SORTED else log.warning
    write(EVENTS[outcome], **fields, move_ms=round(filed.move_ms, 2))


def shadowed(
    log: Logger, result: Shadowed, decision_id: int, batch: int, model: str | None, device: str, now_s: float
) -> None:
    """Write the line of a file in shadow mode, as :func:`outcome`. ``destination`` is where it would have gone."""
    fields = _fields(result, decision_id, batch, model, device, now_s)
    log.info("image.shadowed", outcome=result.order.decision.outcome.value, **fields)


def returned(log: Logger, result: Returned, decision_id: int) -> None:
    """Log a file that was not moved, because it has changed or is gone. It goes through the pipeline again."""
    log.info("image.returned", id=decision_id, name=printable(result.order.name), detail=printable(result.why))


def not_filed(log: Logger, failed: Sequence[Returned]) -> None:
    """Write one line for all files of a batch that could not be moved, for reasons outside of the files."""
    first = failed[0]
    log.error(
        "filing.failed",
        files=len(failed),
        name=printable(first.order.name),
        detail=printable(first.why),
        note="they stay in the inbox and are tried again, after longer and longer pauses",
    )


def drifted(log: Logger, report: DriftReport) -> None:
    """Warn that the files that arrive differ from those before."""
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
    decision, timing = order.decision, order.timing
    return {
        "id": decision_id,
        "batch": batch,
        "name": printable(order.name),
        "digest": order.digest,
        "class": decision.label,
        "confidence": round(decision.confidence, 6),
        "runner_up": decision.top[1][0] if len(decision.top) > 1 else None,
        "reason": decision.reason,
        "detail": None if decision.detail is None else printable(decision.detail),
        "destination": printable(result.destination),
        "model": model,
        "device": device,
        "queue_ms": round(timing.queue_ms, 2),
        "decode_ms": round(timing.decode_ms, 2),
        "infer_ms": round(timing.infer_ms, 2),
        "total_ms": round((now_s - timing.seen_s) * 1000, 2),
    }
