"""Count files by outcome and class for ``status``."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from watcher.ledger.reader import VERDICTS, unreadable


@dataclass(frozen=True)
class StatusCounts:
    """Counts of filed files, and of verdicts by state.

    ``last_work_at`` is the time at which a daemon last filed a file, or decided on one in shadow mode.
    """

    total: dict[str, int]
    since: dict[str, int]
    classes: dict[str, int]
    last_filed_at: str | None
    unended: int
    verdicts: dict[str, int] = field(default_factory=dict)
    last_work_at: str | None = None


def count_for_status(path: Path, since: datetime) -> StatusCounts:
    """Count all files, and those since a time, without disturbing the daemon.

    Raises:
        Fatal: exit code 5; there is no ledger, or it can not be read.
    """
    filed = "from ending join decision on decision.id = ending.decision where state = 'filed' and verdict is null"
    since_text = since.astimezone(UTC).isoformat(timespec="milliseconds")
    recent = f"{filed} and decided_at >= ?"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            return StatusCounts(
                total=dict(db.execute(f"select outcome, count(*) {filed} group by 1")),
                since=dict(db.execute(f"select outcome, count(*) {recent} group by 1", (since_text,))),
                classes=dict(db.execute(f"select class, count(*) {filed} and outcome = 'sorted' group by 1")),
                last_filed_at=db.execute(_LAST_FILED).fetchone()[0],
                unended=db.execute("select count(*) from unended").fetchone()[0],
                verdicts=dict(db.execute(_VERDICTS_BY_STATE)),
                last_work_at=next((ended_at for (ended_at,) in db.execute(_LAST_WORK)), None),
            )
    except sqlite3.Error as error:
        raise unreadable(path, error) from error


_VERDICTS_BY_STATE = f"select state, count(*) from ({VERDICTS}) group by 1"


_LAST_FILED = """
select max(ended_at) from ending join decision on decision.id = ending.decision
where state = 'filed' and outcome != 'restored'
"""


_LAST_WORK = """
select ended_at from ending join decision on decision.id = ending.decision
where state in ('filed', 'shadowed') and outcome != 'restored' and verdict is null
order by ending.decision desc limit 1
"""
