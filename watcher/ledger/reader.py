"""What the ledger tells those who only read: ``status``, ``audit``, ``explain``, and what is to be put back.

Read in pages: whoever reads an SQLite database holds up those who write into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from watcher.core.errors import Exit, Fatal

PAGE = 1000
"""Rows read at once."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One decision, how it ended, who is to end it, and which decision took it back."""

    id: int
    batch: int
    name: str
    source: str
    digest: str | None
    inode: int | None
    size: int | None
    mtime_ns: int | None
    outcome: str
    label: str | None
    confidence: float
    reason: str | None
    detail: str | None
    top_json: str
    model: str | None
    directory: str
    restores: int | None
    decided_at: str
    state: str | None
    destination: str | None
    note: str | None
    ended_at: str | None
    owner: str | None
    restored_by: int | None
    verdict: int | None

    @property
    def top(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, most probable first."""
        return [(name, probability) for name, probability in json.loads(self.top_json)]

    @property
    def lies(self) -> bool:
        """Whether its file should lie at the destination. What was put back may have been taken on."""
        return self.state == "filed" and self.outcome != "restored" and self.restored_by is None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a person said of the file at ``path``; ``label`` None: it is of no class.

    ``decision`` is the one judged, ``filed_by`` the one that carried the verdict out, ``withdrawn_by`` the ``undo``
    of what it filed or confirmed.
    """

    id: int
    decision: int | None
    path: str
    name: str
    digest: str
    label: str | None
    uid: int
    user: str
    note: str | None
    given_at: str
    state: Literal["open", "filed", "confirmed", "left", "withdrawn"]
    why: str | None
    filed_by: int | None
    withdrawn_by: int | None = None


class LedgerReader:
    """The ledger, opened to be read only."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            Fatal: exit code 5; there is no ledger, or it can not be read.
        """
        self._path = path
        if not exists(path):
            raise Fatal(
                f"there is no ledger {path}",
                "Is this the daemon's config file? The ledger is made when the daemon first starts.",
                Exit.DIRECTORY,
            )
        with self._told():
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def last(self) -> int:
        """The newest decision's id, 0 if there is none."""
        return int(self._read("select coalesce(max(id), 0) from decision")[0][0])

    def entries(
        self, where: str = "true", values: tuple[Any, ...] = (), *, after: int = 0, upto: int | None = None
    ) -> Iterator[LedgerEntry]:
        """The decisions of a condition, oldest first, those up to the newest at the time of the call."""
        last, page = self.last() if upto is None else upto, PAGE
        while page == PAGE:
            rows = self._read(
                f"{_ENTRY} where d.id > ? and d.id <= ? and ({where}) {_ORDER}", after, last, *values, PAGE
            )
            yield from (_entry(row) for row in rows)
            page = len(rows)
            after = rows[-1][0] if rows else last

    def latest(self, where: str, before: int, limit: int) -> list[LedgerEntry]:
        """The last decisions of a condition, those before a number, newest first."""
        query = f"{_ENTRY} where d.id < ? and ({where}) order by d.id desc limit ?"
        return [_entry(row) for row in self._read(query, before, limit)]

    def unended(self) -> list[LedgerEntry]:
        """Decisions without an ending: of those at work, and of those who died at it."""
        return list(self.entries("d.id in (select decision from unended)"))

    def verdicts(self, where: str = "true", *values: Any) -> list[Verdict]:
        """What people said, oldest first."""
        return [verdict(row) for row in self._read(f"select * from ({VERDICT}) where {where} order by id", *values)]

    def about(self, entry: LedgerEntry) -> list[Verdict]:
        """What people said of the file that a decision put where it lies, or lay."""
        return self.verdicts("decision = ? or id = ?", entry.id, entry.verdict)

    def judgement(self, entry: LedgerEntry) -> Verdict | None:
        """The last word of a person by which a file lies where a decision put it, or that is yet to be carried out."""
        holding = [
            said
            for said in self.about(entry)
            if said.state in ("open", "confirmed") or (said.state == "filed" and said.filed_by == entry.id)
        ]
        return holding[-1] if holding else None

    def holds_digest(self, digest: str) -> int | None:
        """A decision whose file has these bytes and should lie where it was filed."""
        rows = self._read(f"{_ENTRY} where digest = ? and {LIES} limit 1", digest)
        return rows[0][0] if rows else None

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._told():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise unreadable(self._path, error) from error


def exists(path: Path) -> bool:
    """Whether there is a ledger.

    Raises:
        Fatal: exit code 5; its directory can not be entered.
    """
    try:
        path.lstat()
    except PermissionError as error:
        raise Fatal(
            f"the state directory {path.parent} can not be entered: {error.strerror}",
            "Run this as root, or as the daemon's user.",
            Exit.DIRECTORY,
        ) from error
    except OSError:
        return False
    return True


LIES = "state = 'filed' and outcome != 'restored' and restored_by is null"
"""The condition of :attr:`Entry.lies`."""

_ENTRY = """
select d.id, d.batch, d.name, d.source, d.digest, d.inode, d.size, d.mtime_ns, d.outcome, d.class, d.confidence,
       d.reason, d.detail, d.top, d.model, d.directory, d.restores, d.decided_at,
       e.state, e.destination, e.note, e.ended_at,
       (select owner from unended where decision = d.id) as owner,
       (select b.id from decision b join ending on ending.decision = b.id
        where b.restores = d.id and ending.state = 'filed' limit 1) as restored_by,
       d.verdict
from decision d left join ending e on e.decision = d.id
"""

VERDICT = """
select v.id, v.decision, v.path, v.name, v.digest, v.class, v.uid, v.user, v.note, v.given_at,
       case when v.withdrawn_by is null then v.state else 'withdrawn' end as state, v.why, v.filed_by, v.withdrawn_by
from (
    select f.*, (select b.id from decision b join ending e on e.decision = b.id
                 where b.restores = case f.state when 'filed' then f.filed_by when 'confirmed' then f.decision end
                   and b.outcome = 'restored' and e.state = 'filed' limit 1) as withdrawn_by
    from (
        select g.*, x.note as why,
               coalesce(x.state, case when o.verdict is null then 'filed' else 'open' end) as state,
               (select d.id from decision d join ending e on e.decision = d.id
                where d.verdict = g.id and e.state = 'filed' limit 1) as filed_by
        from verdict g left join open_verdict o on o.verdict = g.id left join verdict_ending x on x.verdict = g.id
    ) f
) v
"""
"""All columns of :class:`Verdict`."""

_ORDER = "order by d.id limit ?"


def verdict(row: Sequence[Any]) -> Verdict:
    """One row of :data:`VERDICT`."""
    number, decision, path, name, *rest = row
    return Verdict(number, decision, os.fsdecode(path), os.fsdecode(name), *rest)


def _entry(row: tuple[Any, ...]) -> LedgerEntry:
    values = list(row)
    for column in (2, 3, 15, 19):  # name, source, directory, destination
        values[column] = None if row[column] is None else os.fsdecode(row[column])
    if row[5] is not None:
        values[5] = row[5] % (1 << 64)
    return LedgerEntry(*values)


def unreadable(path: Path, error: sqlite3.Error) -> Fatal:
    """Describe a ledger file that can not be read."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_ROLLBACK:
        return Fatal(
            f"the ledger {path} was being written when its writer died",
            "The next start of the daemon, or the next retry or undo, puts that right.",
            Exit.DIRECTORY,
        )
    return Fatal(
        f"the ledger {path} can not be read: {error}", "Move a damaged ledger aside and keep it.", Exit.DIRECTORY
    )
