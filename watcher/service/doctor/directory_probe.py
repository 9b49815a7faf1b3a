"""Tries out what a directory can do, with files that no daemon takes for its own, and that are gone at the end."""

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
"""How long an event may take."""

ODD_NS = 1_700_000_001_123_456_789
"""A time whose every digit a coarse file system would lose. The second is odd: FAT keeps even ones."""


@dataclass(frozen=True, slots=True)
class Ability:
    """What was found. ``grain_s`` is how finely the file system keeps times, ``ahead_s`` by how much its clock is."""

    way: Literal["renameat2", "link", "reserve"]
    links: bool
    grain_s: float
    ahead_s: float


@contextlib.contextmanager
def _file(directory: Path) -> Iterator[Path]:
    """An empty file with a hidden name that every inbox leaves alone, under any settings (as unfinished copies)."""
    path = directory / f".mednet-doctor-{uuid.uuid4().hex}{no_overwrite.PARTIAL}"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def ability(directory: Path) -> Ability:
    """Try out one directory.

    Raises:
        OSError: nothing can be written there.
    """
    with _file(directory) as one, _file(directory) as other:
        ahead_s = os.lstat(one).st_mtime - time.time()
        os.utime(one, ns=(ODD_NS, ODD_NS))
        return Ability(_way(one, other), _links(one), _grain_s(os.lstat(one).st_mtime_ns), ahead_s)


def _way(one: Path, other: Path) -> Literal["renameat2", "link", "reserve"]:
    """How a file gets a name here only if it is free. Known to be refused while it is taken, not just accepted."""
    with contextlib.suppress(FileExistsError):
        if not no_overwrite.rename_in_one_call(one, other):
            return "link" if _links(one) else "reserve"
    return "renameat2"


def _links(path: Path) -> bool:
    twin = path.with_name(path.name.replace(no_overwrite.PARTIAL, f"-2{no_overwrite.PARTIAL}"))
    try:
        os.link(path, twin)
    except OSError:
        return False
    twin.unlink(missing_ok=True)
    return True


def _grain_s(kept_ns: int) -> float:
    """How finely a time was kept, from what became of :data:`ODD_NS`."""
    return next((10**power / 1e9 for power in range(10) if kept_ns == ODD_NS - ODD_NS % 10**power), 2.0)


def moves(source: Path, target: Path) -> bool:
    """Whether a file goes from one directory to the other by its name alone. Else it must be copied.

    Tried, not guessed: two mounts of one file system know no rename between them.

    Raises:
        OSError: nothing can be written to one of them.
    """
    with _file(source) as one:
        there = target / one.name
        try:
            os.rename(one, there)
        except OSError:
            with _file(target):
                return False
        there.unlink(missing_ok=True)  # a daemon that starts clears what looks unfinished
        return True


def event_s(inbox: Path) -> float | None:
    """Seconds from closing a file in the inbox until the kernel told of it, or None: it did not.

    Raises:
        Retry: the inbox can not be watched.
        OSError: nothing can be written there.
    """
    told = threading.Event()
    watch = EventWatcher(inbox, told.set)
    watch.start()
    try:
        began = time.monotonic()
        with _file(inbox) as path:
            while (left := began + EVENT_S - time.monotonic()) > 0:
                told.wait(left)
                told.clear()
                if path.name in watch.take_names():
                    return time.monotonic() - began
            return None
    finally:
        watch.stop()
