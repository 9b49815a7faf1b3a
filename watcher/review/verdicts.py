"""Record what people say of images, and move the files accordingly.

A verdict is a row in the ledger. It is recorded in one transaction and stays open until it is carried out by the
process that moves files: the running daemon, or the command itself if no daemon runs. Both carry it out as a decision
(see :mod:`watcher.filing.decision_executor`), and the transaction that records where the file lies now also closes
the verdict. So a verdict is carried out once, by the next start if a process dies on the way.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watcher.core import failpoints, no_overwrite
from watcher.core.errors import Exit, Fatal, Retry, Vanished
from watcher.core.records import Decision, Filed, Identity, MoveOrder, Outcome, Timing
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.ledger import reader
from watcher.ledger.reader import LedgerEntry, LedgerReader, Verdict
from watcher.ledger.rows import storable_text
from watcher.ledger.writer import Ledger
from watcher.review.judged_files import JudgedFile

CHUNK = 64
"""Number of verdicts that are carried out in one call, so that sorting goes on between two calls."""


@dataclass(frozen=True)
class Reviewer:
    """A person who judges images."""

    uid: int
    user: str


@dataclass(frozen=True)
class VerdictResult:
    """The result of carrying out a verdict. In the state ``later`` the verdict is still open.

    ``id`` is the decision that carries the verdict out.
    """

    verdict: Verdict
    state: Literal["filed", "confirmed", "left", "later"]
    id: int | None = None
    destination: str | None = None
    why: str | None = None


def current_reviewer(environ: Mapping[str, str]) -> Reviewer:
    """Return the user who runs this process; behind sudo, the user who called sudo."""
    sudo_uid = environ.get("SUDO_UID", "")
    uid = int(sudo_uid) if sudo_uid.isdecimal() else os.getuid()
    try:
        return Reviewer(uid, pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):  # a container knows few users
        return Reviewer(uid, str(uid))


def record(ledger: Ledger, judged: JudgedFile, label: str | None, reviewer: Reviewer, note: str | None) -> int:
    """Record the verdict that a file is of the class ``label``, or of no class (None). Return the verdict's number.

    An open verdict on the same file is closed: the new one replaces it.

    Raises:
        Retry: the verdict is not recorded, because the ledger can not be written or the file is being moved just now.
    """
    now, raw_path = ledger.now().isoformat(timespec="milliseconds"), os.fsencode(judged.path)
    with ledger.transaction():
        for open_verdict, *_ in ledger.execute(_OPEN_ON_PATH, raw_path):
            _close(ledger, open_verdict, "left", "another verdict came after it")
        if ledger.execute("select 1 from unended join decision on id = decision where source = ?", raw_path):
            raise Retry(f"{judged.path} is being moved just now: try again")
        decision = judged.entry.id if judged.entry else None
        name = os.fsencode(judged.name)
        by = (reviewer.uid, reviewer.user)
        ledger.execute(_INSERT, decision, raw_path, name, judged.digest, label, *by, storable_text(note), now)
        [(number,)] = ledger.execute("select last_insert_rowid()")
        ledger.execute("insert into open_verdict values (?)", number)
    failpoints.reach("judged")
    return int(number)


def carry_out_open(executor: DecisionExecutor, limit: int = CHUNK) -> list[VerdictResult]:
    """Carry out open verdicts, the oldest first, except those that another process is carrying out.

    At most ``limit`` are carried out. Call again until the list is empty.

    Raises:
        Fatal: files were moved, and the ledger could not record it.
    """
    ledger = executor.ledger
    try:
        verdicts = _open_verdicts(ledger, limit)
    except Retry:
        return []  # the ledger can not be read just now: the verdicts stay open until the next scan
    steps: list[tuple[Verdict, MoveOrder | VerdictResult]] = []
    for verdict in verdicts:
        steps.append((verdict, _order(verdict, executor.destinations)))
        executor.carried += 1  # the file was read to its end, maybe from a slow network share
    try:
        with ledger.transaction():
            for verdict, step in steps:
                if isinstance(step, VerdictResult) and ledger.execute(f"{_OPEN} where verdict = ?", verdict.id):
                    _close(ledger, verdict.id, step.state, step.why)
    except Retry as error:
        return [VerdictResult(verdict, "later", why=str(error)) for verdict, _ in steps]
    orders = [step for _, step in steps if isinstance(step, MoveOrder)]
    moves = iter(executor.carry_out(orders) if orders else ())
    results = []
    for verdict, step in steps:
        if isinstance(step, VerdictResult):
            results.append(step)
            continue
        decision, move = next(moves)
        if isinstance(move, Filed):
            results.append(VerdictResult(verdict, "filed", decision, move.destination))
        else:
            results.append(VerdictResult(verdict, "later", decision or None, why=move.why))
    return results


def _open_verdicts(ledger: Ledger, limit: int) -> list[Verdict]:
    numbers = ledger.waiting_verdicts(limit)
    rows = [row for number in numbers for row in ledger.execute(f"{reader.VERDICTS} where v.id = ?", number)]
    return [reader.verdict_of_row(row) for row in rows]


def _order(verdict: Verdict, places: Destinations) -> MoveOrder | VerdictResult:
    """Return the order that moves the file to where the verdict says.

    If no move is needed, or none is possible, return the verdict's result instead.
    """
    outcome, reason = (Outcome.REJECTED, "rejected") if verdict.label is None else (Outcome.SORTED, "accepted")
    decision = Decision(outcome, verdict.label, 0.0, reason, f"by {verdict.user}")
    path = Path(verdict.path)
    try:
        status = os.lstat(path)
        identity = Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode) or no_overwrite.digest(path) != verdict.digest:
            return VerdictResult(verdict, "left", why="it was changed since it was judged")
        no_overwrite.check_unchanged(path, identity)
        directory, target = os.path.realpath(path.parent), os.path.realpath(places.of(decision))
        if Path(directory).is_relative_to(target):  # below it, with output.keep_subdirectories
            return VerdictResult(verdict, "confirmed", destination=verdict.path)
    except FileNotFoundError:
        return VerdictResult(verdict, "left", why="it no longer lies there")
    except (OSError, Vanished) as error:
        return VerdictResult(verdict, "left", why=f"it can not be read: {error}")
    return MoveOrder(
        verdict.name,
        identity,
        verdict.digest,
        decision,
        Timing(0.0),
        source=verdict.path,
        restores=verdict.decision,
        verdict=verdict.id,
    )


def _close(ledger: Ledger, number: int, state: str, why: str | None) -> None:
    now = ledger.now().isoformat(timespec="milliseconds")
    ledger.execute("insert into verdict_ending values (?, ?, ?, ?)", number, state, why, now)
    ledger.execute("delete from open_verdict where verdict = ?", number)


def in_force(ledger_reader: LedgerReader) -> list[tuple[Verdict, LedgerEntry | None]]:
    """Return the verdicts that hold: the last on each file, the oldest first.

    Each comes with the decision by which the file lies where it is. It is None for a file that a person moved into
    its class directory and then confirmed, because no decision put it there.
    """
    holding: dict[int | tuple[str, str], tuple[Verdict, LedgerEntry | None]] = {}
    for verdict in ledger_reader.verdicts("state in ('filed', 'confirmed', 'withdrawn')"):
        if verdict.decision is None:
            holding.pop((verdict.path, verdict.digest), None)
        decision = {"filed": verdict.filed_by, "confirmed": verdict.decision}.get(verdict.state)
        if decision is None:
            if verdict.state == "confirmed":
                holding[verdict.path, verdict.digest] = verdict, None
            continue
        entry = next(ledger_reader.entries("d.id = ?", (decision,)), None)
        if entry is not None and entry.in_place:
            holding.pop(entry.id, None)  # so that the new verdict takes its place at the end
            holding[entry.id] = verdict, entry
    return list(holding.values())


def model_decision(ledger_reader: LedgerReader, verdict: Verdict, entry: LedgerEntry | None) -> LedgerEntry | None:
    """Return the decision of a model that a verdict confirms or corrects, or None if there is none.

    Without a chain of decisions that leads back to one, it is the last decision of a model about the same bytes: in
    shadow mode the daemon moves nothing, and people put the file into its class directory themselves.
    """
    seen: set[int] = set()
    while entry is not None and entry.model is None and entry.restores is not None and entry.restores not in seen:
        seen.add(entry.restores)
        entry = next(ledger_reader.entries("d.id = ?", (entry.restores,)))
    if entry is not None and entry.model is not None:
        return entry
    same_bytes = list(ledger_reader.entries("digest = ? and model is not null", (verdict.digest,)))
    return same_bytes[-1] if same_bytes else None


def class_named(classes: Sequence[str], label: str) -> str:
    """Return the class with this name, in whatever case the name is written.

    Raises:
        Fatal: exit code 2; no class has this name.
    """
    for name in classes:
        if name.casefold() == label.casefold():
            return name
    raise Fatal(
        f"{label} is no class of the weights in use",
        f"Name one of {', '.join(classes)}, or reject the file.",
        Exit.USAGE,
    )


_OPEN = "select verdict from open_verdict"

_OPEN_ON_PATH = f"{_OPEN} join verdict on id = verdict where path = ?"

_INSERT = """
insert into verdict (decision, path, name, digest, class, uid, user, note, given_at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
