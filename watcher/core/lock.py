"""One daemon for one state directory. The kernel frees the lock when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from watcher.core import mounts
from watcher.core.errors import Exit, Fatal

PASSING_S = 60.0
"""How long one who comes to stay waits for one who passes by."""


class Lock:
    """Holds ``path`` until :meth:`release`, with facts of the holder in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self, *, shared: bool = False, wait_s: float = PASSING_S) -> None:
        """Take the lock, for this process alone or (``shared``) with others that take it so.

        Who merely reconciles what a dead holder left (see :meth:`pass_by`) is waited for, up to ``wait_s`` seconds.

        Raises:
            Fatal: exit code 6 if another process holds it, 5 if it can not be made.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Fatal(
                f"the state directory {self._path.parent} can not be written: {error.strerror}",
                f"{mounts.let_write(self._path.parent)} Or set state.path.",
                Exit.DIRECTORY,
            ) from error
        try:
            _take(fd, shared=shared, until_s=time.monotonic() + wait_s)
        except OSError as error:
            os.close(fd)
            pid = (holder(self._path) or {}).get("pid", "unknown")
            raise Fatal(
                f"another daemon (process {pid}) already runs with this state directory",
                "Stop it first, or give this one an inbox and a state.path of its own.",
                Exit.ALREADY_RUNNING,
            ) from error
        os.ftruncate(fd, 0)  # what the last holder wrote of itself
        self._fd = fd

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it. False if somebody has, or it can not be made."""
        try:
            self.acquire(wait_s=0)
        except Fatal:
            return False
        return True

    def pass_by(self) -> bool:
        """The same for a moment: to reconcile what a dead holder left. Who comes to stay waits meanwhile.

        Raises:
            Fatal: exit code 5; it can not be made.
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
        """Write what ``status`` shows of the holder, over what stands there: of a full disk that is ours already.

        Raises:
            Fatal: exit code 5; it can not be written.
        """
        if self._fd is None:
            return
        told = json.dumps(facts).encode() + b"\n"
        try:
            os.pwrite(self._fd, told.ljust(os.fstat(self._fd).st_size), 0)
        except OSError as error:
            raise Fatal(
                f"the state directory {self._path.parent} can not be written: {error.strerror}",
                "Make room there, and see that its disk is sound.",
                Exit.DIRECTORY,
            ) from error

    def release(self) -> None:
        """Free the lock. The file stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def path_of(state: Path, owner: str) -> Path:
    """The lock that an owner of decisions holds as long as it is alive."""
    return state / f"{owner}.lock"


def claim_directory(path: Path, *, shared: bool = False) -> int | None:
    """Lock a directory for this process, as long as the descriptor returned is open.

    Two daemons with different state directories must not sort one inbox. None
    where the file system knows no such locks.

    Raises:
        Fatal: exit code 6; another process has it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        _take(fd, shared=shared)
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


def _take(fd: int, tries: int = 5, *, shared: bool = False, until_s: float = 0.0) -> None:
    """Lock. Tries again: somebody asking :func:`holder` has it for an instant, or somebody passes by."""
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        try:
            return fcntl.flock(fd, kind)
        except BlockingIOError:
            tries -= 1
            if tries <= 0 and not (time.monotonic() < until_s and _facts(fd).get("passing")):
                raise
        time.sleep(0.02)


def _facts(fd: int) -> dict[str, Any]:
    try:
        facts = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def holder(path: Path) -> dict[str, Any] | None:
    """What the present holder wrote of itself, or None when nobody holds the lock."""
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
