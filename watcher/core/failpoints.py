"""Let a test kill the daemon at a named place, as a power cut would.

Nothing happens unless the environment variable ``MEDNET_FAILPOINT`` is set to ``name``, or to ``name:n`` for the n-th
time that the place is reached. SIGKILL ends the process, so that nothing is flushed, closed or handed back.
"""

from __future__ import annotations

import os
import signal

NAMES = (
    "taken",  # shared mode: a file is claimed by one rename
    "adopted",  # shared mode: a file of a dead worker is taken over
    "claimed",  # a complete file is handed to a decoder
    "decoded",
    "decided",  # the decision is in the ledger, the file is not moved yet
    "renamed",  # the file has moved in one step, the directories are not synced yet
    "linked",  # file systems without renameat2: the file has two names
    "unlinked",
    "reserved",  # file systems without links as well: an empty file holds the new name
    "mid-copy",  # other file system: half of the copy is written
    "published",  # other file system: the copy has its name, the source is still there
    "moved",  # a batch has moved, the directories are not synced yet
    "synced",  # the directories are synced, the ledger does not know yet
    "restored",  # a person's command put the file back, the inbox does not show it yet
    "judged",  # a person's verdict is in the ledger, nothing else knows of it
    "filed",  # the move is in the ledger, not in the log yet
    "recovering",  # the files are recovered, the ledger does not know yet
)

_wanted, _, _count = os.environ.get("MEDNET_FAILPOINT", "").partition(":")
_left = int(_count or 1) if _wanted else 0


def reach(name: str) -> None:
    """Kill this process if it is to die at the place ``name``."""
    global _left
    if name == _wanted:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
