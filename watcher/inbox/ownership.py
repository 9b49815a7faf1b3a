"""Take an inbox for one daemon alone, or for one of several workers, and hold the locks for it."""

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
"""The owner that has an inbox for itself. Workers share its lock, so it can not start while one of them lives."""


@dataclass(frozen=True)
class InboxOwnership:
    """The right of this daemon to sort an inbox.

    ``owner`` is its name in the ledger. ``inbox`` is the directory whose files it sorts: the inbox itself, or the
    directory of its ``claims`` in shared mode. ``lock`` is its own lock; ``release`` frees it and all others.
    """

    owner: str
    inbox: Path
    lock: Lock
    claims: claims.Claims | None
    release: Callable[[], None]


def take_alone(inbox: Path, state: Path) -> InboxOwnership:
    """Become the only daemon on this inbox and this state directory.

    Raises:
        Fatal: exit code 6; there is another daemon.
    """
    own_lock = Lock(lock.owner_lock_path(state, ALONE))
    own_lock.acquire()
    inbox_fd = lock.claim_directory(inbox)
    return InboxOwnership(ALONE, inbox, own_lock, None, partial(_release, inbox_fd, own_lock))


def take_shared(inbox: Path, state: Path) -> InboxOwnership:
    """Become one of the workers on this inbox, with the first free number.

    Raises:
        Fatal: exit code 6; a daemon has the inbox for itself, or there are too many workers. Exit code 5; the
            inbox can not be written, or is shared by workers with another state directory.
    """
    shared_lock = Lock(lock.owner_lock_path(state, ALONE))
    shared_lock.acquire(shared=True)
    inbox_fd = lock.claim_directory(inbox, shared=True)
    claims.bind_to_state(inbox, state)
    for number in range(1, claims.MOST_WORKERS + 1):
        worker = f"worker-{number}"
        own_lock = Lock(lock.owner_lock_path(state, worker))
        if own_lock.try_acquire():
            own_claims = claims.Claims(inbox, worker)
            own_claims.path.mkdir(parents=True, exist_ok=True)
            claims.require_directory(inbox, worker)
            release = partial(_release, inbox_fd, own_lock, shared_lock)
            return InboxOwnership(worker, own_claims.path, own_lock, own_claims, release)
    raise Fatal(f"{claims.MOST_WORKERS} workers sort {inbox} already", "Stop one of them first.", Exit.ALREADY_RUNNING)


def workers(state: Path) -> dict[str, Path]:
    """Return the lock files of all workers that ever ran, by name. :func:`lock.holder` tells which run now."""
    return {path.stem: path for path in sorted(state.glob("worker-*.lock"))}


def _release(inbox_fd: int | None, *locks: Lock) -> None:
    if inbox_fd is not None:
        os.close(inbox_fd)
    for held_lock in locks:
        held_lock.release()
