"""Read the ledger, for commands and the review page.

Rows are read a page at a time, because whoever reads an SQLite database holds up those who write into it.
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
"""The number of rows that are read at once."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A decision, its ending, the owner that must end it, and the decision that took it back."""

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
        """The classes with their probabilities, most probable first."""
        return [(name, probability) for name, probability in json.loads(self.top_json)]

    @property
    def in_place(self) -> bool:
        """True if its file should lie at the destination. False after it was put back: it may have been moved on."""
        return self.state == "filed" and self.outcome != "restored" and self.restored_by is None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A person's judgement of the file at ``path``. If ``label`` is None, the file is of no class.

    ``decision`` is the decision that was judged. ``filed_by`` is the decision that carried the verdict out.
    ``withdrawn_by`` is the decision by which ``undo`` took the verdict back.
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
    """The ledger, opened only for reading."""

    def __init__(self, path: Path) -> None:
        """Open the ledger.

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
        with self._fatal_errors():
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def last_id(self) -> int:
        """Return the id of the newest decision, 0 if there is none."""
        return int(self._read("select coalesce(max(id), 0) from decision")[0][0])

    def entries(
        self, where: str = "true", values: tuple[Any, ...] = (), *, after: int = 0, upto: int | None = None
    ) -> Iterator[LedgerEntry]:
        """Yield the decisions that meet a condition, oldest first, with an id above ``after``.

        They end with the id ``upto``, by default with the newest decision at the time of the call.
        """
        last_id, count = self.last_id() if upto is None else upto, PAGE
        query = f"{_ENTRIES} where d.id > ? and d.id <= ? and ({where}) order by d.id limit ?"
        while count == PAGE:
            rows = self._read(query, after, last_id, *values, PAGE)
            yield from (_entry(row) for row in rows)
            count = len(rows)
            after = rows[-1][0] if rows else last_id

    def latest(self, where: str, before: int, limit: int) -> list[LedgerEntry]:
        """Return the last decisions that meet a condition and have an id below ``before``, newest first."""
        query = f"{_ENTRIES} where d.id < ? and ({where}) order by d.id desc limit ?"
        return [_entry(row) for row in self._read(query, before, limit)]

    def unended(self) -> list[LedgerEntry]:
        """Return the decisions without an ending: of owners at work, and of owners that died at it."""
        return list(self.entries("d.id in (select decision from unended)"))

    def verdicts(self, where: str = "true", *values: Any) -> list[Verdict]:
        """Return the verdicts that meet a condition, oldest first."""
        query = f"select * from ({VERDICTS}) where {where} order by id"
        return [verdict_of_row(row) for row in self._read(query, *values)]

    def verdicts_on(self, entry: LedgerEntry) -> list[Verdict]:
        """Return the verdicts on the file of a decision, and the verdict that the decision carries out."""
        return self.verdicts("decision = ? or id = ?", entry.id, entry.verdict)

    def standing_verdict(self, entry: LedgerEntry) -> Verdict | None:
        """Return the last verdict that keeps the file of a decision in place, or that is not carried out yet."""
        standing = [
            verdict
            for verdict in self.verdicts_on(entry)
            if verdict.state in ("open", "confirmed") or (verdict.state == "filed" and verdict.filed_by == entry.id)
        ]
        return standing[-1] if standing else None

    def in_place_with_digest(self, digest: str) -> int | None:
        """Return the id of a decision whose file has this digest and should lie where it was filed."""
        rows = self._read(f"{_ENTRIES} where digest = ? and {IN_PLACE} limit 1", digest)
        return rows[0][0] if rows else None

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._fatal_errors():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _fatal_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise unreadable(self._path, error) from error


def exists(path: Path) -> bool:
    """Return True if there is a ledger.

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


IN_PLACE = "state = 'filed' and outcome != 'restored' and restored_by is null"
"""The SQL condition for :attr:`LedgerEntry.in_place`."""

_ENTRIES = """
select d.id, d.batch, d.name, d.source, d.digest, d.inode, d.size, d.mtime_ns, d.outcome, d.class, d.confidence,
       d.reason, d.detail, d.top, d.model, d.directory, d.restores, d.decided_at,
       e.state, e.destination, e.note, e.ended_at,
       (select owner from unended where decision = d.id) as owner,
       (select b.id from decision b join ending on ending.decision = b.id
        where b.restores = d.id and ending.state = 'filed' limit 1) as restored_by,
       d.verdict
from decision d left join ending e on e.decision = d.id
"""

VERDICTS = """
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
"""The query for all columns of :class:`Verdict`."""


def verdict_of_row(row: Sequence[Any]) -> Verdict:
    """Return the verdict of a row of :data:`VERDICTS`."""
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
    """Return the error for a ledger file that can not be read."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_ROLLBACK:
        return Fatal(
            f"the ledger {path} was being written when its writer died",
            "The next start of the daemon, or the next retry or undo, puts that right.",
            Exit.DIRECTORY,
        )
    return Fatal(
        f"the ledger {path} can not be read: {error}", "Move a damaged ledger aside and keep it.", Exit.DIRECTORY
    )
