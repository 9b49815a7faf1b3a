"""Let only one daemon use a state directory. The kernel frees the lock when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from watcher.core import mounts
from watcher.core.errors import Exit, Fatal

BRIEF_HOLDER_S = 60.0
"""Seconds that a daemon waits for a process that holds the lock only briefly."""


class Lock:
    """A lock on the file ``path``, which also holds facts about the process that has the lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self, *, shared: bool = False, wait_s: float = BRIEF_HOLDER_S) -> None:
        """Take the lock.

        Args:
            shared: Take it together with other processes that ask for it shared, instead of alone.
            wait_s: Seconds to wait for a process that has taken it with :meth:`acquire_briefly`.

        Raises:
            Fatal: Another process holds the lock (exit code 6), or the file cannot be made (exit code 5).
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Fatal(
                f"the state directory {self._path.parent} can not be written: {error.strerror}",
                f"{mounts.write_advice(self._path.parent)} Or set state.path.",
                Exit.DIRECTORY,
            ) from error
        try:
            _flock(fd, shared=shared, until_s=time.monotonic() + wait_s)
        except OSError as error:
            os.close(fd)
            pid = (holder(self._path) or {}).get("pid", "unknown")
            raise Fatal(
                f"another daemon (process {pid}) already runs with this state directory",
                "Stop it first, or give this one an inbox and a state.path of its own.",
                Exit.ALREADY_RUNNING,
            ) from error
        os.ftruncate(fd, 0)  # drop the facts of the last holder
        self._fd = fd

    def try_acquire(self) -> bool:
        """Take the lock and return True, or return False if another process has it or it cannot be made."""
        try:
            self.acquire(wait_s=0)
        except Fatal:
            return False
        return True

    def acquire_briefly(self) -> bool:
        """Take the lock to recover what a dead holder left, or return False if another process has it.

        A daemon that starts meanwhile waits for the lock instead of giving up.

        Raises:
            Fatal: The file cannot be made (exit code 5).
        """
        try:
            self.acquire(wait_s=0)
        except Fatal as error:
            if error.code is not Exit.ALREADY_RUNNING:
                raise
            return False
        try:
            self.describe({"pid": os.getpid(), "passing": True})
        except Fatal:
            self.release()
            raise
        return True

    def describe(self, facts: dict[str, Any]) -> None:
        """Write the facts that ``status`` shows of the holder.

        They go over the old ones instead of into a new file, because a full disk has room for that.

        Raises:
            Fatal: The file cannot be written (exit code 5).
        """
        if self._fd is None:
            return
        line = json.dumps(facts).encode() + b"\n"
        try:
            os.pwrite(self._fd, line.ljust(os.fstat(self._fd).st_size), 0)
        except OSError as error:
            raise Fatal(
                f"the state directory {self._path.parent} can not be written: {error.strerror}",
                "Make room there, and check that its disk is sound.",
                Exit.DIRECTORY,
            ) from error

    def release(self) -> None:
        """Free the lock. The file stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def owner_lock_path(state: Path, owner: str) -> Path:
    """Return the path of the lock that an owner of decisions holds while it is alive."""
    return state / f"{owner}.lock"


def claim_directory(path: Path, *, shared: bool = False) -> int | None:
    """Lock a directory until the returned descriptor is closed.

    This keeps two daemons with different state directories from sorting one inbox.

    Returns:
        The descriptor, or None if the file system does not support such locks.

    Raises:
        Fatal: Another process has locked it (exit code 6).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        _flock(fd, shared=shared)
    except BlockingIOError as error:
        os.close(fd)
        raise Fatal(
            f"another daemon already sorts {path}",
            "Stop it first, or give this one another inbox.",
            Exit.ALREADY_RUNNING,
        ) from error
    except OSError:
        os.close(fd)
        return None
    return fd


def _flock(fd: int, tries: int = 5, *, shared: bool = False, until_s: float = 0.0) -> None:
    """Lock a descriptor, with several tries.

    :func:`holder` has the lock for an instant, and :meth:`Lock.acquire_briefly` has it for a while. The latter is
    waited for until the monotonic time ``until_s``.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        try:
            return fcntl.flock(fd, operation)
        except BlockingIOError:
            tries -= 1
            if tries <= 0 and not (time.monotonic() < until_s and _facts(fd).get("passing")):
                raise
        time.sleep(0.02)


def _facts(fd: int) -> dict[str, Any]:
    """Return the facts in a lock file, or an empty mapping if there are none."""
    try:
        facts = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def holder(path: Path) -> dict[str, Any] | None:
    """Return the facts about the process that holds the lock, or None if no process holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _facts(fd)
    else:
        return None
    finally:
        os.close(fd)
