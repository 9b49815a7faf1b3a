"""A model of everything that moves files, under faults: whatever fails or dies, nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from watcher.core import no_overwrite
from watcher.core.errors import Fatal
from watcher.core.records import Decision, Filed, Identity, MoveOrder, Outcome, Timing
from watcher.filing import put_back, put_back_requests
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.mover import Mover
from watcher.filing.recovery import recover_all
from watcher.filing.takeover import Takeover
from watcher.inbox import claims
from watcher.inbox.scan import Inbox
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger

CODES = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.ESTALE, errno.EROFS]
RENAMES = [errno.EEXIST, errno.EXDEV]
"""Errors of a rename alone: somebody took the name just now, or the directories are behind two mounts."""
FILED = [Outcome.SORTED, Outcome.REVIEW, Outcome.QUARANTINE]
CONNECT = sqlite3.connect
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
NAMES = ["a.jpeg", "b.jpeg", "s/a.jpeg", "s/t/b.jpeg"]


class Crash(BaseException):
    """The process is gone: nothing after this point was done."""


class Faults:
    """Counts the primitive steps, and at a planned one fails or dies, before it is done or right after."""

    def __init__(self) -> None:
        self.at, self.after, self.error = -1, False, None
        self.step, self.mounts, self.dead = 0, False, False

    def plan(self, at: int, after: bool, error: int | None, mounts: bool = False) -> None:
        """With ``mounts`` no rename leads from one directory to another, as if they were behind two mounts."""
        self.at, self.after, self.error, self.step, self.mounts = at, after, error, 0, mounts

    def clear(self) -> None:
        self.at, self.mounts, self.dead = -1, False, False

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            here, self.step = self.step == self.at, self.step + 1
            if self.dead:
                raise Crash
            if self.error in RENAMES and here and act.__name__ != "rename_noreplace":
                here, self.at = False, self.at + 1  # the next rename, then
            if self.mounts and act.__name__ == "rename_noreplace" and words[0].parent != words[1].parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            if here and (self.error is not None or not self.after):
                self._strike(words)
            result = act(*words, **more)
            if here and self.after and self.error is None:
                self._strike(words)
            return result

        return call

    def connect(self, *words: Any, **more: Any) -> Any:
        """A database whose commits are steps, too, if it is one that is written to."""
        db = CONNECT(*words, **more)
        return Database(db, self) if "isolation_level" in more else db

    def _strike(self, words: tuple[Any, ...]) -> None:
        if self.error is None:
            self.dead = True
            raise Crash
        raise OSError(self.error, os.strerror(self.error), str(words[0]) if words else None)


class Database:
    """A ledger's connection whose disk fills up or dies with it."""

    def __init__(self, db: Any, faults: Faults) -> None:
        self._db, self._commit = db, faults.around(db.commit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, *values: Any) -> Any:
        try:
            return self._commit() if sql == "commit" else self._db.execute(sql, *values)
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error


def not_known(source: Path, target: Path) -> bool:
    """A file system without renameat2: that its two ends lie on two file systems the kernel tells first."""
    if os.stat(source.parent).st_dev != os.stat(target.parent).st_dev:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    os.lstat(source)
    return False


def no_links(*_: Any, **__: Any) -> None:
    """A file system that knows no hard links."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class Conservation(RuleBasedStateMachine):
    """Files are dropped, decided upon and filed, partly to another file system, while things fail."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="mednet-model-"))
        shm = Path("/dev/shm")
        across = shm.is_dir() and os.stat(shm).st_dev != os.stat(self.root).st_dev
        self.other = Path(tempfile.mkdtemp(prefix="mednet-model-", dir=shm if across else self.root))
        self.inbox = self.root / "inbox"
        self.places = Destinations(
            self.root / "sorted", self.other / "review", self.root / "quarantine", self.root / "rejected"
        )
        for directory in (self.inbox, self.places.sorted / "A", self.places.review, self.places.quarantine):
            directory.mkdir(parents=True)
        self.filed = (self.places.sorted, self.places.review, self.places.quarantine)
        self.dropped: Counter[bytes] = Counter()
        self.number = 0
        self.faults = Faults()
        self.patch = pytest.MonkeyPatch()
        for name in ("rename_noreplace", "sync_directory", "_copy_bytes"):
            self.patch.setattr(no_overwrite, name, self.faults.around(getattr(no_overwrite, name)))
        for name in ("unlink", "fsync"):
            self.patch.setattr(os, name, self.faults.around(getattr(os, name)))
        self.patch.setattr(sqlite3, "connect", self.faults.connect)

    @initialize(way=st.sampled_from(["renameat2", "links", "neither"]))
    def start(self, way: str) -> None:
        """On file systems that know one way to move a file without overwriting, or another."""
        if way != "renameat2":
            self.patch.setattr(no_overwrite, "rename_in_one_call", not_known)
            self.patch.setattr(os, "link", no_links if way == "neither" else self.faults.around(os.link))
            self.patch.setattr(os, "rename", self.faults.around(os.rename))
        self._restart()

    def teardown(self) -> None:
        try:
            self._restart()
            Takeover(self.ledger, self.inbox, self.other / "state")()
            assert claims.count_files(self.inbox) == 0
            self.nothing_is_lost_or_doubled()
        finally:
            self.ledger.close()
            self.patch.undo()
            shutil.rmtree(self.root)
            shutil.rmtree(self.other, ignore_errors=True)

    @rule(name=st.sampled_from(NAMES), same=st.booleans())
    def drop(self, name: str, same: bool) -> None:
        """A producer publishes a file; sometimes with the bytes of the one before, never with its time, too.

        A file equal in name, bytes and time to one that is being copied to its place can not be told from the copy.
        """
        if not (self.inbox / name).exists():
            (self.inbox / name).parent.mkdir(parents=True, exist_ok=True)
            self.number += not same or not self.number
            data = b"%d" % self.number
            (self.inbox / name).write_bytes(data)
            os.utime(self.inbox / name, ns=(10**18, 10**18 + self.dropped.total()))
            self.dropped[data] += 1

    @rule(
        outcomes=st.lists(st.sampled_from([Outcome.REVIEW, *FILED]), min_size=4, max_size=4),
        at=st.one_of(st.integers(0, 9), st.integers(-1, 30)),
        after=st.booleans(),
        error=st.sampled_from([None, *CODES, *RENAMES]),
        mounts=st.booleans(),
    )
    def file(self, outcomes: list[Outcome], at: int, after: bool, error: int | None, mounts: bool) -> None:
        """The whole inbox is decided upon and filed, and at some step something fails, or everything dies."""
        Takeover(self.ledger, self.inbox, self.other / "state")()  # as after each scan
        names = sorted(Inbox(self.inbox, recursive=True).scan())
        orders = [self._order(name, outcome) for name, outcome in zip(names, outcomes, strict=False)]
        if not orders:
            return
        self.faults.plan(at, after, error, mounts)
        try:
            results = self.executor.carry_out(orders)
        except (Crash, Fatal):
            self._restart()
        else:
            self.faults.clear()
            for _, result in results:
                there = (self.inbox / result.order.name).exists()
                assert isinstance(result, Filed) != there, "filed files leave the inbox, returned ones stay"

    @precondition(lambda self: any(path.is_file() for place in self.filed for path in place.rglob("*")))
    @rule(
        count=st.integers(1, 3),
        at=st.one_of(st.integers(0, 9), st.integers(-1, 30)),
        after=st.booleans(),
        error=st.sampled_from([None, None, *CODES, *RENAMES]),
        mounts=st.booleans(),
        retry=st.booleans(),
    )
    def put_back(self, count: int, at: int, after: bool, error: int | None, mounts: bool, retry: bool) -> None:
        """A person puts a few files back. If the command dies, the daemon goes on."""
        path = self.other / "state" / "ledger.sqlite3"
        try:
            with LedgerReader(path) as ledger_reader, put_back.open_executor(path, self.inbox) as executor:
                name = put_back_requests.name_in_inbox(self.inbox, recursive=True)
                found = (
                    put_back_requests.quarantined(ledger_reader, name_of=name)
                    if retry
                    else put_back_requests.filed(ledger_reader, since=LONG_AGO, name_of=name)
                )
                chosen = list(itertools.islice(found, count))
                self.faults.plan(at, after, error, mounts)
                for result in put_back.put_back(chosen, "retry" if retry else "undo", self.inbox, executor):
                    there = os.path.lexists(result.request.path)
                    assert (result.state == "restored") != there, "files put back leave, others stay"
        except (Crash, Fatal):
            pass
        self.faults.clear()

    @rule(at=st.integers(-1, 9), after=st.booleans(), error=st.sampled_from([None, None, *CODES]))
    def take_over(self, at: int, after: bool, error: int | None) -> None:
        """The daemon takes over what a dead command left, and dies at it perhaps."""
        self.faults.plan(at, after, error)
        try:
            Takeover(self.ledger, self.inbox, self.other / "state")()
        except (Crash, OSError):
            self._restart()
        self.faults.clear()

    @rule(at=st.integers(0, 6))
    def die_while_recovering(self, at: int) -> None:
        """The next start dies too."""
        self.faults.plan(at, False, None)
        try:
            self._restart(clear=False)
        except Crash:
            self._restart()

    @rule(name=st.sampled_from(["s/t", "s"]))
    def tidy_up(self, name: str) -> None:
        """A producer removes a directory that is empty."""
        with contextlib.suppress(OSError):
            (self.inbox / name).rmdir()

    def _order(self, name: str, outcome: Outcome) -> MoveOrder:
        path = self.inbox / name
        found, data = path.lstat(), path.read_bytes()
        identity = Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        return (
            MoveOrder(name, identity, no_overwrite.digest(path), Decision(outcome, "A", 0.9), Timing(0.0))
            if data
            else None
        )

    def _restart(self, clear: bool = True) -> None:
        if clear:
            self.faults.clear()
        if hasattr(self, "ledger"):
            self.ledger.close()
        self.ledger = Ledger(self.other / "state" / "ledger.sqlite3")
        self.executor = DecisionExecutor(
            self.ledger, Mover(self.inbox), self.places, "m" * 64, keep_subdirectories=True
        )
        endings = recover_all(self.ledger, self.other / "state")
        assert all(ending.state != "missing" for ending in endings), [ending.note for ending in endings]
        self.faults.clear()

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        found: Counter[bytes] = Counter()
        waiting = {path.lstat().st_ino for path in self.inbox.iterdir() if path.is_file()}
        for place in (self.inbox, *self.filed):
            for path in place.rglob("*"):
                if claims.is_claimed(path.parent) and path.lstat().st_ino in waiting:
                    continue  # put into the inbox by link, and not unlinked yet: one file
                if path.is_file() and not path.name.endswith(".reason.json") and "mednet-partial" not in path.name:
                    found[path.read_bytes()] += 1
        assert not self.dropped - found
        if hasattr(self, "ledger"):
            assert self.ledger.unended() == [] or self.ledger.lag
            missing = self.ledger._db.execute("select * from ending where state = 'missing'").fetchall()
            assert missing == []
        if not hasattr(self, "ledger") or not self.ledger.unended_owners():  # else a dead command has left two of one
            assert found == self.dropped


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=300, stateful_step_count=15)
