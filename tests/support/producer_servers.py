"""Servers that write what they are sent into an inbox: OpenSSH, Samba, vsftpd, nginx (WebDAV), dcmtk. On loopback only.

Each is started as this user with a configuration of its own, and ended at the end.
"""

from __future__ import annotations

import contextlib
import getpass
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "on-loopback-for-a-minute"
START_S = 20.0


@dataclass(frozen=True)
class Server:
    """One that listens: what its clients need to know."""

    port: int
    directory: Path
    """Its own, with its keys and its log."""


@contextlib.contextmanager
def _listening(command: list[str], server: Server, log: str = "log") -> Iterator[Server]:
    """Run a server from the moment it answers."""
    with (server.directory / log).open("wb") as output:
        # A group of its own: smbd ends by sending its whole group SIGTERM.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                told = (server.directory / log).read_text(errors="replace")[-1000:]
                raise RuntimeError(f"{command[0]} does not start: {told}")
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def ssh(directory: Path, inbox: Path) -> Iterator[Server]:
    """OpenSSH with keys made for it, for scp and sftp."""
    server = Server(_port(), directory)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True)
    (directory / "user.pub").rename(directory / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, wants to be unprivileged
    lines = {
        "ListenAddress": "127.0.0.1",
        "Port": server.port,
        "HostKey": directory / "host",
        "AuthorizedKeysFile": directory / "authorized",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        "UsePAM": "no",
        "PidFile": "none",
        "Subsystem": "sftp internal-sftp",
    }
    (directory / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    with _listening(["/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd_config")], server):
        yield server


def ssh_options(server: Server) -> list[str]:
    """Return the options with which scp and sftp reach the server."""
    told = {"Port": server.port, "IdentityFile": server.directory / "user", "StrictHostKeyChecking": "no"}
    quiet = {"UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR", "IdentitiesOnly": "yes"}
    return [word for key, value in {**told, **quiet}.items() for word in ("-o", f"{key}={value}")]


@contextlib.contextmanager
def samba(directory: Path, inbox: Path) -> Iterator[Server]:
    """Samba with the inbox as a share, for this user of the machine."""
    server, user = Server(_port(), directory), getpass.getuser()
    private = ("private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir")
    lines = {
        **{name: directory / name.replace(" ", "-") for name in private},
        "passdb backend": f"tdbsam:{directory / 'passwords.tdb'}",
        "interfaces": "lo",
        "bind interfaces only": "yes",
        "smb ports": server.port,
        "disable netbios": "yes",
        "server role": "standalone server",
        "load printers": "no",
        "log file": directory / "smbd.log",
    }
    for name in private:
        (directory / name.replace(" ", "-")).mkdir(exist_ok=True)
    text = "[global]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())
    (directory / "smb.conf").write_text(f"{text}[inbox]\npath = {inbox}\nread only = no\n")
    new = ["smbpasswd", "-c", str(directory / "smb.conf"), "-s", "-a", user]
    subprocess.run(new, input=f"{PASSWORD}\n{PASSWORD}\n", text=True, check=True, capture_output=True)
    command = ["smbd", "--foreground", "--no-process-group", "--debug-stdout", "-s", str(directory / "smb.conf")]
    with _listening(command, server):
        yield server


def smb_client(server: Server, *words: str) -> list[str]:
    """The client, logged in."""
    conf = str(server.directory / "smb.conf")
    login = ["-U", f"{getpass.getuser()}%{PASSWORD}", "-p", str(server.port), "-s", conf]
    return ["smbclient", "//127.0.0.1/inbox", *login, *words]


@contextlib.contextmanager
def ftp(directory: Path, inbox: Path) -> Iterator[Server]:
    """vsftpd, open to anybody on loopback, its root the directory that the inbox lies in."""
    server = Server(_port(), directory)
    lines = {
        **{"listen": "YES", "listen_address": "127.0.0.1", "listen_port": server.port, "background": "NO"},
        **{"anonymous_enable": "YES", "no_anon_password": "YES", "anon_root": inbox.parent, "anon_umask": "022"},
        **{"write_enable": "YES", "anon_upload_enable": "YES", "allow_writeable_chroot": "YES"},
        **{"seccomp_sandbox": "NO", "xferlog_enable": "NO", "local_enable": "NO", "ftp_username": "ftp"},
        "secure_chroot_dir": directory / "empty",
    }
    (directory / "empty").mkdir()
    inbox.chmod(0o777)
    (directory / "vsftpd.conf").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    with _listening(["vsftpd", str(directory / "vsftpd.conf")], server):
        yield server


@contextlib.contextmanager
def webdav(directory: Path, inbox: Path) -> Iterator[Server]:
    """Nginx, which takes uploads by PUT: whole into a file of its own first, then renamed into the inbox."""
    server = Server(_port(), directory)
    temporary = "".join(f"{kind}_temp_path {directory / kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory / 'pid'}; error_log stderr; user {getpass.getuser()};\nevents {{}}\n"
        f"http {{ access_log off; client_body_temp_path {directory / 'body'};\n{temporary}"
        f"server {{ listen 127.0.0.1:{server.port}; root {inbox.parent}; client_max_body_size 0;\n"
        "location / { dav_methods PUT DELETE MOVE; } } }\n"
    )
    with _listening(["nginx", "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")], server):
        yield server


@contextlib.contextmanager
def dicom(directory: Path, inbox: Path) -> Iterator[Server]:
    """dcmtk's storescp, which writes what it is sent into the inbox under names of its own."""
    server = Server(_port(), directory)
    with _listening(["storescp", "--accept-all", "--output-directory", str(inbox), str(server.port)], server):
        yield server


Starter = Callable[[Path, Path], contextlib.AbstractContextManager[Server]]
