"""Convert decisions and endings to rows of the ledger and back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from watcher.core.records import Ending, Identity, MoveOrder, Outcome, signed

INSERT_DECISION = f"insert into decision values ({', '.join('?' * 20)})"

UNENDED = """
select id, outcome, name, source, directory, digest, reason, detail, decided_at, verdict,
       device, inode, size, mtime_ns
from unended join decision on decision.id = unended.decision
"""

SHADOWED = """
select source, inode, size, mtime_ns from decision join ending on ending.decision = decision.id
where state = 'shadowed' and inode is not null
"""

WAITING_VERDICTS = """
select verdict from (
    select verdict from open_verdict
    except select decision.verdict from unended join decision on decision.id = unended.decision
)
"""

CLASSIFIED = """
select decided_at, class, confidence, outcome, reason
from (select id, decided_at, class, confidence, outcome, reason, model from decision order by id desc limit ?) d
join ending on ending.decision = d.id
where model = ? and state in ('filed', 'shadowed') order by d.id desc
"""

LAST_IN_AND_OUT = """
select coalesce(max(id) filter (where destination = ?), 0), coalesce(max(id) filter (where source = ?), 0)
from ending join decision on decision.id = ending.decision where state = 'filed'
"""

DUPLICATE = """
select decision.id from decision left join ending on ending.decision = decision.id
where digest = ? and outcome = 'sorted' and coalesce(state, 'filed') = 'filed'
  and not exists (select 1 from decision back join ending on ending.decision = back.id
                  where back.restores = decision.id and ending.state = 'filed')
limit 1
"""


@dataclass(frozen=True)
class Unended:
    """A decision without an ending. Its file may or may not have moved."""

    decision: int
    outcome: Outcome
    name: str
    source: str
    directory: str
    identity: Identity | None
    digest: str | None
    reason: str | None
    detail: str | None
    decided_at: datetime
    verdict: int | None = None


def decision_row(
    number: int, batch: int, order: MoveOrder, source: str, directory: str, model: str | None, decided_at: str
) -> tuple[Any, ...]:
    """Return the row of a decision, with the columns of ``schema.sql``."""
    i, d = order.identity, order.decision
    names = (os.fsencode(order.target_name), os.fsencode(source))
    stamp = (signed(i.device), signed(i.inode), i.size, i.mtime_ns) if i else (None,) * 4
    detail = storable_text(d.detail)
    decision = (d.outcome.value, d.label, d.confidence, storable_text(d.reason), detail, json.dumps(d.top), model)
    rest = (os.fsencode(directory), order.restores, order.verdict, decided_at)
    return (number, batch, *names, order.digest, *stamp, *decision, *rest)


def unended(row: Sequence[Any]) -> Unended:
    """Return the decision of a row of :data:`UNENDED`."""
    number, outcome, name, source, directory, digest, reason, detail, decided_at, verdict, *stamp = row
    identity = None if stamp[0] is None else _identity(stamp)
    paths = (os.fsdecode(name), os.fsdecode(source), os.fsdecode(directory))
    return Unended(
        *(number, Outcome(outcome), *paths, identity, digest, reason, detail),
        decided_at=datetime.fromisoformat(decided_at),
        verdict=verdict,
    )


def shadowed_file(row: Sequence[Any]) -> tuple[str, tuple[int, int, int]]:
    """Return the file of a row of :data:`SHADOWED`: its path, and (inode, size, mtime_ns)."""
    source, inode, size, mtime_ns = row
    return os.fsdecode(source), (inode % (1 << 64), size, mtime_ns)


def ending_row(ending: Ending, ended_at: str) -> tuple[Any, ...]:
    """Return the row of an ending, with the columns of ``schema.sql``."""
    destination = None if ending.destination is None else os.fsencode(ending.destination)
    return (ending.decision, ending.state, destination, storable_text(ending.note), ended_at)


def storable_text(text: str | None) -> str | None:
    """Escape surrogates, which stand for bytes of a file name that are no UTF-8. SQLite does not accept them."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _identity(row: Sequence[int]) -> Identity:
    device, inode, size, mtime_ns = row
    return Identity(device % (1 << 64), inode % (1 << 64), size, mtime_ns)
