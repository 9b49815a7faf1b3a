"""Try out what a directory can do.

The files made for this have names that no daemon takes for its own, and are removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watcher.core import no_overwrite
from watcher.inbox.events import EventWatcher

EVENT_S = 3.0
"""Seconds to wait for an event."""

ODD_NS = 1_700_000_001_123_456_789
"""A time of which a coarse file system loses digits. Its second is odd, because FAT keeps even seconds only."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Abilities of a directory.

    ``time_step_s`` is the step in which its file system keeps times, ``clock_ahead_s`` how much its clock is ahead.
    """

    move_method: Literal["renameat2", "link", "reserve"]
    hard_links: bool
    time_step_s: float
    clock_ahead_s: float


@contextlib.contextmanager
def _temporary_file(directory: Path) -> Iterator[Path]:
    """Make an empty file, and remove it at the end.

    Its name is hidden, and ends like that of an unfinished copy, so every inbox ignores it under any settings.
    """
    path = directory / f".mednet-doctor-{uuid.uuid4().hex}{no_overwrite.PARTIAL}"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def probe(directory: Path) -> Probe:
    """Try out one directory.

    Raises:
        OSError: nothing can be written there.
    """
    with _temporary_file(directory) as one, _temporary_file(directory) as other:
        ahead_s = os.lstat(one).st_mtime - time.time()
        os.utime(one, ns=(ODD_NS, ODD_NS))
        return Probe(_move_method(one, other), _can_link(one), _time_step_s(os.lstat(one).st_mtime_ns), ahead_s)


def _move_method(one: Path, other: Path) -> Literal["renameat2", "link", "reserve"]:
    """Return how a file can be given a name only if that is free.

    Both files exist, so it is seen that a name in use is refused, not just that the call is known.
    """
    with contextlib.suppress(FileExistsError):
        if not no_overwrite.rename_in_one_call(one, other):
            return "link" if _can_link(one) else "reserve"
    return "renameat2"


def _can_link(path: Path) -> bool:
    link = path.with_name(path.name.replace(no_overwrite.PARTIAL, f"-2{no_overwrite.PARTIAL}"))
    try:
        os.link(path, link)
    except OSError:
        return False
    link.unlink(missing_ok=True)
    return True


def _time_step_s(kept_ns: int) -> float:
    """Return the step in which times are kept, from the time that a file system made of :data:`ODD_NS`."""
    return next((10**power / 1e9 for power in range(10) if kept_ns == ODD_NS - ODD_NS % 10**power), 2.0)


def can_rename(source: Path, target: Path) -> bool:
    """Return True if a file can be renamed from one directory into the other. Otherwise it must be copied.

    A rename is tried, because two mounts of one file system allow none between them.

    Raises:
        OSError: nothing can be written to one of the directories.
    """
    with _temporary_file(source) as path:
        renamed = target / path.name
        try:
            os.rename(path, renamed)
        except OSError:
            with _temporary_file(target):
                return False
        renamed.unlink(missing_ok=True)  # a daemon that starts removes what looks like an unfinished copy
        return True


def event_delay_s(inbox: Path) -> float | None:
    """Return the seconds from closing a file in the inbox until its event, or None if there was no event.

    Raises:
        Retry: the inbox can not be watched.
        OSError: nothing can be written there.
    """
    event = threading.Event()
    watcher = EventWatcher(inbox, event.set)
    watcher.start()
    try:
        began_s = time.monotonic()
        with _temporary_file(inbox) as path:
            while (left_s := began_s + EVENT_S - time.monotonic()) > 0:
                event.wait(left_s)
                event.clear()
                if path.name in watcher.take_names():
                    return time.monotonic() - began_s
            return None
    finally:
        watcher.stop()
