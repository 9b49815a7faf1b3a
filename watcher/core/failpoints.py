"""Named places at which a test makes the daemon die, as a power cut would.

Off unless the environment has ``MEDNET_FAILPOINT=name`` or ``name:n`` (at the
n-th time that place is reached). The process is killed by SIGKILL: nothing is
flushed, closed or handed back.
"""

from __future__ import annotations

import os
import signal

NAMES = (
    "taken",  # shared mode: claimed by one rename
    "adopted",  # shared mode: taken over from a dead worker
    "claimed",  # settled, and handed to a decoder
    "decoded",
    "decided",  # in the ledger, not yet moved
    "renamed",  # moved in one step, the directories not yet synced
    "linked",  # file systems without renameat2: has two names
    "unlinked",
    "reserved",  # file systems without links, too: its name is taken by an empty file
    "mid-copy",  # other file system: half of the copy is written
    "published",  # other file system: the copy has its name, the source is still there
    "moved",  # a batch has moved, the directories not yet synced
    "synced",  # the directories are synced, the ledger does not know yet
    "restored",  # put back by a person's command, not yet to be seen in the inbox
    "judged",  # a person's verdict is in the ledger, nobody has been told
    "filed",  # in the ledger, not yet in the log
    "recovering",  # the disk is reconciled, the ledger not yet
)

_wanted, _, _count = os.environ.get("MEDNET_FAILPOINT", "").partition(":")
_left = int(_count or 1) if _wanted else 0


def reach(name: str) -> None:
    """Die here, if this is the place and the time."""
    global _left
    if name == _wanted:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
