"""Reconciliation of ledger and disk after a crash, before anybody touches those files again.

Every decision without an ending is from a run that died around the move. The
file either moved (then the move is finished and recorded), or it did not (then
it is still at its source and takes the straight way again), or it is nowhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from watcher.core import failpoints, mounts, no_overwrite
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.lock import Lock, owner_lock_path
from watcher.core.records import Ending, Outcome, signed
from watcher.filing import mover, quarantine_notes
from watcher.inbox import claims
from watcher.ledger.rows import Unended
from watcher.ledger.writer import Ledger

CLOCK_STEP_S = 2.0
"""How coarse a file system's times may be (FAT's are)."""


def recover(ledger: Ledger, owner: str | None = None) -> list[Ending]:
    """Give every unended decision of a dead owner (None: the ledger's own) its ending, in ledger and on disk.

    Whoever calls this holds the owner's lock. Nobody else has touched those files since: where
    files go nobody takes them on before their decision has ended (see :mod:`watcher.filing.put_back`).

    Raises:
        Retry: a directory is not the one that files were moved from or to (its mount is missing,
            say), so that nothing can be told; or the ledger can not be used. Nothing was ended.
    """
    endings: list[Ending] = []
    claimed: set[str] = set()  # of two equal files each needs a place of its own
    for decision in ledger.unended(owner):
        endings.append(_ending(decision, ledger, claimed))
        directory = Path(decision.directory)
        if _is_persons(decision) or _noted(directory, ledger)[0] != directory:
            mover.clear_partials(directory)  # the others are cleared at each start
    if endings:
        failpoints.reach("recovering")
        ledger.ended(endings)
    return endings


def recover_all(ledger: Ledger, state: Path, *, own: bool = True) -> list[Ending]:
    """The same for all dead owners (``own``: and this ledger's). Who lives ends his decisions himself.

    Raises:
        Retry: as :func:`recover`.
    """
    with contextlib.ExitStack() as stack:
        owners = [o for o in ledger.owners() if (own if o == ledger.owner else _hold(owner_lock_path(state, o), stack))]
        return [ending for owner in owners for ending in recover(ledger, owner)]


def at_start(ledger: Ledger, state: Path) -> list[Ending]:
    """The same where nothing else may be done before.

    Raises:
        Fatal: exit code 5; a directory is not the one it was, or the ledger can not be used.
    """
    try:
        return recover_all(ledger, state)
    except Retry as error:
        raise Fatal(
            f"what was being moved when its owner died can not be reconciled: {error}",
            "Mount what belongs there, or free space for the ledger. If a directory was replaced for good, start once "
            "with `run --directories-replaced` and the same --config.",
            Exit.DIRECTORY,
        ) from error


def refuse_missing(ledger: Ledger, directories: Iterable[Path]) -> None:
    """See that none lies beneath a mount that is gone: on another file system than when files were last moved there.

    To be asked before any of them is made.

    Raises:
        Fatal: exit code 5; one does.
    """
    for directory in directories:
        was = ledger.place(directory)
        if was is None:
            continue
        there = next(path for path in (directory, *directory.parents) if path.is_dir())
        found, mount = os.stat(there), mounts.of(there)
        same = found.st_dev == was[0] or (
            there == directory and found.st_ino == was[1]
        )  # a reboot may renumber devices
        if not same and not (mount is not None and mount.renumbers_inodes):
            raise Fatal(
                f"{directory} is not on the file system it was on when files were last moved there",
                "Mount what belongs there: files would be hidden beneath it later. If it was replaced for good, start "
                "once with `run --directories-replaced` and the same --config.",
                Exit.DIRECTORY,
            )


def _hold(path: Path, stack: contextlib.ExitStack) -> bool:
    """Hold the lock of an owner who died. False if it lives."""
    held = Lock(path)
    taken = held.acquire_briefly()
    stack.callback(held.release)
    return taken


def _ending(decision: Unended, ledger: Ledger, claimed: set[str]) -> Ending:
    source = Path(decision.source)
    target = _landed(decision, source, ledger, claimed)
    waiting = _is(source, decision)
    _refuse_replaced(decision, source, target, ledger)
    if target is None and waiting:
        return Ending(decision.decision, "returned", None, "the daemon died before the file moved")
    if target is None and os.path.lexists(source):
        return Ending(
            decision.decision, "returned", None, f"the file at {source} has changed since it was decided upon"
        )
    if target is None:
        return Ending(decision.decision, "missing", None, "neither where it was nor at its destination")
    claimed.add(str(target))
    if waiting:
        # Linked or copied to its place, and not yet unlinked here.
        try:
            no_overwrite.unlink_or_undo(source, target)
        except OSError as error:
            return Ending(decision.decision, "returned", None, f"could not be removed: {error.strerror}")
        no_overwrite.sync_directory(source.parent)
    no_overwrite.sync_directory(target.parent)
    _explain(decision, target, ledger)
    return Ending(decision.decision, "filed", str(target), "found filed after the daemon died")


def _refuse_replaced(decision: Unended, source: Path, target: Path | None, ledger: Ledger) -> None:
    """See that what is not there is not merely out of sight: beneath a mount that is gone every file is missing.

    A class directory on the inbox's own file system may have been made anew: what was there lay beside the inbox.
    """
    left, was_left = _noted(source.parent, ledger)
    right, was_right = _noted(Path(decision.directory), ledger)
    if was_left is not None and not os.path.lexists(source):
        _refuse_other(left, was_left[1])
    if was_right is not None and was_left is not None and target is None and was_left[0] != was_right[0]:
        _refuse_other(right, was_right[1])


def _noted(directory: Path, ledger: Ledger) -> tuple[Path, tuple[int, int] | None]:
    """A directory that is on record, and what it was: this one or, of those that come and go, the first above it."""
    directory = claims.inbox_of(directory)
    for each in (directory, *directory.parents):
        if (was := ledger.place(each)) is not None:
            return each, was
    return directory, None


def _refuse_other(directory: Path, inode: int) -> None:
    mount = mounts.of(directory)
    if mount is not None and mount.renumbers_inodes:
        return  # it has other inode numbers after each mount: nothing can be told
    if not directory.is_dir() or os.stat(directory).st_ino != inode:
        raise Retry(f"{directory} is not the directory it was when files were moved from or to it")


def _is_entry(source: Path, path: Path) -> bool:
    """Whether two paths are one directory entry, by whatever way: a link or a second mount leads there, too."""
    if source.name != path.name:
        return False
    try:
        return os.path.samestat(os.stat(source.parent), os.stat(path.parent))
    except OSError:
        return False


def _explain(decision: Unended, target: Path, ledger: Ledger) -> None:
    """The reason beside a file in quarantine: there when it has come, gone when it has left."""
    if decision.outcome is Outcome.QUARANTINE:
        told = quarantine_notes.reason(decision.name, decision.reason, decision.detail, decision.digest, ledger.now())
        quarantine_notes.explain(target, told, ledger.was_bound_for)
    elif _is_persons(decision):
        quarantine_notes.unexplain(Path(decision.source), ledger.was_bound_for)


def _is_persons(decision: Unended) -> bool:
    """Whether a person had the file moved, from where it had been filed."""
    return decision.outcome is Outcome.RESTORED or decision.verdict is not None


def _landed(decision: Unended, source: Path, ledger: Ledger, claimed: set[str]) -> Path | None:
    """Where the move left the file, or None. An equal file that was filed before is not it."""
    free = 0
    for candidate in no_overwrite.candidates(decision.name, decision.digest):
        path = Path(decision.directory) / candidate
        if not os.path.lexists(path):
            free += 1  # whatever took that name when the file moved may be gone by now
            if free == 3:
                return None
        elif str(path) in claimed or _is_entry(source, path):
            continue  # another's, or it was to be put where it is
        elif _is(path, decision) or (_is_copy(path, decision) and not _held(path, ledger)):
            return path
        elif _is_reserved(path, decision) and not _held(path, ledger):
            with contextlib.suppress(OSError):
                path.unlink()
            free += 1
    raise AssertionError("candidates() does not end")


def _held(path: Path, ledger: Ledger) -> bool:
    """Whether an earlier decision has put a file there, that lies there still: nobody has taken it, or just now."""
    if claims.is_claimed(path.parent) or not ledger.holds(str(path)):
        return False
    return all(_is(path, leaving) for leaving in ledger.leaving(str(path)))


def _is(path: Path, decision: Unended) -> bool:
    """The very file that was decided upon: a rename or a link keeps inode, size and time.

    Not compared: the device, whose number may be another after a reboot.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return False
    i = decision.identity
    return i is not None and (found.st_ino, found.st_size, signed(found.st_mtime_ns)) == (i.inode, i.size, i.mtime_ns)


def _is_copy(path: Path, decision: Unended) -> bool:
    """A copy, on another file system or behind another mount of this one: digest and time are kept, not the inode.

    SMB keeps the time to 100 ns, FAT to 2 s.
    """
    found = os.lstat(path)
    i = decision.identity
    if i is None or decision.digest is None or found.st_size != i.size:
        return False
    if abs(signed(found.st_mtime_ns) - i.mtime_ns) > CLOCK_STEP_S * 1e9:
        return False
    if not stat.S_ISREG(found.st_mode):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == decision.digest


def _is_reserved(path: Path, decision: Unended) -> bool:
    """The empty file by which a name is taken where the file system offers no better way (see :mod:`unique`)."""
    found = os.lstat(path)
    since = found.st_mtime - decision.decided_at.timestamp()
    return stat.S_ISREG(found.st_mode) and found.st_size == 0 and since > -CLOCK_STEP_S
