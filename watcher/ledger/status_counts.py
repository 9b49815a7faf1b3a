"""Counts files by outcome and class for `status`."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from watcher.ledger.reader import VERDICT, unreadable


@dataclass(frozen=True)
class StatusCounts:
    """What ``status`` tells of the ledger. Counts are of files filed, ``verdicts`` of what people said.

    ``last_work_at`` is when a daemon last filed a file, or decided upon one in shadow mode.
    """

    total: dict[str, int]
    since: dict[str, int]
    classes: dict[str, int]
    last_filed_at: str | None
    unended: int
    verdicts: dict[str, int] = field(default_factory=dict)
    last_work_at: str | None = None


def count_for_status(path: Path, since: datetime) -> StatusCounts:
    """Read the counts, all and since a time, without disturbing the daemon.

    Raises:
        Fatal: exit code 5; there is no ledger, or it can not be read.
    """
    filed = "from ending join decision on decision.id = ending.decision where state = 'filed' and verdict is null"
    at = since.astimezone(UTC).isoformat(timespec="milliseconds")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            return StatusCounts(
                total=dict(db.execute(f"select outcome, count(*) {filed} group by 1")),
                since=dict(db.execute(f"select outcome, count(*) {filed} and decided_at >= ? group by 1", (at,))),
                classes=dict(db.execute(f"select class, count(*) {filed} and outcome = 'sorted' group by 1")),
                last_filed_at=db.execute(_LAST_FILED).fetchone()[0],
                unended=db.execute("select count(*) from unended").fetchone()[0],
                verdicts=dict(db.execute(_VERDICTS)),
                last_work_at=next((at for (at,) in db.execute(_LAST_WORK)), None),
            )
    except sqlite3.Error as error:
        raise unreadable(path, error) from error


_VERDICTS = f"select state, count(*) from ({VERDICT}) group by 1"


_LAST_FILED = """
select max(ended_at) from ending join decision on decision.id = ending.decision
where state = 'filed' and outcome != 'restored'
"""


_LAST_WORK = """
select ended_at from ending join decision on decision.id = ending.decision
where state in ('filed', 'shadowed') and outcome != 'restored' and verdict is null
order by ending.decision desc limit 1
"""
