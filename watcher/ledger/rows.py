"""How decisions are written in the ledger's rows, and asked for and read from them again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from watcher.core.records import Ending, Identity, MoveOrder, Outcome, signed

DECIDE = f"insert into decision values ({', '.join('?' * 20)})"

UNENDED = """
select id, outcome, name, source, directory, digest, reason, detail, decided_at, verdict,
       device, inode, size, mtime_ns
from unended join decision on decision.id = unended.decision
"""

SHADOWED = """
select source, inode, size, mtime_ns from decision join ending on ending.decision = decision.id
where state = 'shadowed' and inode is not null
"""

AWAITED = """
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

PUT_AND_TAKEN = """
select coalesce(max(id) filter (where destination = ?), 0), coalesce(max(id) filter (where source = ?), 0)
from ending join decision on decision.id = ending.decision where state = 'filed'
"""

TWIN = """
select decision.id from decision left join ending on ending.decision = decision.id
where digest = ? and outcome = 'sorted' and coalesce(state, 'filed') = 'filed'
  and not exists (select 1 from decision back join ending on ending.decision = back.id
                  where back.restores = decision.id and ending.state = 'filed')
limit 1
"""


@dataclass(frozen=True)
class Unended:
    """A decision whose file may or may not have moved, from before a crash."""

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


def decision(
    number: int, batch: int, order: MoveOrder, source: str, directory: str, model: str | None, at: str
) -> tuple[Any, ...]:
    """The row of a decision, as ``ledger.sql`` has it."""
    i, d = order.identity, order.decision
    stamp = (signed(i.device), signed(i.inode), i.size, i.mtime_ns) if i else (None,) * 4
    told = (d.outcome.value, d.label, d.confidence, text(d.reason), text(d.detail), json.dumps(d.top), model)
    names = (os.fsencode(order.target_name), os.fsencode(source))
    taken = (os.fsencode(directory), order.restores, order.verdict, at)
    return (number, batch, *names, order.digest, *stamp, *told, *taken)


def unended(row: Sequence[Any]) -> Unended:
    """What a row says of a decision without an ending."""
    number, outcome, name, source, directory, digest, reason, detail, at, verdict, *stamp = row
    identity = None if stamp[0] is None else _identity(stamp)
    paths = (os.fsdecode(name), os.fsdecode(source), os.fsdecode(directory))
    return Unended(
        *(number, Outcome(outcome), *paths, identity, digest, reason, detail),
        decided_at=datetime.fromisoformat(at),
        verdict=verdict,
    )


def shadow(row: Sequence[Any]) -> tuple[str, tuple[int, int, int]]:
    """What a row says of a file that stayed: its path, and (inode, size, mtime_ns)."""
    source, inode, size, mtime_ns = row
    return os.fsdecode(source), (inode % (1 << 64), size, mtime_ns)


def ending(ended: Ending, at: str) -> tuple[Any, ...]:
    """The row of an ending."""
    destination = None if ended.destination is None else os.fsencode(ended.destination)
    return (ended.decision, ended.state, destination, text(ended.note), at)


def text(told: str | None) -> str | None:
    """SQLite takes no surrogate escapes: names that are no UTF-8 appear in words as escapes."""
    return None if told is None else told.encode("utf-8", "backslashreplace").decode()


def _identity(row: Sequence[int]) -> Identity:
    device, inode, size, mtime_ns = row
    return Identity(device % (1 << 64), inode % (1 << 64), size, mtime_ns)
