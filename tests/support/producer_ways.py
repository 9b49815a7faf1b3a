"""The ways in which files get into an inbox: with the programs that people use, as they are.

Each way is a function that brings every file of a :class:`Load` into the inbox, and returns when it has.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.producer_servers import Server, Starter, dicom, ftp, samba, smb_client, ssh, ssh_options, webdav

PAUSE_S = 3.0
"""Longer than the ``settle_s`` of 2 s: a writer that pauses for so long looks as if it had ended."""

OPEN_S = 120
"""How long a file is kept open by a writer that takes its time: longer than the daemon's patience (30 s)."""


@dataclass
class Load:
    """Files to bring: they lie complete in ``source``, on the inbox's file system; ``scratch`` is on another."""

    source: Path
    inbox: Path
    names: list[str]
    scratch: Path
    server: Server | None = None
    freeze: Callable[[int], None] = lambda number: None
    """Sends the daemon a signal."""

    @property
    def paths(self) -> list[str]:
        """The files, to be named on a command line."""
        return [str(self.source / name) for name in self.names]

    @property
    def port(self) -> int:
        """The server's."""
        assert self.server is not None
        return self.server.port


@dataclass(frozen=True)
class Way:
    """One way: what is run, what that needs, and the server that it talks to."""

    name: str
    told: str
    bring: Callable[[Load], None]
    needs: tuple[str, ...] = ()
    server: Starter | None = None
    renames: bool = field(default=False)
    """The files get other names and other bytes: they are known by what they are inside."""


def _run(*words: str | Path, given: str | None = None) -> None:
    ended = subprocess.run([str(w) for w in words], input=given, text=True, check=False, capture_output=True)
    if ended.returncode:
        raise RuntimeError(f"{words[0]}: {ended.returncode}: {ended.stdout}{ended.stderr}"[:2000])


def cp(load: Load) -> None:
    _run("cp", *load.paths, load.inbox)


def mv(load: Load) -> None:
    _run("mv", *load.paths, load.inbox)


def mv_across(load: Load) -> None:
    _run("mv", *load.paths, load.scratch)
    _run("mv", *(load.scratch / name for name in load.names), load.inbox)


def install(load: Load) -> None:
    _run("install", "-m", "640", *load.paths, load.inbox)


def link(load: Load) -> None:
    for name in load.names:
        _run("ln", load.source / name, load.inbox / name)
        (load.source / name).unlink()


def rsync(load: Load) -> None:
    _run("rsync", "-a", "--bwlimit=20000", *load.paths, load.inbox)


def rsync_inplace(load: Load) -> None:
    _run("rsync", "-a", "--inplace", "--bwlimit=4000", *load.paths, load.inbox)


def scp(load: Load) -> None:
    assert load.server is not None
    _run("scp", "-q", "-l", "80000", *ssh_options(load.server), *load.paths, f"127.0.0.1:{load.inbox}/")


def _sftp(load: Load, lines: list[str]) -> None:
    assert load.server is not None
    _run("sftp", "-q", "-b", "-", *ssh_options(load.server), "127.0.0.1", given="\n".join(lines) + "\n")


def sftp(load: Load) -> None:
    _sftp(load, [f"put {load.source / name} {load.inbox / name}" for name in load.names])


def sftp_renamed(load: Load) -> None:
    puts = ((f"put {load.source / n} {load.inbox / n}.part", load.inbox / n) for n in load.names)
    _sftp(load, [line for put, path in puts for line in (put, f"rename {path}.part {path}")])


def _smb(load: Load, lines: list[str]) -> None:
    assert load.server is not None
    _run(*smb_client(load.server, "-c", "; ".join(lines)))


def smb(load: Load) -> None:
    _smb(load, [f"put {load.source / name} {name}" for name in load.names])


def smb_renamed(load: Load) -> None:
    _smb(load, [line for n in load.names for line in (f"put {load.source / n} {n}.tmp", f"rename {n}.tmp {n}")])


def curl_ftp(load: Load) -> None:
    address = f"ftp://127.0.0.1:{load.port}/{load.inbox.name}/"
    _run("curl", "-sS", "--fail", "--limit-rate", "8M", "-T", f"{{{','.join(load.paths)}}}", address)


def curl_webdav(load: Load) -> None:
    address = f"http://127.0.0.1:{load.port}/{load.inbox.name}/"
    _run("curl", "-sS", "--fail", "--limit-rate", "8M", "-T", f"{{{','.join(load.paths)}}}", address)


def unzip(load: Load) -> None:
    archive = load.scratch / "files.zip"
    _run("zip", "-q", "-j", archive, *load.paths)
    _run("unzip", "-q", archive, "-d", load.inbox)


def tar(load: Load) -> None:
    archive = load.scratch / "files.tar.gz"
    _run("tar", "-czf", archive, "-C", load.source, *load.names)
    _run("tar", "-xzf", archive, "-C", load.inbox)


def _at_once(load: Load, write: Callable[[Path, bytes], None]) -> None:
    """Every file by a thread of its own."""
    threads = [
        threading.Thread(target=write, args=(load.inbox / name, (load.source / name).read_bytes()))
        for name in load.names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def slow_writer(load: Load) -> None:
    def write(path: Path, data: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(PAUSE_S)
            file.write(data[len(data) // 2 :])

    _at_once(load, write)


def closing_writer(load: Load) -> None:
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        time.sleep(PAUSE_S)
        with path.open("ab") as file:
            file.write(data[len(data) // 2 :])

    _at_once(load, write)


def open_for_long(load: Load) -> None:
    def write(path: Path, data: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            for part in range(OPEN_S):
                file.write(data[len(data) * part // OPEN_S : len(data) * (part + 1) // OPEN_S])
                time.sleep(1)

    _at_once(load, write)


def overwrite(load: Load) -> None:
    """The daemon stands still meanwhile, so that the first file is certain to wait."""
    load.freeze(signal.SIGSTOP)
    try:
        for number, name in enumerate(load.names):
            other = load.source / load.names[number - 1]
            shutil.copyfile(other, load.inbox / name)
        for number, name in enumerate(load.names):
            if number % 2:
                _run("cp", load.source / name, load.inbox / name)
            else:
                shutil.copyfile(load.source / name, load.inbox / f"{name}.part")
                _run("mv", load.inbox / f"{name}.part", load.inbox / name)
    finally:
        load.freeze(signal.SIGCONT)


def storescu(load: Load) -> None:
    for name in load.names:
        _run("img2dcm", load.source / name, load.scratch / f"{name}.dcm")
    files = [load.scratch / f"{name}.dcm" for name in load.names]
    _run("storescu", "-xy", "127.0.0.1", str(load.port), *files)


WAYS = (
    Way("cp", "cp FILES inbox", cp),
    Way("mv", "mv, on one file system", mv),
    Way("mv-across", "mv, from another file system", mv_across),
    Way("install", "install -m 640", install),
    Way("link", "ln, then the first name is removed", link),
    Way("rsync", "rsync, which renames when a file is whole", rsync, ("rsync",)),
    Way("rsync-inplace", "rsync --inplace, at 4 MB/s", rsync_inplace, ("rsync",)),
    Way("scp", "scp to OpenSSH, at 10 MB/s", scp, ("scp", "sshd"), ssh),
    Way("sftp", "sftp to OpenSSH: put", sftp, ("sftp", "sshd"), ssh),
    Way("sftp-rename", "sftp to OpenSSH: put as .part, rename", sftp_renamed, ("sftp", "sshd"), ssh),
    Way("smb", "smbclient to Samba: put", smb, ("smbclient", "smbd", "smbpasswd"), samba),
    Way(
        "smb-rename",
        "smbclient to Samba: put as .tmp, rename",
        smb_renamed,
        ("smbclient", "smbd", "smbpasswd"),
        samba,
    ),
    Way("ftp", "curl -T to vsftpd, at 8 MB/s", curl_ftp, ("curl", "vsftpd"), ftp),
    Way("webdav", "curl -T to nginx (WebDAV), at 8 MB/s", curl_webdav, ("curl", "nginx"), webdav),
    Way("unzip", "unzip into the inbox", unzip, ("zip", "unzip")),
    Way("tar", "tar -x into the inbox", tar, ("tar",)),
    Way("slow", f"a writer that pauses for {PAUSE_S:g} s half way", slow_writer),
    Way("slow-closed", f"one that closes for {PAUSE_S:g} s half way, then appends", closing_writer),
    Way("open", f"one that keeps the file open for {OPEN_S} s, a bit each second", open_for_long),
    Way("overwrite", "another file over one that waits, by cp and by mv", overwrite),
    Way("dicom", "dcmtk's storescu to storescp", storescu, ("storescu", "storescp", "img2dcm"), dicom, True),
)

PACKAGES = {
    **{"rsync": "rsync", "scp": "openssh-client", "sftp": "openssh-client", "sshd": "openssh-server"},
    **{"smbclient": "smbclient", "smbd": "samba", "smbpasswd": "samba-common-bin", "curl": "curl"},
    **{"vsftpd": "vsftpd", "nginx": "nginx-light", "zip": "zip", "unzip": "unzip", "tar": "tar"},
    **{"storescu": "dcmtk", "storescp": "dcmtk", "img2dcm": "dcmtk"},
}
"""Which package of Debian each program is in."""


def missing(way: Way) -> list[str]:
    """Programs that are not here."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [program for program in way.needs if shutil.which(program, path=path) is None]
