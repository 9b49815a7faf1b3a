"""A real systemd as process 1 of a container of our own: namespaces, and an overlay on this very root.

Nothing written in it survives, or is seen outside. Needs root and a kernel that lets root make namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy

from tests.support.repository import TOP
from tests.support.waiting import LONGEST_S

SYSTEMD = Path("/lib/systemd/systemd")
UNITS = Path("/lib/systemd/system")

_SETUP = """
set -e
cd {base}
mount --make-rprivate /
mount -t tmpfs tmpfs layer
mkdir layer/up layer/work
mount -t overlay overlay -o lowerdir=/,upperdir=layer/up,workdir=layer/work root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
own=opt/mednet-watcher
mkdir -p below etc/systemd/journald.conf.d run/units $own/bin $own/python $own/site $own/repo
mount --bind {python} $own/python
mount --bind {site} $own/site
mount --bind {repo} $own/repo
printf '#!/bin/sh\\nexec /opt/mednet-watcher/python/bin/python3 -m watcher "$@"\\n' > $own/bin/mednet-watcher
chmod 755 $own/bin/mednet-watcher
for unit in idle sysinit basic shutdown network-online remote-fs; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > run/units/$unit.target
done
cp {units}/systemd-journald.service {units}/systemd-journald.socket run/units
printf 'Wants=systemd-journald.service\\n' >> run/units/idle.target
printf '[Journal]\\nReadKMsg=no\\n' > etc/systemd/journald.conf.d/own.conf
pivot_root . below
umount -l below
mount --make-rshared /
exec env -i container=mednet SYSTEMD_UNIT_PATH=/run/units:/etc/systemd/system PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    {systemd} --system --unit=idle.target --log-target=journal --show-status=no
"""


def missing() -> str | None:
    """Why there can be no container here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists() or not shutil.which("unshare") or not shutil.which("nsenter"):
        return "needs systemd, unshare and nsenter"
    probe = ["unshare", "-m", "-p", "-C", "-f", "sh", "-c", "mount -t tmpfs x /mnt && mkdir /mnt/a /mnt/b /mnt/c && "
             "mount -t overlay o -o lowerdir=/mnt/c,upperdir=/mnt/a,workdir=/mnt/b /mnt/c"]  # fmt: skip
    if subprocess.run(probe, capture_output=True, timeout=LONGEST_S, check=False).returncode:
        return "the kernel does not let us make namespaces and overlays"
    return None


class Container:
    """Runs from ``with`` to its end, with the product in /opt/mednet-watcher and nothing started."""

    def __init__(self, base: Path) -> None:
        self.base, self.root, self.pid = base, base / "root", 0
        self._process: subprocess.Popen[bytes] | None = None
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        self._cgroup = Path(next(m[1] for m in mounts if m[2] == "cgroup2")) / f"mednet-test-{os.getpid()}"

    def __enter__(self) -> Container:
        for name in ("layer", "root"):
            (self.base / name).mkdir(parents=True)
        setup = _SETUP.format(
            base=self.base,
            python=sys.base_prefix,
            site=Path(numpy.__file__).parents[1],
            repo=TOP,
            systemd=SYSTEMD,
            units=UNITS,
        )
        self._cgroup.mkdir()
        enter = f"echo $$ > {self._cgroup}/cgroup.procs && exec "
        command = [
            "sh",
            "-c",
            f'{enter}"$@"',
            "sh",
            "unshare",
            "-m",
            "-p",
            "-u",
            "-i",
            "-C",
            "-f",
            "--kill-child",
            "sh",
            "-c",
            setup,
        ]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            self.pid = int(children.read_text().split()[0]) if children.read_text() else 0
            if self.pid and self.run("systemctl", "is-active", "idle.target", check=False).returncode == 0:
                return self
            time.sleep(0.1)
        assert self._process.stderr is not None
        self._process.kill()
        told = self._process.stderr.read().decode()
        self.__exit__()
        raise AssertionError(f"systemd did not come up: {told}")

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self.pid and self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # process 1 of the container: takes everything in it along
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        deadline = time.monotonic() + 10
        while self._cgroup.exists() and time.monotonic() < deadline:  # until the last process has gone
            for path in (*sorted(self._cgroup.rglob("*/"), reverse=True), self._cgroup):
                with contextlib.suppress(OSError):
                    path.rmdir()
            time.sleep(0.05)

    def run(self, *words: str, check: bool = True, input: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root, and outside of any unit."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-C", "-r", "-w"]
        ended = subprocess.run([*enter, *words], input=input, capture_output=True, timeout=LONGEST_S, check=False)
        told = subprocess.CompletedProcess(words, ended.returncode, ended.stdout.decode(), ended.stderr.decode())
        assert not check or ended.returncode == 0, (words, told)
        return told

    def main_pid(self) -> str:
        """The service's process, as the container numbers it."""
        return self.run("systemctl", "show", "-P", "MainPID", "mednet-watcher").stdout.strip()

    def write(self, path: str, data: bytes | str) -> None:
        """Put a file there, whole."""
        data = data.encode() if isinstance(data, str) else data
        self.run("sh", "-c", 'mkdir -p "${0%/*}" && cat > "$0.part" && mv "$0.part" "$0"', path, input=data)
