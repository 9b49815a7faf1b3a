"""Tell which file system a path is on, from ``/proc/self/mountinfo`` (see proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")

REMOTE = frozenset(
    {
        *("9p", "acfs", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "ncpfs", "nfs"),
        *("nfs4", "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
    }
)
"""File system types that other machines can write to. ``autofs`` is a share that is not mounted at the moment.

FUSE types count as remote as well, except ``fuseblk``, which is a local disk.
"""

_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: where it is, the mount it lies on, its file system type, source and options."""

    id: int
    parent: int
    point: str
    kind: str
    source: str
    options: frozenset[str]

    @property
    def renumbers_inodes(self) -> bool:
        """True if directories get new inode numbers with each mount, as on FAT and most FUSE file systems."""
        return self.kind in ("vfat", "msdos", "exfat", "fuseblk", "fuse") or self.kind.startswith("fuse.")

    @property
    def remote(self) -> bool:
        """True if others can write there unnoticed by this kernel. inotify(7) reports local writers only."""
        return self.kind in REMOTE or self.kind == "fuse" or self.kind.startswith("fuse.")


def parse(text: str) -> list[Mount]:
    """Return the mounts that the text of a mountinfo file lists. Lines of another form are left out."""
    mounts = []
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(rest) >= 3 and fields[0].isdecimal() and fields[1].isdecimal():
            options = frozenset([*fields[5].split(","), *rest[2].split(",")])
            point, source = _unescape(fields[4]), _unescape(rest[1])
            mounts.append(Mount(int(fields[0]), int(fields[1]), point, rest[0], source, options))
    return mounts


def _unescape(text: str) -> str:
    """Undo the octal escapes of spaces, tabs, newlines and backslashes."""
    return _OCTAL_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), text)


def find(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """Return the mount that a path lies on, or None if no mount leads there (in a chroot, say).

    The search starts at the root and takes, at each step, the mount that was put over it last. The longest mount
    point is not enough, because another mount may hide it.

    Args:
        path: An absolute path without symbolic links.
        mounts: All mounts, in the order of the kernel.
    """
    ids = {mount.id for mount in mounts if mount.id != mount.parent}
    over = {(mount.parent, mount.point): mount for mount in mounts}
    roots = {mount.point: mount for mount in mounts if mount.parent not in ids}
    here: Mount | None = None
    for step in (*reversed(path.parents), path):
        here = here or roots.get(str(step))
        while here is not None and (top := over.get((here.id, str(step)), here)) is not here:
            here = top
    return here


def of(path: Path) -> Mount | None:
    """Return the mount that a path lies on now, or None if it is unknown."""
    try:
        text = os.fsdecode(MOUNTINFO.read_bytes())
    except OSError:
        return None
    return find(Path(os.path.realpath(path)), parse(text))


def read_only(path: Path) -> bool:
    """Return True if a path, or the part of it that exists, is on a read-only mount, if only for this process."""
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def write_advice(path: Path) -> str:
    """Return what an operator must do so that the daemon can write to a path."""
    if read_only(path):
        return (
            "It is read-only for the daemon: mount it writable, and under systemd name it in ReadWritePaths= "
            "(`systemctl edit mednet-watcher`)."
        )
    return "Give the daemon's user the right to write there."
