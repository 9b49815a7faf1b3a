"""Start-up reconciliation of ledger and disk, before the first file is touched.

Every decision without an ending is from a run that died around the move. The
file either moved (then the move is finished and recorded), or it did not (then
it is still in the inbox and takes the straight way again), or it is nowhere.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from watcher import failpoints, unique
from watcher.ledger import Ending, Ledger, Unended


def recover(ledger: Ledger, inbox: Path) -> list[Ending]:
    """Give every unended decision its ending, in the ledger and on disk, and return them."""
    endings = [_ending(decision, inbox, ledger) for decision in ledger.unended()]
    if endings:
        failpoints.reach("recovering")
        ledger.ended(endings)
    return endings


def _ending(decision: Unended, inbox: Path, ledger: Ledger) -> Ending:
    source = inbox / decision.name
    target = _landed(decision, inbox, ledger)
    waiting = _is(source, decision)
    if target is None and waiting:
        return Ending(decision.decision, "returned", None, "the daemon died before the file moved")
    if target is None and os.path.lexists(source):
        return Ending(
            decision.decision, "returned", None, "the file in the inbox has changed since it was decided upon"
        )
    if target is None:
        return Ending(decision.decision, "missing", None, "neither in the inbox nor at its destination")
    if waiting:
        # Linked or copied to its place, and not yet unlinked here.
        try:
            unique.unlink_or_undo(source, target)
        except OSError as error:
            return Ending(decision.decision, "returned", None, f"could not be removed from the inbox: {error.strerror}")
        unique.sync_directory(inbox)
    unique.sync_directory(target.parent)
    return Ending(decision.decision, "filed", str(target), "found filed after the daemon died")


def _landed(decision: Unended, inbox: Path, ledger: Ledger) -> Path | None:
    """Where the move left the file, or None. An equal file that was filed before is not it."""
    free = 0
    for candidate in unique.candidates(decision.name, decision.digest):
        path = Path(decision.directory) / candidate
        if not os.path.lexists(path):
            free += 1  # whatever took that name when the file moved may be gone by now
            if free == 3:
                return None
        elif _is(path, decision) or (_is_copy(path, decision, inbox) and not ledger.has_filed(str(path))):
            return path
    return None


def _is(path: Path, decision: Unended) -> bool:
    """The very file that was decided upon: a rename or a link keeps inode, size and time.

    Not compared: the device, whose number may be another after a reboot.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return False
    i = decision.identity
    return i is not None and (found.st_ino, found.st_size, found.st_mtime_ns) == (i.inode, i.size, i.mtime_ns)


def _is_copy(path: Path, decision: Unended, inbox: Path) -> bool:
    """A copy on another file system has the digest and the time, not the inode."""
    found = os.lstat(path)
    if found.st_dev == os.stat(inbox).st_dev:
        return False
    i = decision.identity
    if i is None or decision.digest is None or (found.st_size, found.st_mtime_ns) != (i.size, i.mtime_ns):
        return False
    if not stat.S_ISREG(found.st_mode):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == decision.digest
