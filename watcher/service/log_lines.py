"""Log lines of what other modules found and do not log themselves."""

from __future__ import annotations

from collections.abc import Iterable

from watcher.monitoring import log
from watcher.review.verdicts import Done


def verdicts(logger: log.Logger, done: Iterable[Done]) -> None:
    """Write one line for each verdict that was carried out, or could not be."""
    for each in done:
        _verdict(logger, each)


def _verdict(logger: log.Logger, done: Done) -> None:
    """One line for each. Never the note: what people write there may name a patient."""
    said = done.verdict
    about = {
        "verdict": said.id,
        "name": log.printable(said.name),
        "digest": said.digest,
        "class": said.label,
        "by": log.printable(said.user),
    }
    if done.state == "filed":
        source, destination = log.printable(said.path), log.printable(done.destination or "")
        logger.info("verdict.filed", **about, id=done.id, source=source, destination=destination)
    elif done.state == "confirmed":
        logger.info("verdict.confirmed", **about, destination=log.printable(said.path))
    elif done.state == "left":
        logger.warning("verdict.left", **about, detail=log.printable(done.why or ""))
    else:
        logger.warning("verdict.failed", **about, detail=log.printable(done.why or ""))
