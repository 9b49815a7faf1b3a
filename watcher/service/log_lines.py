"""Log lines of what other modules found and do not log themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from watcher.core.printable import printable
from watcher.core.records import Ending, Filed, LedgerLag, Notice, Outcome, Returned, Shadowed
from watcher.monitoring import log
from watcher.monitoring.drift import DriftReport
from watcher.monitoring.log import Logger
from watcher.review.verdicts import VerdictResult


def verdicts(logger: log.Logger, done: Iterable[VerdictResult]) -> None:
    """Write one line for each verdict that was carried out, or could not be."""
    for each in done:
        _verdict(logger, each)


def _verdict(logger: log.Logger, done: VerdictResult) -> None:
    """One line for each. Never the note: what people write there may name a patient."""
    said = done.verdict
    about = {
        "verdict": said.id,
        "name": printable(said.name),
        "digest": said.digest,
        "class": said.label,
        "by": printable(said.user),
    }
    if done.state == "filed":
        source, destination = printable(said.path), printable(done.destination or "")
        logger.info("verdict.filed", **about, id=done.id, source=source, destination=destination)
    elif done.state == "confirmed":
        logger.info("verdict.confirmed", **about, destination=printable(said.path))
    elif done.state == "left":
        logger.warning("verdict.left", **about, detail=printable(done.why or ""))
    else:
        logger.warning("verdict.failed", **about, detail=printable(done.why or ""))


EVENTS = {
    Outcome.SORTED: "image.sorted",
    Outcome.REVIEW: "image.review",
    Outcome.QUARANTINE: "image.quarantined",
}


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


def ledger(log: Logger, was: LedgerLag | None, now: LedgerLag | None) -> None:
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


def drifted(log: Logger, report: DriftReport) -> None:
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
