"""Which file system a path is on. What is parsed here is mountinfo as kernels wrote it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from watcher.core import mounts
from watcher.core.mounts import find, parse

PLAIN = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
24 27 0:6 / /dev rw,relatime shared:2 - devtmpfs devtmpfs rw,size=12334460k
27 1 254:0 / / rw,relatime shared:1 master:7 - ext4 /dev/vda rw,discard
30 27 0:40 / /srv/inbox rw,relatime shared:9 - nfs4 nas:/export/radiology rw,vers=4.2,acregmin=10
31 30 0:41 / /srv/inbox/local rw - tmpfs tmpfs rw
32 27 254:1 /sub /srv/bound rw - ext4 /dev/vdb rw
"""


def kind(path: str, text: str = PLAIN) -> str | None:
    found = find(Path(path), parse(text))
    return found.kind if found else None


class TestFind:
    @pytest.mark.parametrize(
        ("path", "wanted"),
        [
            ("/", "ext4"),
            ("/srv", "ext4"),
            ("/srv/inbox", "nfs4"),
            ("/srv/inbox/deep/er", "nfs4"),
            ("/srv/inbox-2", "ext4"),
            ("/srv/inbox/local", "tmpfs"),
            ("/srv/inbox/local/x", "tmpfs"),
            ("/srv/bound/x", "ext4"),
            ("/dev/x", "devtmpfs"),
        ],
    )
    def test_nested_and_bind_mounts(self, path: str, wanted: str) -> None:
        """A path lies on the mount that it passes last; a name that only begins like a mount point is not below."""
        assert kind(path) == wanted

    def test_bind_of_a_share_is_a_share(self) -> None:
        """A directory of a share that is bound elsewhere is still the share's."""
        assert kind("/inbox/x", PLAIN + "33 27 0:40 /in /inbox rw - nfs4 nas:/export/radiology rw\n") == "nfs4"

    def test_later_mount_over_the_same_point_hides_the_first(self) -> None:
        """Of two mounts at one point the upper counts, and what was mounted below the lower one is out of sight."""
        text = PLAIN + "40 30 0:50 / /srv/inbox rw - cifs //nas/in rw\n"
        assert kind("/srv/inbox/x", text) == "cifs"
        assert kind("/srv/inbox/local/x", text) == "cifs"

    def test_mount_over_a_parent_hides_those_below(self) -> None:
        """A mount over a directory hides the mounts in it that were there before, however long their paths."""
        assert kind("/srv/inbox/x", PLAIN + "41 27 0:51 / /srv rw - xfs /dev/vdc rw\n") == "xfs"

    def test_automounter(self) -> None:
        """Below an automounter it is the share once that is mounted, and autofs as long as it is not."""
        auto = PLAIN + "50 27 0:60 / /net rw - autofs systemd-1 rw,fd=30,direct\n"
        assert kind("/net/nas", auto) == "autofs"
        assert kind("/net/nas/x", auto + "51 50 0:61 / /net/nas rw - nfs nas:/ rw\n") == "nfs"
        assert kind("/net/x", auto + "52 50 0:61 / /net rw - cifs //nas/in rw\n") == "cifs"

    def test_root_mounted_over(self) -> None:
        """A root that was mounted over another (as an initramfs leaves it) is the upper one."""
        assert kind("/x", "1 1 0:2 / / rw - rootfs rootfs rw\n27 1 254:0 / / rw - ext4 /dev/vda rw\n") == "ext4"

    def test_chroot_knows_only_what_is_mounted_within(self) -> None:
        """If nothing is mounted at the root, paths below the other mount points have a mount, and the rest has none."""
        text = "30 27 0:40 / /inbox rw - nfs nas:/x rw\n31 30 0:41 / /inbox/a rw - tmpfs tmpfs rw\n"
        assert [kind(path, text) for path in ("/", "/inbox/x", "/inbox/a/x")] == [None, "nfs", "tmpfs"]


class TestParse:
    def test_escapes(self) -> None:
        r"""Space, tab, newline and backslash come as octals: \040 is one, \134040 is a backslash and three digits."""
        line = r"30 27 0:40 / /my\040in\011b\012o\134040x rw - cifs //nas/a\040b rw"
        [mount] = parse(line + "\n")
        assert (mount.point, mount.source) == ("/my in\tb\no\\040x", "//nas/a b")
        assert kind("/my in\tb\no\\040x/file", PLAIN + line) == "cifs"

    def test_any_number_of_optional_fields(self) -> None:
        """Before the hyphen there may be none, or several; the options of mount and file system are told together."""
        first, *_, last = parse(PLAIN)
        assert (first.kind, last.source) == ("proc", "/dev/vdb")
        nfs = next(mount for mount in parse(PLAIN) if mount.kind == "nfs4")
        assert nfs.options >= {"relatime", "acregmin=10"}

    @pytest.mark.parametrize(
        "line", ["", "rubbish", "1 2 3 - ext4", "a b 0:1 / /x rw - nfs n rw", "30 27 0:40 / /x rw"]
    )
    def test_other_lines_are_passed_over(self, line: str) -> None:
        """A line of another form is nobody's mount, and does not hide the others."""
        assert parse(f"{line}\n{PLAIN}") == parse(PLAIN)

    def test_empty(self) -> None:
        """Nothing known is nothing known."""
        assert kind("/x", "") is None


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        *((name, True) for name in ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "vboxsf", "autofs", "ceph")),
        *((name, True) for name in ("fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.rclone")),
        *((name, False) for name in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "exfat", "vfat")),
    ],
)
def test_where_others_write(name: str, remote: bool) -> None:
    """Shares of network, virtual machine and FUSE are written to from elsewhere; disks are not, also through FUSE."""
    [mount] = parse(f"30 27 0:40 / /x rw - {name} source rw")
    assert mount.remote is remote


def test_of_this_machine() -> None:
    """The kernel's own file can be read here, and /proc is what it says."""
    proc = mounts.of(Path("/proc/self"))
    assert proc is not None and proc.kind == "proc"
    assert mounts.of(Path("/nowhere/at/all")) is not None


def test_no_mountinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the file nothing is known, and nothing fails."""
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "absent")
    assert mounts.of(tmp_path) is None


def test_advice_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a read-only mount, or below one, the advice is the mount and systemd's key; else it is the rights."""
    assert "right to write" in mounts.write_advice(tmp_path / "not" / "made")
    asked = []

    def statvfs(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert "ReadWritePaths=" in mounts.write_advice(tmp_path / "not" / "made")
    assert asked == [tmp_path]
