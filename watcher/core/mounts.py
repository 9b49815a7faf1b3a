"""Which file system a path is on, by ``/proc/self/mountinfo`` (its form: proc_pid_mountinfo(5))."""

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
"""Types that are written to from beyond this kernel. Those of FUSE come with them, but for ``fuseblk``, a disk of ours.

``autofs`` is a share that is not mounted just now.
"""

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line: what is mounted where, upon which other mount."""

    id: int
    parent: int
    point: str
    kind: str
    source: str
    options: frozenset[str]

    @property
    def renumbers(self) -> bool:
        """Whether directories have other inode numbers after each mount: those of FAT and most of FUSE have."""
        return self.kind in ("vfat", "msdos", "exfat", "fuseblk", "fuse") or self.kind.startswith("fuse.")

    @property
    def remote(self) -> bool:
        """Whether others can write there without this kernel noticing: inotify(7) tells of local writers only."""
        return self.kind in REMOTE or self.kind == "fuse" or self.kind.startswith("fuse.")


def parse(text: str) -> list[Mount]:
    """Every line that has the form. Spaces, tabs, newlines and backslashes in paths are escaped there as octals."""
    mounts = []
    for line in text.split("\n"):
        where, _, what = line.partition(" - ")
        fields, told = where.split(" "), what.split(" ")
        if len(fields) >= 6 and len(told) >= 3 and fields[0].isdecimal() and fields[1].isdecimal():
            options = frozenset([*fields[5].split(","), *told[2].split(",")])
            point, source = _plain(fields[4]), _plain(told[1])
            mounts.append(Mount(int(fields[0]), int(fields[1]), point, told[0], source, options))
    return mounts


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), text)


def holding(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """What a path, absolute and without links, lies on; None where that can not be told (in a chroot, say).

    From the root on, at each step whatever was mounted last over it: a longer
    mount point does not count when it is hidden beneath another mount.
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
    """What a path lies on just now. None also where the kernel does not tell."""
    try:
        text = os.fsdecode(MOUNTINFO.read_bytes())
    except OSError:
        return None
    return holding(Path(os.path.realpath(path)), parse(text))


def read_only(path: Path) -> bool:
    """Whether a path, or what is there of it, lies on a read-only mount, if only for this process."""
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def let_write(path: Path) -> str:
    """What an operator does so that the daemon can write at a path."""
    if read_only(path):
        return (
            "It is read-only for the daemon: mount it writable, and under systemd name it in ReadWritePaths= "
            "(`systemctl edit mednet-watcher`)."
        )
    return "Give the daemon's user the right to write there."
