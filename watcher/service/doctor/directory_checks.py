"""Looks at the configured directories and this host, and says what will work. Changes nothing, leaves nothing.

What is measured is measured by :mod:`watcher.service.doctor.directory_probe`; here it is judged.
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
"""Less than that is worth a warning."""

CLOCK_S = 2.0
"""How far a file server's clock may be off: as far as the coarsest file system's times are."""

QUEUE = 16384
"""The kernel's own ``max_queued_events``."""

NFS_CACHE_S = 3
"""For how long an NFS client takes a file's size from memory, if ``acregmin`` says nothing else, nfs(5)."""

WAYS = {
    "renameat2": "a file appears under its name in one step, never over another",
    "link": "no renameat2: files are moved by hard link and unlink",
    "reserve": "neither renameat2 nor hard links: a name is taken by an empty file first",
}


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, and what to do if that is not well."""

    state: Literal["ok", "warn", "fail"]
    what: str
    told: str
    advice: str | None = None


def directories(settings: Config) -> Iterator[Check]:
    """The inbox, the places and the state directory: each by itself, then the ways between them.

    In shadow mode nothing moves: the inbox need only be listed, and nothing is tried there.
    """
    yield user(settings.state.path)
    i = settings.inbox
    yield inbox(Inbox(i.path, i.ignore, i.sentinel, recursive=i.recursive))
    if settings.mode == "shadow":
        yield from directory("state", settings.state.path)
    else:
        yield from _ways(settings)
    yield from kinds(settings)


def _ways(settings: Config) -> Iterator[Check]:
    output = settings.output
    names = ("sorted", "review", "quarantine", "rejected")
    places: dict[str, Path] = {name: getattr(output, name) for name in names}
    found: dict[str, Path] = {}
    for name, path in {"inbox": settings.inbox.path, **places, "state": settings.state.path}.items():
        if name != "inbox" or path.is_dir():
            yield from directory(name, path)
        if path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK):
            found[name] = path
            yield from abilities(name, path, settings.inbox.settle_s)
    if "inbox" in found:
        for name in places:
            yield way(name, found["inbox"], places[name], there=name in found)
        yield from events(settings)


def user(state: Path) -> Check:
    """Rights are those of whoever asks: that should be who the daemon runs as."""
    name = _user(os.geteuid())
    try:
        owner = os.stat(state).st_uid
    except OSError:
        return Check("ok", "user", f"{name} asks; rights are looked at for this user")
    if owner == os.geteuid():
        return Check("ok", "user", f"{name}, who also owns the state directory")
    return Check(
        "warn",
        "user",
        f"{name} asks, but the state directory is {_user(owner)}'s: what follows holds for {name}",
        f"Ask as the daemon's user: sudo -u {_user(owner)} mednet-watcher doctor",
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def inbox(directory: Inbox) -> Check:
    """Can it be listed, and is its sentinel there?"""
    try:
        count = sum(1 for _ in directory.scan())
    except Retry as error:
        return Check("fail", "inbox", str(error), "Make it, mount it, or set inbox.path (or inbox.sentinel).")
    told = f"{directory.path} can be listed, {count} files wait in it"
    if not directory.recursive:
        return Check("ok", "inbox", told)
    shut = sum(not os.access(directory.path / below, os.W_OK | os.X_OK) for below, _ in directory.folders)
    told += f" and in {len(directory.folders)} directories"
    if shut or directory.directories_ignored:
        told += f"; {shut} of them can not be written, {directory.directories_ignored} are not entered"
        return Check("warn", "inbox", told, "Let the daemon's user write there: a setgid group and a default ACL do.")
    return Check("ok", "inbox", told)


def directory(name: str, path: Path) -> Iterator[Check]:
    """Rights, space and inodes. One that is not there yet is made by the first start, if that can be."""
    here = path
    while not here.exists() and here != here.parent:
        here = here.parent
    right = os.R_OK | os.W_OK | os.X_OK
    if not here.is_dir():
        yield Check("fail", name, f"{here} is no directory", "Remove what is in its way, or set another path.")
        return
    if not os.access(here, right):
        yield Check("fail", name, f"{here} can not be written", "Give the daemon's user all rights there.")
    elif here == path:
        yield Check("ok", name, f"{path} can be read and written")
    else:
        yield Check("ok", name, f"{path} is not there yet; it can be made in {here}")
    yield space(name, os.statvfs(here))


def space(name: str, found: os.statvfs_result) -> Check:
    """Free blocks and inodes, as far as the file system counts them."""
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
    told = f"{free / 2**30:,.1f} GiB free" + (f", {inodes:,} inodes" if inodes is not None else "")
    if free == 0 or inodes == 0:
        return Check("fail", f"{name} space", told, "Files stay in the inbox until there is room. Make some.")
    if free < FREE_BYTES or (inodes is not None and inodes < FREE_INODES):
        return Check("warn", f"{name} space", told, "Make room before it runs out: then files stay in the inbox.")
    return Check("ok", f"{name} space", told)


def abilities(name: str, path: Path, settle_s: float) -> Iterator[Check]:
    """How files move here, and how finely their times are kept."""
    try:
        found = directory_probe.ability(path)
    except OSError as error:
        yield Check("fail", f"{name} probe", f"{path}: {error.strerror}", "See that the daemon's user can write there.")
        return
    told = WAYS[found.way] + ("" if found.links else "; no hard links")
    safe = found.way != "reserve"
    yield Check("ok" if safe else "warn", f"{name} moves", told, None if safe else "Let nobody else write there.")
    fine = f"{found.grain_s:g} s" if found.grain_s > 1e-3 else f"{found.grain_s * 1e9:.0f} ns"
    grain = f"times are kept to {fine}, the clock is {abs(found.ahead_s):.1f} s off"
    if abs(found.ahead_s) > CLOCK_S + found.grain_s:
        yield Check("warn", f"{name} times", grain, "Set the clocks of this host and of the file server by NTP.")
    elif name == "inbox" and found.grain_s > settle_s:
        advice = f"Set inbox.settle_s above {found.grain_s:g}: a change within that time does not show."
        yield Check("warn", f"{name} times", grain, advice)
    else:
        yield Check("ok", f"{name} times", grain)


def way(name: str, inbox: Path, place: Path, *, there: bool) -> Check:
    """Whether files get there by their name alone, or as copies."""
    what = f"inbox to {name}"
    if not there:
        return Check("ok", what, "not tried, because it is not there yet")
    try:
        renamed = directory_probe.moves(inbox, place)
    except OSError as error:
        return Check("fail", what, f"not possible: {error.strerror}", "See that the daemon's user can write to both.")
    if renamed:
        return Check("ok", what, "one rename, on one file system")
    return Check("warn", what, "copied, compared and only then removed", "Faster on the inbox's own file system.")


def events(settings: Config) -> Iterator[Check]:
    """Whether the kernel tells of a file that is closed in the inbox, and what its limits are."""
    path, wanted = settings.inbox.path, settings.inbox.watch
    mount = mounts.of(path)
    waits = f"a file waits up to {settings.inbox.scan_interval_s + settings.inbox.settle_s:g} s"
    if wanted == "scan":
        yield Check("ok", "events", f"not asked for (inbox.watch is scan): {waits}")
        return
    try:
        taken = directory_probe.event_s(path)
    except (Retry, OSError) as error:
        state: Literal["warn", "fail"] = "fail" if wanted == "events" else "warn"
        yield Check(state, "events", f"{error}; the scan alone serves: {waits}", "Raise that limit with sysctl.")
        return
    if taken is None:
        told = f"the kernel did not tell within {directory_probe.EVENT_S:g} s; the scan alone serves: {waits}"
        yield Check("warn", "events", told, "Set inbox.watch to scan, and inbox.scan_interval_s to what may be waited.")
    elif mount is not None and mount.remote and wanted == "auto":
        told = f"on {mount.kind} only what this host writes is told of, so the scan alone serves: {waits}"
        yield Check("ok", "events", told)
    else:
        yield Check("ok", "events", f"told of a file {taken * 1000:.0f} ms after it was closed")
    yield limits()


def limits() -> Check:
    """The kernel's limits on watching."""
    names = ("max_user_watches", "max_user_instances", "max_queued_events")
    try:
        found = {name: int(Path("/proc/sys/fs/inotify", name).read_text()) for name in names}
    except OSError:
        return Check("ok", "inotify", "its limits are not shown to us")
    told = ", ".join(f"{name} {value}" for name, value in found.items())
    if found["max_queued_events"] < QUEUE:
        advice = f"Set fs.inotify.max_queued_events to {QUEUE}: bursts larger than that cost a scan."
        return Check("warn", "inotify", told, advice)
    return Check("ok", "inotify", told)


def kinds(settings: Config) -> Iterator[Check]:
    """Which file systems these are, and what is known of them."""
    mount = mounts.of(settings.inbox.path)
    yield _kind("inbox", mount) or _ok_kind("inbox", mount)
    if mount is not None and mount.kind in ("nfs", "nfs4"):
        yield nfs(mount, settings.inbox.settle_s)
    state = mounts.of(settings.state.path)
    if state is not None and state.remote:
        told = f"on {state.kind} ({state.source})"
        yield Check("fail", "state file system", told, "Set state.path to a local disk: SQLite's locks fail on shares.")
    else:
        yield _ok_kind("state", state)


def _kind(name: str, mount: Mount | None) -> Check | None:
    if mount is None or mount.kind != "autofs":
        return None
    return Check("warn", f"{name} file system", "autofs, and nothing is mounted there just now", "Is the server up?")


def _ok_kind(name: str, mount: Mount | None) -> Check:
    told = "not told by the kernel" if mount is None else f"{mount.kind} ({mount.source})"
    return Check("ok", f"{name} file system", told)


def nfs(mount: Mount, settle_s: float) -> Check:
    """A client that remembers sizes for longer than we wait takes a growing file for a quiet one."""
    given = [option.partition("=")[2] for option in mount.options if option.startswith(("acregmin=", "actimeo="))]
    cached_s = 0 if "noac" in mount.options else int(given[0]) if given and given[0].isdecimal() else NFS_CACHE_S
    told = f"sizes of files may be {cached_s} s old (acregmin), inbox.settle_s is {settle_s:g}"
    if settle_s > cached_s:
        return Check("ok", "nfs cache", told)
    return Check("warn", "nfs cache", told, f"Set inbox.settle_s above {cached_s}, or mount with a smaller acregmin.")
