"""Put files back that were quarantined, or filed by mistake.

The owner of these moves is ``operator``. They are recorded before and after the
move, like those of the daemon (see :mod:`watcher.filing.decision_executor`), with
or without a running daemon. A file that goes back to the inbox is claimed first
(see :mod:`watcher.inbox.claims`). It appears in the inbox only after its decision
has ended. Otherwise the daemon could sort a file that a killed command has copied
and not yet removed at its source.

If the command is killed, the daemon or the next such command ends its work.
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
"""The number of files put back in one transaction, so that a daemon does not wait long."""

Command = Literal["retry", "undo"]


@dataclass(frozen=True)
class PutBackResult:
    """The result of a request.

    ``planned`` is a request that would be carried out, ``left`` one that can not be, ``kept`` one whose file a person
    judged. ``id`` is the id of the new decision. ``why`` is the reason why a file was not put back, or whose verdict
    is withdrawn because it was.
    """

    request: PutBackRequest
    state: Literal["restored", "planned", "left", "kept"]
    id: int | None = None
    destination: str | None = None
    why: str | None = None


@contextlib.contextmanager
def open_executor(
    ledger_path: Path, inbox: Path, report: Callable[[Ending], None] = lambda _: None
) -> Iterator[DecisionExecutor]:
    """Open an executor of the owner ``operator``, which only one process may have at a time.

    First the work of dead owners is reconciled, and each of its endings given to ``report``.

    Raises:
        Fatal: exit code 6; another process has it. Exit code 5; the ledger can not be used, or see
            :func:`refuse_root`.
    """
    refuse_root(ledger_path)
    with contextlib.ExitStack() as stack:
        stack.callback(_lock(ledger_path.with_name(f"{OWNER}.lock")).release)
        ledger = stack.enter_context(contextlib.closing(Ledger(ledger_path, owner=OWNER)))
        for ending in recovery.at_start(ledger, ledger_path.parent):
            report(ending)
        claims.release(inbox, OWNER)  # the files that a killed command had put back
        yield DecisionExecutor(ledger, Mover(inbox), Destinations(inbox, inbox, inbox, inbox), None)
        claims.release(inbox, OWNER)  # not after an error: its files must be reconciled first


def refuse_root(ledger_path: Path) -> None:
    """Refuse to run as root if the ledger belongs to another user.

    The daemon's user could neither open nor take over what root makes: a lock, a directory in the inbox.

    Raises:
        Fatal: exit code 5; this is root, and the ledger is another user's.
    """
    with contextlib.suppress(OSError):
        owner = os.stat(ledger_path).st_uid
        if os.geteuid() == 0 != owner:
            raise Fatal(
                f"the ledger {ledger_path} belongs to user {owner}, and this runs as root",
                f"Run it as the daemon's user: setpriv --reuid={owner} --regid={os.stat(ledger_path).st_gid} "
                "--clear-groups mednet-watcher ...",
                Exit.DIRECTORY,
            )


def _lock(path: Path) -> lock.Lock:
    own_lock = lock.Lock(path)
    try:
        own_lock.acquire()
    except Fatal as error:
        if error.code is not Exit.ALREADY_RUNNING:
            raise
        pid = (lock.holder(path) or {}).get("pid", "unknown")
        raise Fatal(
            f"another retry, undo or review (process {pid}) is at work with this ledger",
            "Wait for it to end, and try again.",
            Exit.ALREADY_RUNNING,
        ) from error
    own_lock.describe({"pid": os.getpid()})
    return own_lock


def is_daemon_running(state: Path) -> bool:
    """Return True if a daemon or worker holds a lock in this state directory."""
    return any(lock.holder(path) is not None for path in state.glob("*.lock") if path.stem != OWNER)


def prepare_landing(to: Path, inbox: Path) -> Path:
    """Make the directory in which files for ``to`` land first, and return it.

    It is made even if ``inbox`` is missing, so check that before.

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
    requests: Iterable[PutBackRequest], command: Command, to: Path, executor: DecisionExecutor | None
) -> Iterator[PutBackResult]:
    """Put files into a directory, under their names (or relative paths) or the next free ones, and yield the results.

    A file that no longer lies where it was filed is left alone. ``undo`` also leaves alone a file that was changed.
    Without an executor nothing is moved, and the results say what would be.

    Raises:
        Fatal: the ledger can not be written.
    """
    todo = iter(requests)
    while chunk := list(itertools.islice(todo, CHUNK)):
        checked = [(request, None if request.stays else _order(request, command, to)) for request in chunk]
        orders = [order for _, order in checked if isinstance(order, MoveOrder)]
        orders = _under_free_names(orders, to) if executor is not None and to == executor.mover.inbox else orders
        results = iter(
            _carry_out(orders, _landing(to, executor.mover.inbox), executor) if executor is not None and orders else ()
        )
        for request, order in checked:
            if order is None:
                yield PutBackResult(request, "kept", why=_about_verdict(request, "{user} said that it is {label}"))
            elif isinstance(order, str):
                yield PutBackResult(request, "left", why=order)
            elif executor is None:
                note = _about_verdict(request, "the verdict of {user} ({label}) would be withdrawn")
                yield PutBackResult(request, "planned", destination=str(to), why=note)
            else:
                number, result = next(results)
                if isinstance(result, Filed):
                    note = _about_verdict(request, "the verdict of {user} ({label}) is withdrawn")
                    path = _publish(result, to, executor.mover.inbox)
                    yield PutBackResult(request, "restored", number, str(path), note)
                elif not number:
                    raise Fatal(result.why, "The other files were not moved. Mend that, and try again.", Exit.DIRECTORY)
                else:
                    yield PutBackResult(request, "left", number, why=result.why)


def _under_free_names(orders: Sequence[MoveOrder], inbox: Path) -> list[MoveOrder]:
    """Return the orders with the names that their files will get in the inbox.

    The ledger needs the name before the file appears there.
    """
    named: list[MoveOrder] = []
    chosen: set[str] = set()
    for order in orders:
        below, base = os.path.split(order.name)
        folder = inbox / no_overwrite.free_directory(inbox, below)
        candidates = (
            (os.path.join(below, candidate), folder / candidate) for candidate in no_overwrite.candidates(base, None)
        )
        name = next(name for name, path in candidates if name not in chosen and not os.path.lexists(path))
        chosen.add(name)
        named.append(replace(order, name=name))
    return named


def _about_verdict(request: PutBackRequest, template: str) -> str | None:
    if request.verdict is None:
        return None
    return template.format(user=request.verdict.user, label=request.verdict.label or "none of the classes")


def _carry_out(
    orders: Sequence[MoveOrder], landing: Path, executor: DecisionExecutor
) -> list[tuple[int, Filed | Returned]]:
    """Carry out orders. Stop if their endings can not be recorded: no file may appear in the inbox before that.

    Raises:
        Fatal: exit code 5; the endings can not be recorded.
    """
    results = executor.carry_out(orders, landing)
    if executor.ledger.lag is not None:
        raise Fatal(
            executor.ledger.lag.why,
            "Nothing is lost. Mend that: the daemon, or the next retry or undo, ends what this one began.",
            Exit.DIRECTORY,
        )
    return results


def _publish(filed: Filed, to: Path, inbox: Path) -> Path:
    """Let a file that was put back appear in the inbox, and return its path. Its decision has ended before."""
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


def _order(request: PutBackRequest, command: Command, to: Path) -> MoveOrder | str:
    """Return the order to put a file back, or the reason why it is left alone."""
    if request.entry is not None and request.entry.state is None:
        return "the daemon is moving it just now: try again"
    try:
        status = os.lstat(request.path)
        target = to / os.path.dirname(request.name)
        if target.is_dir() and os.path.samestat(os.stat(os.path.dirname(request.path)), os.stat(target)):
            return "it lies there already"
        if stat.S_ISDIR(status.st_mode):
            return "a directory is in its place"
        identity = Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        digest = _digest(Path(request.path), status, request.entry, command)
        no_overwrite.check_unchanged(Path(request.path), identity)
    except FileNotFoundError:
        return "it no longer lies there"
    except OSError as error:
        return f"it can not be read: {error.strerror}"
    except Vanished as error:
        return str(error)
    decision = Decision(Outcome.RESTORED, None, 0.0, command)
    restores = request.entry.id if request.entry else None
    return MoveOrder(request.name, identity, digest, decision, Timing(0.0), request.path, restores)


def _digest(path: Path, status: os.stat_result, entry: LedgerEntry | None, command: Command) -> str | None:
    """Return the digest of a file that is to be put back. For ``undo`` check that the file is unchanged.

    Raises:
        Vanished: it was changed since it was filed.
    """
    regular = stat.S_ISREG(status.st_mode)
    if command == "retry":
        return no_overwrite.digest(path) if regular and os.access(path, os.R_OK) else None
    assert entry is not None
    same_size = entry.size in (None, status.st_size)
    if entry.digest is None:
        # It was never read (a link, say). So compare size and time.
        if not same_size or (regular and entry.mtime_ns not in (None, signed(status.st_mtime_ns))):
            raise Vanished("it was changed since it was filed")
        return None
    if not regular or not same_size or no_overwrite.digest(path) != entry.digest:
        raise Vanished("it was changed since it was filed")
    return entry.digest
