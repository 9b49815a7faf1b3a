"""Reconcile ledger and disk after a crash, before anybody touches the files again.

A decision without an ending belongs to a process that died around the move. If
its file has moved, the move is finished and recorded. If the file is still at its
source, the decision is recorded as returned, and the file is sorted again. If it
is in neither place, it is recorded as missing.
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
"""The coarsest step of a file system's times, in seconds. FAT has it."""

FREE_NAMES = 3
"""Free names after which the search for a moved file ends. Files that took these names then may be gone by now."""


def recover(ledger: Ledger, owner: str | None = None) -> list[Ending]:
    """End every unended decision of a dead owner, by default of the ledger's own, on disk and in the ledger.

    The caller holds the owner's lock. Nobody else has touched those files since: no file is moved on before its
    decision has ended (see :mod:`watcher.filing.put_back`).

    Raises:
        Retry: nothing was ended, because a directory is not the one that files were moved from or to (its mount is
            missing, say), or because the ledger can not be used.
    """
    endings: list[Ending] = []
    assigned: set[str] = set()  # two decisions with equal files must not find the same file
    for decision in ledger.unended(owner):
        endings.append(_ending(decision, ledger, assigned))
        directory = Path(decision.directory)
        if _by_person(decision) or _recorded(directory, ledger)[0] != directory:
            mover.clear_partials(directory)  # the other directories are cleared at each start
    if endings:
        failpoints.reach("recovering")
        ledger.record_endings(endings)
    return endings


def recover_all(ledger: Ledger, state: Path, *, own: bool = True) -> list[Ending]:
    """End the unended decisions of all dead owners, and if ``own`` is true of this ledger's owner.

    Owners that are alive end their decisions themselves.

    Raises:
        Retry: as :func:`recover`.
    """
    endings: list[Ending] = []
    with contextlib.ExitStack() as stack:
        owners = [
            owner
            for owner in ledger.unended_owners()
            if (own if owner == ledger.owner else _lock_if_dead(owner_lock_path(state, owner), stack))
        ]
        for owner in owners:
            endings += recover(ledger, owner)
    return endings


def at_start(ledger: Ledger, state: Path) -> list[Ending]:
    """Call :func:`recover_all` at a start, when nothing else may be done before it has succeeded.

    Raises:
        Fatal: exit code 5; a directory is not the one it was, or the ledger can not be used.
    """
    try:
        return recover_all(ledger, state)
    except Retry as error:
        raise Fatal(
            f"the files that were being moved when the daemon died can not be reconciled: {error}",
            "Mount what belongs there, or free space for the ledger. If a directory was replaced for good, start once "
            "with `run --directories-replaced` and the same --config.",
            Exit.DIRECTORY,
        ) from error


def refuse_lost_mounts(ledger: Ledger, directories: Iterable[Path]) -> None:
    """Check that no directory lies beneath a mount that is gone.

    A directory does, if it is on another file system than when files were last moved there. Call this before any of
    the directories is made.

    Raises:
        Fatal: exit code 5; a directory is on another file system.
    """
    for directory in directories:
        recorded = ledger.recorded_directory(directory)
        if recorded is None:
            continue
        device, inode = recorded
        existing = next(path for path in (directory, *directory.parents) if path.is_dir())
        status, mount = os.stat(existing), mounts.of(existing)
        same_inode = existing == directory and status.st_ino == inode
        same = status.st_dev == device or same_inode  # a reboot may renumber devices
        if not same and not (mount is not None and mount.renumbers_inodes):
            raise Fatal(
                f"{directory} is not on the file system it was on when files were last moved there",
                "Mount what belongs there: files would be hidden beneath it later. If it was replaced for good, start "
                "once with `run --directories-replaced` and the same --config.",
                Exit.DIRECTORY,
            )


def _lock_if_dead(path: Path, stack: contextlib.ExitStack) -> bool:
    """Take the lock of a dead owner until the stack closes. Return False if the owner is alive."""
    owner_lock = Lock(path)
    is_dead = owner_lock.acquire_briefly()
    stack.callback(owner_lock.release)
    return is_dead


def _ending(decision: Unended, ledger: Ledger, assigned: set[str]) -> Ending:
    """Finish the move of a decision, if its file has left the source, and return the ending."""
    source = Path(decision.source)
    target = _find_moved_file(decision, source, ledger, assigned)
    at_source = _is_decided_file(source, decision)
    _refuse_replaced_directories(decision, source, target, ledger)
    if target is None and at_source:
        return Ending(decision.decision, "returned", None, "the daemon died before the file moved")
    if target is None and os.path.lexists(source):
        return Ending(
            decision.decision, "returned", None, f"the file at {source} has changed since it was decided upon"
        )
    if target is None:
        return Ending(decision.decision, "missing", None, "neither where it was nor at its destination")
    assigned.add(str(target))
    if at_source:
        # It was linked or copied to the target, and not yet unlinked here.
        try:
            no_overwrite.unlink_or_undo(source, target)
        except OSError as error:
            return Ending(decision.decision, "returned", None, f"could not be removed: {error.strerror}")
        no_overwrite.sync_directory(source.parent)
    no_overwrite.sync_directory(target.parent)
    _update_note(decision, target, ledger)
    return Ending(decision.decision, "filed", str(target), "found filed after the daemon died")


def _refuse_replaced_directories(decision: Unended, source: Path, target: Path | None, ledger: Ledger) -> None:
    """Check that a file that is not found is not merely hidden: beneath a lost mount every file seems missing.

    A target directory on the inbox's own file system is not checked: somebody may have made it anew.

    Raises:
        Retry: a directory was replaced by another.
    """
    source_directory, source_identity = _recorded(source.parent, ledger)
    target_directory, target_identity = _recorded(Path(decision.directory), ledger)
    if source_identity is not None and not os.path.lexists(source):
        _refuse_other_inode(source_directory, source_identity[1])
    if (
        target_identity is not None
        and source_identity is not None
        and target is None
        and source_identity[0] != target_identity[0]
    ):
        _refuse_other_inode(target_directory, target_identity[1])


def _recorded(directory: Path, ledger: Ledger) -> tuple[Path, tuple[int, int] | None]:
    """Return the recorded directory for a directory, with its device and inode.

    It is the directory itself, or the first recorded one above it, because subdirectories are not recorded.
    """
    directory = claims.inbox_of(directory)
    for path in (directory, *directory.parents):
        if (identity := ledger.recorded_directory(path)) is not None:
            return path, identity
    return directory, None


def _refuse_other_inode(directory: Path, inode: int) -> None:
    mount = mounts.of(directory)
    if mount is not None and mount.renumbers_inodes:
        return  # it has other inode numbers after each mount, so they prove nothing
    if not directory.is_dir() or os.stat(directory).st_ino != inode:
        raise Retry(f"{directory} is not the directory it was when files were moved from or to it")


def _is_same_entry(first: Path, second: Path) -> bool:
    """Return True if two paths lead to one directory entry, maybe through a link or a second mount."""
    if first.name != second.name:
        return False
    try:
        return os.path.samestat(os.stat(first.parent), os.stat(second.parent))
    except OSError:
        return False


def _update_note(decision: Unended, target: Path, ledger: Ledger) -> None:
    """Write the note of a file that has come into quarantine, or remove that of one that has left it."""
    if decision.outcome is Outcome.QUARANTINE:
        note = quarantine_notes.compose(decision.name, decision.reason, decision.detail, decision.digest, ledger.now())
        quarantine_notes.write(target, note, ledger.was_bound_for)
    elif _by_person(decision):
        quarantine_notes.remove(Path(decision.source), ledger.was_bound_for)


def _by_person(decision: Unended) -> bool:
    """Return True if a person had a filed file moved."""
    return decision.outcome is Outcome.RESTORED or decision.verdict is not None


def _find_moved_file(decision: Unended, source: Path, ledger: Ledger, assigned: set[str]) -> Path | None:
    """Return the path to which the file was moved, or None. An equal file that was filed earlier does not count."""
    free_names = 0
    for candidate in no_overwrite.candidates(decision.name, decision.digest):
        path = Path(decision.directory) / candidate
        if not os.path.lexists(path):
            free_names += 1
            if free_names == FREE_NAMES:
                return None
        elif str(path) in assigned or _is_same_entry(source, path):
            continue  # it belongs to another decision, or it is the source itself
        elif _is_decided_file(path, decision) or (_is_copy(path, decision) and not _holds_earlier_file(path, ledger)):
            return path
        elif _is_reservation(path, decision) and not _holds_earlier_file(path, ledger):
            with contextlib.suppress(OSError):
                path.unlink()
            free_names += 1
    raise AssertionError("candidates() does not end")


def _holds_earlier_file(path: Path, ledger: Ledger) -> bool:
    """Return True if the file at a path was filed by an earlier decision.

    If an unended decision was about to move that file away, it must still be the same file.
    """
    if claims.is_claimed(path.parent) or not ledger.should_hold(str(path)):
        return False
    return all(_is_decided_file(path, unended) for unended in ledger.unended_from(str(path)))


def _is_decided_file(path: Path, decision: Unended) -> bool:
    """Return True if a path leads to the very file of a decision: a rename or link keeps inode, size and time.

    The device is not compared, because its number may change at a reboot.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return False
    i = decision.identity
    return i is not None and (status.st_ino, status.st_size, signed(status.st_mtime_ns)) == (
        i.inode,
        i.size,
        i.mtime_ns,
    )


def _is_copy(path: Path, decision: Unended) -> bool:
    """Return True if a path leads to a copy of the file, on another file system or behind another mount of this one.

    A copy keeps digest and time, but not the inode. SMB keeps the time to 100 ns, FAT to 2 s.
    """
    status = os.lstat(path)
    i = decision.identity
    if i is None or decision.digest is None or status.st_size != i.size:
        return False
    if abs(signed(status.st_mtime_ns) - i.mtime_ns) > CLOCK_STEP_S * 1e9:
        return False
    if not stat.S_ISREG(status.st_mode):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == decision.digest


def _is_reservation(path: Path, decision: Unended) -> bool:
    """Return True for an empty file that reserves a name, on a file system without links.

    See :mod:`watcher.core.no_overwrite`.
    """
    status = os.lstat(path)
    age_s = status.st_mtime - decision.decided_at.timestamp()
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and age_s > -CLOCK_STEP_S
