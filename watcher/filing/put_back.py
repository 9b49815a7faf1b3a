"""Puts files back: what was quarantined, or filed by mistake. The owner of these moves is ``operator``.

They take the same bracket as the daemon's own (see :mod:`watcher.filing.decision_executor`), beside
a daemon that runs or without one. What goes back to the inbox is claimed first
(see :mod:`watcher.inbox.claims`) and appears there only when its decision has ended:
else the daemon could sort on what a killed command has copied and not yet removed.

Whoever is killed at it is reconciled by the daemon, or by the next such command.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from watcher.core import failpoints, lock, no_overwrite
from watcher.core.errors import Exit, Fatal, Vanished
from watcher.core.records import Decision, Ending, Filed, Identity, MoveOrder, Outcome, Returned, Timing, signed
from watcher.filing import mover, recovery
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.mover import Mover
from watcher.filing.put_back_requests import PutBackRequest
from watcher.inbox import claims
from watcher.ledger.reader import LedgerEntry
from watcher.ledger.writer import Ledger

OWNER = claims.OPERATOR

CHUNK = 64
"""Files put back in one transaction, so that a daemon is not held up."""

Why = Literal["retry", "undo"]


@dataclass(frozen=True)
class PutBackResult:
    """What became of a wish. ``id`` is the new decision's, ``why`` says why a file was left alone.

    ``kept`` is what people judged. Of what is put back, ``why`` says whose word is withdrawn by that.
    """

    request: PutBackRequest
    state: Literal["restored", "planned", "left", "kept"]
    id: int | None = None
    destination: str | None = None
    why: str | None = None


@contextlib.contextmanager
def at_work(ledger: Path, inbox: Path, tell: Callable[[Ending], None] = lambda _: None) -> Iterator[DecisionExecutor]:
    """A clerk of the owner ``operator``, alone at it, after what the dead left was reconciled, and told.

    Raises:
        Fatal: exit code 6, another one is at work; 5, the ledger can not be used, or not by root.
    """
    refuse_root(ledger)
    with contextlib.ExitStack() as stack:
        stack.callback(_hold(ledger.with_name(f"{OWNER}.lock")).release)
        book = stack.enter_context(contextlib.closing(Ledger(ledger, owner=OWNER)))
        for ending in recovery.at_start(book, ledger.parent):
            tell(ending)
        claims.release(inbox, OWNER)  # what a killed one had put back
        yield DecisionExecutor(book, Mover(inbox), Destinations(inbox, inbox, inbox, inbox), None)
        claims.release(inbox, OWNER)  # not after an error: first it must be reconciled


def refuse_root(ledger: Path) -> None:
    """What root makes (a lock, a place in the inbox) the daemon's user could neither open nor take over.

    Raises:
        Fatal: exit code 5; this is root, and the ledger is another user's.
    """
    with contextlib.suppress(OSError):
        owner = os.stat(ledger).st_uid
        if os.geteuid() == 0 != owner:
            raise Fatal(
                f"the ledger {ledger} belongs to user {owner}, and this runs as root",
                f"Run it as the daemon's user: setpriv --reuid={owner} --regid={os.stat(ledger).st_gid} "
                "--clear-groups mednet-watcher ...",
                Exit.DIRECTORY,
            )


def _hold(path: Path) -> lock.Lock:
    held = lock.Lock(path)
    try:
        held.acquire()
    except Fatal as error:
        if error.code is not Exit.ALREADY_RUNNING:
            raise
        pid = (lock.holder(path) or {}).get("pid", "unknown")
        raise Fatal(
            f"another retry, undo or review (process {pid}) is at work with this ledger",
            "Wait for it to end, and try again.",
            Exit.ALREADY_RUNNING,
        ) from error
    held.describe({"pid": os.getpid()})
    return held


def daemons(state: Path) -> bool:
    """Whether anybody sorts the inbox just now, by the locks of those at work."""
    return any(lock.holder(path) is not None for path in state.glob("*.lock") if path.stem != OWNER)


def ready(to: Path, inbox: Path) -> Path:
    """Where files land on their way to this directory. It is made: whether the inbox is there is to be seen before.

    Raises:
        Fatal: exit code 5; files can not land there.
    """
    mover.prepare(_landing(to, inbox))
    if to == inbox:
        claims.require_directory(inbox, OWNER)
    return _landing(to, inbox)


def _landing(to: Path, inbox: Path) -> Path:
    return claims.owner_directory(inbox, OWNER) if to == inbox else to


def put_back(
    requests: Iterable[PutBackRequest], why: Why, to: Path, executor: DecisionExecutor | None
) -> Iterator[PutBackResult]:
    """Put files into a directory, under their names (or paths) or the next free ones, a chunk at a time.

    What is no longer where it was filed is left alone; for ``undo`` also what was changed there. What stays is told.
    Without a clerk nothing is done, and told what would be.

    Raises:
        Fatal: the ledger can not be written, or could not follow.
    """
    todo = iter(requests)
    while chunk := list(itertools.islice(todo, CHUNK)):
        looked = [(request, None if request.stays else _order(request, why, to)) for request in chunk]
        orders = [order for _, order in looked if isinstance(order, MoveOrder)]
        orders = _under_free_names(orders, to) if executor is not None and to == executor.mover.inbox else orders
        done = iter(
            _carry_out(orders, _landing(to, executor.mover.inbox), executor) if executor is not None and orders else ()
        )
        for request, order in looked:
            if order is None:
                yield PutBackResult(request, "kept", why=_said(request, "{user} said that it is {label}"))
            elif isinstance(order, str):
                yield PutBackResult(request, "left", why=order)
            elif executor is None:
                told = _said(request, "what {user} said of it ({label}) would be withdrawn")
                yield PutBackResult(request, "planned", destination=str(to), why=told)
            else:
                number, result = next(done)
                if isinstance(result, Filed):
                    told = _said(request, "what {user} said of it ({label}) is withdrawn")
                    yield PutBackResult(
                        request, "restored", number, str(_appear(result, to, executor.mover.inbox)), told
                    )
                elif not number:
                    raise Fatal(result.why, "What is left was not moved. Mend that, and try again.", Exit.DIRECTORY)
                else:
                    yield PutBackResult(request, "left", number, why=result.why)


def _under_free_names(orders: Sequence[MoveOrder], inbox: Path) -> list[MoveOrder]:
    """The orders, each with the name that it will have there: the ledger has it before the file appears."""
    found: list[MoveOrder] = []
    chosen: set[str] = set()
    for order in orders:
        below, base = os.path.split(order.name)
        folder = inbox / no_overwrite.free_directory(inbox, below)
        names = ((os.path.join(below, each), folder / each) for each in no_overwrite.candidates(base, None))
        name = next(name for name, path in names if name not in chosen and not os.path.lexists(path))
        chosen.add(name)
        found.append(replace(order, name=name))
    return found


def _said(request: PutBackRequest, words: str) -> str | None:
    if request.said is None:
        return None
    return words.format(user=request.said.user, label=request.said.label or "none of the classes")


def _carry_out(
    orders: Sequence[MoveOrder], landing: Path, executor: DecisionExecutor
) -> list[tuple[int, Filed | Returned]]:
    """As the clerk does, and nothing may appear before the ledger has it."""
    done = executor.carry_out(orders, landing)
    if executor.ledger.behind is not None:
        raise Fatal(
            executor.ledger.behind.why,
            "Nothing is lost. Mend that: the daemon, or the next retry or undo, ends what this one began.",
            Exit.DIRECTORY,
        )
    return done


def _appear(filed: Filed, to: Path, inbox: Path) -> Path:
    """Let a file that was put back appear in the inbox, now that its decision has ended, and say where it lies."""
    path = Path(filed.destination)
    if to != inbox:
        return path
    failpoints.reach("restored")
    try:
        return claims.publish(path, inbox, filed.order.name)
    except OSError as error:
        raise Fatal(
            f"{path} can not be put into the inbox: {error.strerror}",
            "Nothing is lost. Mend that: the daemon, or the next retry or undo, puts it there.",
            Exit.DIRECTORY,
        ) from error


def _order(request: PutBackRequest, why: Why, to: Path) -> MoveOrder | str:
    """The order to put a file back, or why it is left alone."""
    if request.entry is not None and request.entry.state is None:
        return "the daemon is moving it just now: try again"
    try:
        found = os.lstat(request.path)
        goal = to / os.path.dirname(request.name)
        if goal.is_dir() and os.path.samestat(os.stat(os.path.dirname(request.path)), os.stat(goal)):
            return "it lies there already"
        if stat.S_ISDIR(found.st_mode):
            return "a directory is in its place"
        identity = Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        digest = _digest(Path(request.path), found, request.entry, why)
        no_overwrite.check_unchanged(Path(request.path), identity)
    except FileNotFoundError:
        return "it no longer lies there"
    except OSError as error:
        return f"it can not be read: {error.strerror}"
    except Vanished as error:
        return str(error)
    decision = Decision(Outcome.RESTORED, None, 0.0, why)
    restores = request.entry.id if request.entry else None
    return MoveOrder(request.name, identity, digest, decision, Timing(0.0), request.path, restores)


def _digest(path: Path, found: os.stat_result, entry: LedgerEntry | None, why: Why) -> str | None:
    regular = stat.S_ISREG(found.st_mode)
    if why == "retry":
        return no_overwrite.digest(path) if regular and os.access(path, os.R_OK) else None
    assert entry is not None
    same_size = entry.size in (None, found.st_size)
    if entry.digest is None:
        # It was never read (a link, say): then size and time must do.
        if not same_size or (regular and entry.mtime_ns not in (None, signed(found.st_mtime_ns))):
            raise Vanished("it was changed since it was filed")
        return None
    if not regular or not same_size or no_overwrite.digest(path) != entry.digest:
        raise Vanished("it was changed since it was filed")
    return entry.digest
