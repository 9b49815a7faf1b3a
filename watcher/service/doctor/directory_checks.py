"""Check the configured directories and their file systems, and say what will work.

The checks change nothing and leave nothing behind. :mod:`watcher.service.doctor.directory_probe` takes the
measurements; this module judges them.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watcher.config.loader import Config
from watcher.core import mounts
from watcher.core.errors import Retry
from watcher.core.mounts import Mount
from watcher.inbox.scan import Inbox
from watcher.service.doctor import directory_probe

FREE_BYTES = 1 << 30
FREE_INODES = 10_000
"""Free bytes and inodes below which space is reported as a warning."""

CLOCK_S = 2.0
"""Seconds that a file server's clock may differ: as much as the coarsest file system rounds times."""

QUEUED_EVENTS = 16384
"""The kernel's default of ``max_queued_events``."""

NFS_CACHE_S = 3
"""Seconds that an NFS client caches the size of a file, unless ``acregmin`` says otherwise, see nfs(5)."""

MOVE_METHODS = {
    "renameat2": "a file gets its new name in one step, never over another file",
    "link": "no renameat2: files are moved by hard link and unlink",
    "reserve": "neither renameat2 nor hard links: a name is first reserved by an empty file",
}


@dataclass(frozen=True)
class Check:
    """The result of one check: its subject, how it is, and advice if something is wrong."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    result: str
    advice: str | None = None


def directories(settings: Config) -> Iterator[Check]:
    """Check the inbox, the output directories and the state directory, and then the moves between them.

    In shadow mode nothing moves. So the inbox need only be listed, and no probe is made there.
    """
    yield user(settings.state.path)
    i = settings.inbox
    yield inbox(Inbox(i.path, i.ignore, i.sentinel, recursive=i.recursive))
    if settings.mode == "shadow":
        yield from directory("state", settings.state.path)
    else:
        yield from _moves(settings)
    yield from file_systems(settings)


def _moves(settings: Config) -> Iterator[Check]:
    """Check each directory by itself, then the moves from the inbox to the others, and the events of the inbox."""
    output = settings.output
    names = ("sorted", "review", "quarantine", "rejected")
    places: dict[str, Path] = {name: getattr(output, name) for name in names}
    usable: dict[str, Path] = {}
    for name, path in {"inbox": settings.inbox.path, **places, "state": settings.state.path}.items():
        if name != "inbox" or path.is_dir():
            yield from directory(name, path)
        if path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK):
            usable[name] = path
            yield from moves_and_times(name, path, settings.inbox.settle_s)
    if "inbox" in usable:
        for name in places:
            yield move(name, usable["inbox"], places[name], exists=name in usable)
        yield from events(settings)


def user(state: Path) -> Check:
    """Check that this user owns the state directory, because access rights are checked for this user."""
    name = _user_name(os.geteuid())
    try:
        owner = os.stat(state).st_uid
    except OSError:
        return Check("ok", "user", f"{name}; access rights are checked for this user")
    if owner == os.geteuid():
        return Check("ok", "user", f"{name}, who also owns the state directory")
    return Check(
        "warn",
        "user",
        f"{name}, but {_user_name(owner)} owns the state directory: the checks below hold for {name} only",
        f"Run this as the daemon's user: sudo -u {_user_name(owner)} mednet-watcher doctor",
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def inbox(directory: Inbox) -> Check:
    """Check that the inbox can be listed, that its sentinel is there, and the directories below if it is recursive."""
    try:
        count = sum(1 for _ in directory.scan())
    except Retry as error:
        return Check("fail", "inbox", str(error), "Make it, mount it, or set inbox.path (or inbox.sentinel).")
    result = f"{directory.path} can be listed, {count} files wait in it"
    if not directory.recursive:
        return Check("ok", "inbox", result)
    read_only = sum(not os.access(directory.path / below, os.W_OK | os.X_OK) for below, _ in directory.folders)
    result += f" and in {len(directory.folders)} directories"
    if read_only or directory.directories_ignored:
        result += f"; {read_only} of them can not be written, {directory.directories_ignored} are not entered"
        advice = "Let the daemon's user write there, for example with a setgid group and a default ACL."
        return Check("warn", "inbox", result, advice)
    return Check("ok", "inbox", result)


def directory(name: str, path: Path) -> Iterator[Check]:
    """Check access rights, free space and inodes of a directory, or that the first start can make it."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        yield Check("fail", name, f"{existing} is no directory", "Remove that file, or set another path.")
        return
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        yield Check("fail", name, f"{existing} can not be written", "Give the daemon's user all rights there.")
    elif existing == path:
        yield Check("ok", name, f"{path} can be read and written")
    else:
        yield Check("ok", name, f"{path} is not there yet; it can be made in {existing}")
    yield space(name, os.statvfs(existing))


def space(name: str, status: os.statvfs_result) -> Check:
    """Check the free blocks and inodes, as far as the file system counts them."""
    free, inodes = status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None
    result = f"{free / 2**30:,.1f} GiB free" + (f", {inodes:,} inodes" if inodes is not None else "")
    if free == 0 or inodes == 0:
        return Check("fail", f"{name} space", result, "Make room: until then files stay in the inbox.")
    if free < FREE_BYTES or (inodes is not None and inodes < FREE_INODES):
        return Check("warn", f"{name} space", result, "Make room before it runs out: then files stay in the inbox.")
    return Check("ok", f"{name} space", result)


def moves_and_times(name: str, path: Path, settle_s: float) -> Iterator[Check]:
    """Check how files move in a directory, how exactly its file system keeps times, and its clock."""
    try:
        probed = directory_probe.probe(path)
    except OSError as error:
        advice = "Make sure that the daemon's user can write there."
        yield Check("fail", f"{name} probe", f"{path}: {error.strerror}", advice)
        return
    method = MOVE_METHODS[probed.move_method] + ("" if probed.hard_links else "; no hard links")
    safe = probed.move_method != "reserve"
    yield Check("ok" if safe else "warn", f"{name} moves", method, None if safe else "Let nobody else write there.")
    step_s = probed.time_step_s
    step = f"{step_s:g} s" if step_s > 1e-3 else f"{step_s * 1e9:.0f} ns"
    times = f"times are kept to {step}, the clock differs by {abs(probed.clock_ahead_s):.1f} s"
    if abs(probed.clock_ahead_s) > CLOCK_S + step_s:
        yield Check("warn", f"{name} times", times, "Set the clocks of this host and of the file server by NTP.")
    elif name == "inbox" and step_s > settle_s:
        advice = f"Set inbox.settle_s above {step_s:g}: a change within that time does not show."
        yield Check("warn", f"{name} times", times, advice)
    else:
        yield Check("ok", f"{name} times", times)


def move(name: str, inbox: Path, place: Path, *, exists: bool) -> Check:
    """Check if files move from the inbox to a directory by a rename, or must be copied."""
    subject = f"inbox to {name}"
    if not exists:
        return Check("ok", subject, "not tried, because the directory is not there yet")
    try:
        renamed = directory_probe.can_rename(inbox, place)
    except OSError as error:
        advice = "Make sure that the daemon's user can write to both."
        return Check("fail", subject, f"not possible: {error.strerror}", advice)
    if renamed:
        return Check("ok", subject, "one rename, on one file system")
    return Check("warn", subject, "copied, compared and then removed", "It is faster on the inbox's own file system.")


def events(settings: Config) -> Iterator[Check]:
    """Check that the kernel reports a file that is closed in the inbox, and the kernel's limits."""
    path, watch = settings.inbox.path, settings.inbox.watch
    mount = mounts.of(path)
    waits = f"a file waits up to {settings.inbox.scan_interval_s + settings.inbox.settle_s:g} s"
    if watch == "scan":
        yield Check("ok", "events", f"not used (inbox.watch is scan): {waits}")
        return
    try:
        delay_s = directory_probe.event_delay_s(path)
    except (Retry, OSError) as error:
        state: Literal["warn", "fail"] = "fail" if watch == "events" else "warn"
        yield Check(state, "events", f"{error}; only scans find files: {waits}", "Raise that limit with sysctl.")
        return
    if delay_s is None:
        result = f"the kernel reported none within {directory_probe.EVENT_S:g} s; only scans find files: {waits}"
        advice = "Set inbox.watch to scan, and inbox.scan_interval_s to the time that a file may wait."
        yield Check("warn", "events", result, advice)
    elif mount is not None and mount.remote and watch == "auto":
        result = f"on {mount.kind} only writes of this host are reported, so only scans find files: {waits}"
        yield Check("ok", "events", result)
    else:
        yield Check("ok", "events", f"reported {delay_s * 1000:.0f} ms after a file was closed")
    yield inotify_limits()


def inotify_limits() -> Check:
    """Check the kernel's limits of inotify."""
    names = ("max_user_watches", "max_user_instances", "max_queued_events")
    try:
        limits = {name: int(Path("/proc/sys/fs/inotify", name).read_text()) for name in names}
    except OSError:
        return Check("ok", "inotify", "its limits can not be read")
    result = ", ".join(f"{name} {value}" for name, value in limits.items())
    if limits["max_queued_events"] < QUEUED_EVENTS:
        advice = f"Set fs.inotify.max_queued_events to {QUEUED_EVENTS}: larger bursts cost an extra scan."
        return Check("warn", "inotify", result, advice)
    return Check("ok", "inotify", result)


def file_systems(settings: Config) -> Iterator[Check]:
    """Check the file systems of the inbox and of the state directory."""
    mount = mounts.of(settings.inbox.path)
    yield _not_mounted("inbox", mount) or _file_system("inbox", mount)
    if mount is not None and mount.kind in ("nfs", "nfs4"):
        yield nfs(mount, settings.inbox.settle_s)
    state = mounts.of(settings.state.path)
    if state is not None and state.remote:
        result = f"{state.kind} ({state.source})"
        advice = "Set state.path to a local disk: SQLite's locks do not work on network shares."
        yield Check("fail", "state file system", result, advice)
    else:
        yield _file_system("state", state)


def _not_mounted(name: str, mount: Mount | None) -> Check | None:
    if mount is None or mount.kind != "autofs":
        return None
    return Check("warn", f"{name} file system", "autofs, and nothing is mounted there now", "Is the server up?")


def _file_system(name: str, mount: Mount | None) -> Check:
    result = "unknown to the kernel" if mount is None else f"{mount.kind} ({mount.source})"
    return Check("ok", f"{name} file system", result)


def nfs(mount: Mount, settle_s: float) -> Check:
    """Check that files settle for longer than an NFS client caches their sizes.

    Otherwise a growing file looks as if it did not change.
    """
    values = [option.partition("=")[2] for option in mount.options if option.startswith(("acregmin=", "actimeo="))]
    cached_s = 0 if "noac" in mount.options else int(values[0]) if values and values[0].isdecimal() else NFS_CACHE_S
    result = f"the size of a file may be {cached_s} s old (acregmin), inbox.settle_s is {settle_s:g}"
    if settle_s > cached_s:
        return Check("ok", "nfs cache", result)
    return Check("warn", "nfs cache", result, f"Set inbox.settle_s above {cached_s}, or mount with a smaller acregmin.")
