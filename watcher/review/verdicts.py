"""What people say of images, and what follows: the file goes where they say.

A verdict is a row in the ledger, given in one transaction and open until it is
carried out by whoever files: the running daemon, or the command itself where
none runs. They take the daemon's own bracket (see :mod:`watcher.filing.decision_executor`), and
the row is closed by the very transaction that says where the file lies now. So
whatever dies, the next start carries the verdict out, once.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watcher.core import failpoints, no_overwrite
from watcher.core.errors import Exit, Fatal, Retry, Vanished
from watcher.core.records import Decision, Filed, Identity, MoveOrder, Outcome, Timing, signed
from watcher.filing import quarantine_notes
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.ledger import reader
from watcher.ledger.reader import IN_PLACE, LedgerEntry, LedgerReader, Verdict
from watcher.ledger.rows import storable_text
from watcher.ledger.writer import Ledger

CHUNK = 64
"""Verdicts carried out at once, so that sorting goes on in between."""


@dataclass(frozen=True)
class Reviewer:
    """Who judges."""

    uid: int
    user: str


@dataclass(frozen=True)
class JudgedFile:
    """A file that is judged: where it lies, what it is to be called, and the decision that put it there."""

    path: str
    name: str
    digest: str
    entry: LedgerEntry | None


@dataclass(frozen=True)
class VerdictResult:
    """What became of a verdict: ``later`` is still open. ``id`` is the decision that carries it out."""

    verdict: Verdict
    state: Literal["filed", "confirmed", "left", "later"]
    id: int | None = None
    destination: str | None = None
    why: str | None = None


def me(environ: Mapping[str, str]) -> Reviewer:
    """Who runs this, by the system; behind sudo, whoever called it."""
    caller = environ.get("SUDO_UID", "")
    uid = int(caller) if caller.isdecimal() else os.getuid()
    try:
        return Reviewer(uid, pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):  # a container knows few users
        return Reviewer(uid, str(uid))


def subject(ledger_reader: LedgerReader, word: str, places: Destinations) -> JudgedFile:
    """The file that a word means: a path, a name in review, or the number of the decision that put it where it lies.

    Raises:
        Fatal: exit code 2; it is no image of ours. Exit code 1; it is gone, can not be read, was changed, or is being
            moved just now.
    """
    path = _path(ledger_reader, word, places)
    digest, stamp = _read(path)
    # In this order: what has come there was decided before, and whatever is not unended has its ending by now.
    moving = {(entry.size, entry.mtime_ns) for entry in ledger_reader.unended()}
    entries = list(ledger_reader.entries(f"{IN_PLACE} and e.destination = ?", (os.fsencode(path),)))
    entry = entries[-1] if entries else _renamed(ledger_reader, path, digest)
    if entry is None and stamp in moving:
        raise Fatal(f"{path} is being moved just now", "Try again.")
    if entry is None and path.endswith((quarantine_notes.SUFFIX, no_overwrite.PARTIAL)):
        raise Fatal(f"{path} is no image", "Name the file that it belongs to.", Exit.USAGE)
    if entry is not None and entry.digest not in (None, digest):
        raise Fatal(f"{path} was changed since it was filed", "See `mednet-watcher explain` for what was decided.")
    return JudgedFile(path, entry.name if entries and entry else os.path.basename(path), digest, entry)


def _renamed(ledger_reader: LedgerReader, path: str, digest: str) -> LedgerEntry | None:
    """The decision that put these bytes into this directory for review, under a name where nothing lies any more."""
    for entry in ledger_reader.entries(f"{IN_PLACE} and outcome = 'review' and digest = ?", (digest,)):
        told = entry.destination
        if told and os.path.dirname(told) == os.path.dirname(path) and not os.path.lexists(told):
            return entry
    return None


def _path(ledger_reader: LedgerReader, word: str, places: Destinations) -> str:
    """Where the file lies, as the ledger would have it: it knows files by the directories of the config."""
    unnamed = not os.path.lexists(word) and not os.path.lexists(places.review / word)
    if (number := re.fullmatch(r"#?([0-9]{1,18})", word)) and (word[0] == "#" or unnamed):
        entry = next(ledger_reader.entries(f"{IN_PLACE} and d.id = ?", (int(number[1]),)), None)
        if entry is None or entry.destination is None:
            raise Fatal(f"no file lies where decision {word} put it", "See `mednet-watcher explain`.", Exit.USAGE)
        return entry.destination
    if "/" not in word and not os.path.lexists(word):
        return str(places.review / word)
    path = os.path.abspath(word)
    if next(ledger_reader.entries(f"{IN_PLACE} and e.destination = ?", (os.fsencode(path),)), None) is not None:
        return path
    folder = Path(os.path.realpath(os.path.dirname(path)))
    for place in vars(places).values():
        real = os.path.realpath(place)
        if folder.is_relative_to(real):
            return str(place / folder.relative_to(real) / os.path.basename(path))
    raise Fatal(f"{word} was not filed here", "Name a file in review or in a class directory.", Exit.USAGE)


def _read(path: str) -> tuple[str, tuple[int, int]]:
    """The digest of a file, and what it keeps when it is moved: size and time."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Fatal(f"{path} is no regular file", "Only images are judged.", Exit.USAGE)
        return no_overwrite.digest(Path(path)), (found.st_size, signed(found.st_mtime_ns))
    except OSError as error:
        raise Fatal(f"{path} can not be read: {error.strerror}", "See `mednet-watcher explain`.") from error


def give(ledger: Ledger, judged: JudgedFile, label: str | None, person: Reviewer, note: str | None) -> int:
    """Record a verdict: of this class, or (None) of none. An open one on the same file gives way. Gives its number.

    Raises:
        Retry: it is not recorded: the ledger can not be written, or the file is being moved just now.
    """
    at, raw = ledger.now().isoformat(timespec="milliseconds"), os.fsencode(judged.path)
    with ledger.transaction():
        for number, *_ in ledger.execute(_OPEN_ON, raw):
            _end(ledger, number, "left", "another verdict came after it")
        if ledger.execute("select 1 from unended join decision on id = decision where source = ?", raw):
            raise Retry(f"{judged.path} is being moved just now: try again")
        row = (raw, os.fsencode(judged.name), judged.digest, label, person.uid, person.user, storable_text(note), at)
        decision = judged.entry.id if judged.entry else None
        ledger.execute(_GIVE, decision, *row)
        [(given,)] = ledger.execute("select last_insert_rowid()")
        ledger.execute("insert into open_verdict values (?)", given)
    failpoints.reach("judged")
    return int(given)


def carry_out(executor: DecisionExecutor, limit: int = CHUNK) -> list[VerdictResult]:
    """Do what is open, the oldest first, and what nobody else does just now. Call again until nothing comes.

    Raises:
        Fatal: files moved and the ledger could not follow.
    """
    ledger, done = executor.ledger, []
    try:
        awaited = _awaited(ledger, limit)
    except Retry:
        return []  # the ledger can not be read just now: they stay open, and the next scan asks again
    looked = []
    for verdict in awaited:
        looked.append((verdict, _order(verdict, executor.destinations)))
        executor.carried += 1  # read whole, maybe from a slow share
    try:
        with ledger.transaction():
            for verdict, found in looked:
                if isinstance(found, VerdictResult) and ledger.execute(f"{_OPEN} where verdict = ?", verdict.id):
                    _end(ledger, verdict.id, found.state, found.why)
    except Retry as error:
        return [VerdictResult(verdict, "later", why=str(error)) for verdict, _ in looked]
    orders = [found for _, found in looked if isinstance(found, MoveOrder)]
    results = iter(executor.carry_out(orders) if orders else ())
    for verdict, found in looked:
        if isinstance(found, VerdictResult):
            done.append(found)
            continue
        number, result = next(results)
        if isinstance(result, Filed):
            done.append(VerdictResult(verdict, "filed", number, result.destination))
        else:
            done.append(VerdictResult(verdict, "later", number or None, why=result.why))
    return done


def _awaited(ledger: Ledger, limit: int) -> list[Verdict]:
    numbers = ledger.waiting_verdicts(limit)
    rows = [row for number in numbers for row in ledger.execute(f"{reader.VERDICTS} where v.id = ?", number)]
    return [reader.verdict_of_row(row) for row in rows]


def _order(verdict: Verdict, places: Destinations) -> MoveOrder | VerdictResult:
    """The order to put the file where the verdict says; what became of the verdict where none is needed or possible."""
    outcome, word = (Outcome.REJECTED, "rejected") if verdict.label is None else (Outcome.SORTED, "accepted")
    decision = Decision(outcome, verdict.label, 0.0, word, f"by {verdict.user}")
    try:
        found = os.lstat(verdict.path)
        identity = Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if not stat.S_ISREG(found.st_mode) or no_overwrite.digest(Path(verdict.path)) != verdict.digest:
            return VerdictResult(verdict, "left", why="it was changed since it was judged")
        no_overwrite.check_unchanged(Path(verdict.path), identity)
        here, to = (os.path.realpath(path) for path in (os.path.dirname(verdict.path), places.of(decision)))
        if Path(here).is_relative_to(to):  # or below it, with output.keep_subdirectories
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


def _end(ledger: Ledger, number: int, state: str, why: str | None) -> None:
    at = ledger.now().isoformat(timespec="milliseconds")
    ledger.execute("insert into verdict_ending values (?, ?, ?, ?)", number, state, why, at)
    ledger.execute("delete from open_verdict where verdict = ?", number)


def in_force(ledger_reader: LedgerReader) -> list[tuple[Verdict, LedgerEntry | None]]:
    """The verdicts that hold, the oldest first: the last on each file, with the decision by which that lies there.

    No decision put a file there that a person put into its class directory and then confirmed.
    """
    found: dict[int | tuple[str, str], tuple[Verdict, LedgerEntry | None]] = {}
    for verdict in ledger_reader.verdicts("state in ('filed', 'confirmed', 'withdrawn')"):
        if verdict.decision is None:
            found.pop((verdict.path, verdict.digest), None)
        number = {"filed": verdict.filed_by, "confirmed": verdict.decision}.get(verdict.state)
        if number is None:
            if verdict.state == "confirmed":
                found[verdict.path, verdict.digest] = verdict, None
            continue
        entry = next(ledger_reader.entries("d.id = ?", (number,)), None)
        if entry is not None and entry.in_place:
            found.pop(entry.id, None)
            found[entry.id] = verdict, entry
    return list(found.values())


def models_word(ledger_reader: LedgerReader, verdict: Verdict, entry: LedgerEntry | None) -> LedgerEntry | None:
    """The decision of a model that a person's goes back to, if any.

    Without one, the last upon these bytes: in shadow mode people put the file where it lies.
    """
    seen: set[int] = set()
    while entry is not None and entry.model is None and entry.restores is not None and entry.restores not in seen:
        seen.add(entry.restores)
        entry = next(ledger_reader.entries("d.id = ?", (entry.restores,)))
    if entry is not None and entry.model is not None:
        return entry
    same = list(ledger_reader.entries("digest = ? and model is not null", (verdict.digest,)))
    return same[-1] if same else None


def known(classes: Sequence[str], label: str) -> str:
    """The class of this name.

    Raises:
        Fatal: exit code 2; there is none.
    """
    for name in classes:
        if name.casefold() == label.casefold():
            return name
    raise Fatal(
        f"{label} is no class of the weights in use", f"Say one of {', '.join(classes)}; or reject it.", Exit.USAGE
    )


_OPEN = "select verdict from open_verdict"

_OPEN_ON = f"{_OPEN} join verdict on id = verdict where path = ?"

_GIVE = """
insert into verdict (decision, path, name, digest, class, uid, user, note, given_at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
