"""Answer the daemon's questions to its open ledger: unended decisions, counts, recorded directories."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from watcher.core.errors import Exit, Fatal, Retry
from watcher.ledger import rows
from watcher.ledger.rows import Unended


class LedgerQueries:
    """Queries of an open ledger. The subclass :class:`watcher.ledger.writer.Ledger` opens it and writes.

    Each query raises :class:`Retry` while others lock the file, and :class:`Fatal` if the file can not be read.
    """

    owner: str
    _db: sqlite3.Connection
    _path: Path

    def waiting_verdicts(self, limit: int) -> list[int]:
        """Return the ids of the oldest verdicts that nobody has carried out or is carrying out now."""
        return [row[0] for row in self._read(f"{rows.WAITING_VERDICTS} order by verdict limit ?", limit)]

    def recorded_directory(self, directory: Path) -> tuple[int, int] | None:
        """Return the device and inode that a directory had when files were last moved from or to it."""
        found = self._read("select device, inode from place where path = ?", os.fsencode(directory))
        return (found[0][0] % (1 << 64), found[0][1] % (1 << 64)) if found else None

    def recorded_directories(self) -> list[Path]:
        """Return all directories that files were ever moved from or to."""
        return [Path(os.fsdecode(path)) for (path,) in self._read("select path from place order by path")]

    def shadowed_files(self, digest: str | None, title: str) -> list[tuple[str, tuple[int, int, int]]]:
        """Return the files with this digest on which shadow mode decided: path, and (inode, size, mtime_ns) then.

        Without a digest, return those that could not be read and were to be called ``title``.
        """
        where, value = ("digest = ?", digest) if digest else ("digest is null and name = ?", os.fsencode(title))
        return [rows.shadowed_file(row) for row in self._read(f"{rows.SHADOWED} and {where}", value)]

    def all_shadowed_files(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Return all files on which shadow mode ever decided: path, and (inode, size, mtime_ns) then."""
        return map(rows.shadowed_file, self._read(rows.SHADOWED))

    def unended_owners(self) -> list[str]:
        """Return the owners of decisions without an ending: those that are at work, and those that died at it."""
        return [row[0] for row in self._read("select distinct owner from unended order by 1")]

    def unended(self, owner: str | None = None) -> list[Unended]:
        """Return the decisions without an ending of an owner, by default this ledger's, oldest first.

        :mod:`watcher.filing.recovery` ends those of dead owners.
        """
        return self._unended("owner = ? order by id", owner or self.owner)

    def should_hold(self, path: str) -> bool:
        """Return True if a file was filed under this path and not moved from it since.

        Reads the whole ledger, so only recovery calls it.
        """
        raw = os.fsencode(path)
        [(last_in, last_out)] = self._read(rows.LAST_IN_AND_OUT, raw, raw)
        return bool(last_in > last_out)

    def was_bound_for(self, path: Path) -> bool:
        """Return True if a file of this name was ever to go to this directory. Uses an index."""
        query = "select 1 from decision where name = ? and directory = ? limit 1"
        return bool(self._read(query, os.fsencode(path.name), os.fsencode(path.parent)))

    def unended_from(self, path: str) -> list[Unended]:
        """Return the decisions without an ending, of any owner, to move the file at this path."""
        return self._unended("source = ? order by id", os.fsencode(path))

    def classified(self, model: str, limit: int) -> list[tuple[float, str | None, float, str, str | None]]:
        """Return the decisions of a model among the last ``limit`` decisions, oldest first.

        Each is (seconds since 1970, class, confidence, outcome, reason).
        """
        found = self._read(rows.CLASSIFIED, limit, model)
        return [(datetime.fromisoformat(decided_at).timestamp(), *rest) for decided_at, *rest in reversed(found)]

    def counts(self) -> dict[str, int]:
        """Return how many files this owner has filed so far, by outcome.

        Raises:
            Fatal: the ledger can not be read.
        """
        try:
            return dict(self._read("select outcome, files from tally where owner = ?", self.owner))
        except Retry as error:
            raise unusable(self._path, error) from error

    def _unended(self, where: str, *values: Any) -> list[Unended]:
        return [rows.unended(row) for row in self._read(f"{rows.UNENDED} where {where}", *values)]

    def last_filed(self) -> datetime | None:
        """Return the time at which any owner last filed a file, without those put back. None if none was filed."""
        found = self._read(
            "select ended_at from ending join decision on decision.id = ending.decision"
            " where state = 'filed' and outcome != 'restored' order by ending.decision desc limit 1"
        )
        return datetime.fromisoformat(found[0][0]) if found else None

    def _read(self, query: str, *values: Any) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Retry(f"the ledger can not be read: {error}") from error
            raise unusable(self._path, error) from error


def unusable(path: Path, error: Exception) -> Fatal:
    """Return the error for a ledger file that can not be used."""
    return Fatal(
        f"the ledger {path} can not be used: {error}",
        "Check the directory's owner and free space; move a damaged ledger aside and keep it.",
        Exit.DIRECTORY,
    )
