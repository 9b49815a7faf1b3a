"""What the daemon asks its open ledger: unended decisions, counts, noted directories."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from watcher.core.errors import Exit, Fatal, Retry
from watcher.ledger import rows as ledger_rows
from watcher.ledger.rows import Unended


class LedgerQueries:
    """The questions to an open ledger. :class:`watcher.ledger.writer.Ledger` opens it and writes.

    Each raises :class:`Retry` while others lock the file, and :class:`Fatal` when it can not be read.
    """

    owner: str
    _db: sqlite3.Connection
    _path: Path

    def awaited(self, limit: int) -> list[int]:
        """The oldest verdicts that nobody has carried out, nor does just now."""
        return [row[0] for row in self._read(f"{ledger_rows.AWAITED} order by verdict limit ?", limit)]

    def place(self, directory: Path) -> tuple[int, int] | None:
        """Device and inode that a directory had when files were last moved from or to it."""
        rows = self._read("select device, inode from place where path = ?", os.fsencode(directory))
        return (rows[0][0] % (1 << 64), rows[0][1] % (1 << 64)) if rows else None

    def noted(self) -> list[Path]:
        """Every directory that files were ever moved from or to."""
        return [Path(os.fsdecode(path)) for (path,) in self._read("select path from place order by path")]

    def shadows(self, digest: str | None, title: str) -> list[tuple[str, tuple[int, int, int]]]:
        """What was only recorded of files of these bytes: the path of each, and (inode, size, mtime_ns) then.

        Without a digest, of those that could not be read and were to be called so.
        """
        where, value = ("digest = ?", digest) if digest else ("digest is null and name = ?", os.fsencode(title))
        return [ledger_rows.shadow(row) for row in self._read(f"{ledger_rows.SHADOWED} and {where}", value)]

    def all_shadows(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """The same of all there ever were: at a start."""
        return map(ledger_rows.shadow, self._read(ledger_rows.SHADOWED))

    def owners(self) -> list[str]:
        """Who has decisions without an ending: those at work, and those that died at it."""
        return [row[0] for row in self._read("select distinct owner from unended order by 1")]

    def unended(self, owner: str | None = None) -> list[Unended]:
        """Decisions of an owner (None: of this ledger's) without an ending.

        They are what :mod:`watcher.filing.recovery` looks into.
        """
        return self._unended("owner = ? order by id", owner or self.owner)

    def holds(self, path: str) -> bool:
        """Whether a file filed under this very path should be there still. Reads the whole ledger: for recovery."""
        raw = os.fsencode(path)
        [(put, taken)] = self._read(ledger_rows.PUT_AND_TAKEN, raw, raw)
        return bool(put > taken)

    def was_bound_for(self, path: Path) -> bool:
        """Whether a file of this very name was ever to go to this directory. By index."""
        query = "select 1 from decision where name = ? and directory = ? limit 1"
        return bool(self._read(query, os.fsencode(path.name), os.fsencode(path.parent)))

    def leaving(self, path: str) -> list[Unended]:
        """Decisions without an ending, of anybody, to take what was at this very path."""
        return self._unended("source = ? order by id", os.fsencode(path))

    def classified(self, model: str, limit: int) -> list[tuple[float, str | None, float, str, str | None]]:
        """What a model decided among the last decisions, oldest first.

        Each is (seconds since 1970, class, confidence, outcome, reason).
        """
        rows = self._read(ledger_rows.CLASSIFIED, limit, model)
        return [(datetime.fromisoformat(at).timestamp(), *told) for at, *told in reversed(rows)]

    def counts(self) -> dict[str, int]:
        """How many files this owner has filed so far, by outcome.

        Raises:
            Fatal: it can not be read.
        """
        try:
            return dict(self._read("select outcome, files from tally where owner = ?", self.owner))
        except Retry as error:
            raise unusable(self._path, error) from error

    def _unended(self, where: str, *values: Any) -> list[Unended]:
        return [ledger_rows.unended(row) for row in self._read(f"{ledger_rows.UNENDED} where {where}", *values)]

    def last_filed(self) -> datetime | None:
        """When a file was last sorted or handed to a person, by any owner; None: never yet."""
        rows = self._read(
            "select ended_at from ending join decision on decision.id = ending.decision"
            " where state = 'filed' and outcome != 'restored' order by ending.decision desc limit 1"
        )
        return datetime.fromisoformat(rows[0][0]) if rows else None

    def _read(self, query: str, *values: Any) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Retry(f"the ledger can not be read: {error}") from error
            raise unusable(self._path, error) from error


def unusable(path: Path, error: Exception) -> Fatal:
    """Describe a ledger file that can not be used."""
    return Fatal(
        f"the ledger {path} can not be used: {error}",
        "Check the directory's owner and free space; move a damaged ledger aside and keep it.",
        Exit.DIRECTORY,
    )
