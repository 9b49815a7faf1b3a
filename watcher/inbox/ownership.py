"""Who this daemon is on its inbox: alone, or one of several workers. The locks that say so."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from watcher.core import lock
from watcher.core.errors import Exit, Fatal
from watcher.core.lock import Lock
from watcher.inbox import claims

ALONE = "daemon"
"""The owner that has an inbox for itself. Workers share its lock: while one lives, it does not."""


@dataclass(frozen=True)
class InboxOwnership:
    """The daemon's name as an owner of decisions, where its route works, and what frees its locks."""

    owner: str
    inbox: Path
    lock: Lock
    claims: claims.Claims | None
    leave: Callable[[], None]


def take_alone(inbox: Path, state: Path) -> InboxOwnership:
    """The only daemon on this inbox and this state directory.

    Raises:
        Fatal: exit code 6; there is another.
    """
    own = Lock(lock.owner_lock_path(state, ALONE))
    own.acquire()
    held = lock.claim_directory(inbox)
    return InboxOwnership(ALONE, inbox, own, None, partial(_leave, held, own))


def take_shared(inbox: Path, state: Path) -> InboxOwnership:
    """One of the workers on this inbox, with the first free number.

    Raises:
        Fatal: exit code 6; a daemon has the inbox for itself, or there are too many workers. Exit code 5; the
            inbox can not be written, or is shared by others with another state directory.
    """
    common = Lock(lock.owner_lock_path(state, ALONE))
    common.acquire(shared=True)
    held = lock.claim_directory(inbox, shared=True)
    claims.belong(inbox, state)
    for number in range(1, claims.MOST_WORKERS + 1):
        worker = f"worker-{number}"
        own = Lock(lock.owner_lock_path(state, worker))
        if own.try_acquire():
            mine = claims.Claims(inbox, worker)
            mine.path.mkdir(parents=True, exist_ok=True)
            claims.see(inbox, worker)
            return InboxOwnership(worker, mine.path, own, mine, partial(_leave, held, own, common))
    raise Fatal(f"{claims.MOST_WORKERS} workers sort {inbox} already", "Stop one of them first.", Exit.ALREADY_RUNNING)


def workers(state: Path) -> dict[str, Path]:
    """The locks of all workers there ever were, by name. Who holds one is told by :func:`lock.holder`."""
    return {path.stem: path for path in sorted(state.glob("worker-*.lock"))}


def _leave(held: int | None, *locks: Lock) -> None:
    if held is not None:
        os.close(held)
    for each in locks:
        each.release()
