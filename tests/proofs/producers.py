"""Real producers: ``make test-producers`` sends files to the real daemon by every way that :mod:`producer_ways` knows.

A hundred files each, with the daemon's default settings. Never may one be decided upon before it is complete, be
missed, or be sorted twice. Latencies are the kernel's: from the last close, link or rename in the inbox until the file
left it, both told by inotify to an observer of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import producer_ways
from tests.support.daemon import Daemon, digest
from tests.support.producer_ways import Load, Way

DEFAULTS = "inbox: {settle_s: 2.0}\n"
"""The daemon's own: the harness would set others."""

QUIET_S = 3.0
"""How long nothing more must come after the last file."""

SIDE = 512
"""Pixels: files of about 200 kB, which take more than one write."""

_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200


class Observer(threading.Thread):
    """The times at which each name was last completed in a directory, and at which it left."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.complete: dict[str, float] = {}
        self.left: dict[str, float] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC)
        mask = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            raise OSError(ctypes.get_errno(), "the inbox can not be observed")
        self.start()

    def run(self) -> None:
        """Read until the directory is gone."""
        while data := os.read(self._fd, 1 << 16):
            now, at = time.monotonic(), 0
            while at < len(data):
                _, mask, _, length = struct.unpack_from("iIII", data, at)
                name = os.fsdecode(data[at + 16 : at + 16 + length].rstrip(b"\0"))
                at += 16 + length
                if mask & (_IN_MOVED_FROM | _IN_DELETE):
                    self.left[name] = now
                elif mask & (_IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE):
                    self.complete[name] = now
                elif not mask & 0xFFF:
                    return


@dataclass(frozen=True)
class Tally:
    """The outcome of the files of one way."""

    way: Way
    files: int
    early: int
    missed: int
    doubled: int
    latencies_s: list[float]

    @property
    def good(self) -> bool:
        """0 early, 0 missed, 0 doubled."""
        return not (self.early or self.missed or self.doubled)


class Trial:
    """A daemon, and files on their way into its inbox."""

    def __init__(self, daemon: Daemon, scratch: Path, side: int = SIDE) -> None:
        self.daemon, self.scratch, self._side = daemon, scratch, side
        self._rng = np.random.default_rng(1)
        self._observer = Observer(daemon.inbox)

    def run(self, way: Way, count: int) -> Tally:
        """Bring ``count`` files by one way, wait until all is over, and look for each."""
        source = self.daemon.root / "source" / way.name
        source.mkdir(parents=True)
        names = [f"{way.name}-{number:03}.jpeg" for number in range(count)]
        wanted = {name: self._picture() for name in names}
        for name, data in wanted.items():
            (source / name).write_bytes(data)
        before = len(self.daemon.outcomes())
        with self._server(way) as server, self._place() as scratch:
            way.bring(Load(source, self.daemon.inbox, names, scratch, server, self._signal))
            self._until_over(before, count)
        lines = self.daemon.outcomes()[before:]
        shutil.rmtree(source)
        if way.renames:
            return self._by_content(way, count, lines)
        return self._by_name(way, {name: digest(data) for name, data in wanted.items()}, lines)

    def _picture(self) -> bytes:
        noise = self._rng.integers(0, 200, (self._side, self._side)) + self._rng.integers(0, 55)
        buffer = io.BytesIO()
        Image.fromarray(noise.astype(np.uint8)).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.scratch) as place:
            yield Path(place)

    @contextlib.contextmanager
    def _server(self, way: Way) -> Iterator[producer_ways.Server | None]:
        if way.server is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="mednet-server-") as own, way.server(Path(own), self.daemon.inbox) as s:
            yield s

    def _signal(self, number: int) -> None:
        assert self.daemon.process is not None
        self.daemon.process.send_signal(number)

    def _until_over(self, before: int, count: int) -> None:
        """Until as many files have an outcome and the inbox is empty (or nothing happens any more), and a while on."""
        deadline, seen = time.monotonic() + 60, before
        while time.monotonic() < deadline:
            now = len(self.daemon.outcomes())
            if now != seen:
                seen, deadline = now, time.monotonic() + 60
            if now - before >= count and not os.listdir(self.daemon.inbox):
                break
            time.sleep(0.2)
        time.sleep(QUIET_S)

    def _by_name(self, way: Way, wanted: dict[str, str], lines: list[dict[str, object]]) -> Tally:
        outcomes = defaultdict(list)
        for line in lines:
            outcomes[line["name"]].append(line["digest"])
        strays = sum(len(found) for name, found in outcomes.items() if name not in wanted)
        early = strays + sum(each != whole for name, whole in wanted.items() for each in outcomes[name])
        on_disk = self.daemon.digests()
        missed = sum(not outcomes[name] or not on_disk[whole] for name, whole in wanted.items())
        doubled = sum(on_disk[whole] > 1 or len(outcomes[name]) > 1 for name, whole in wanted.items())
        return Tally(way, len(wanted), early, missed, doubled, self._latencies(list(wanted)))

    def _by_content(self, way: Way, count: int, lines: list[dict[str, object]]) -> Tally:
        """Files that a server named and wrote anew: each must be as it was when it was decided upon, and whole."""
        seen: Counter[bytes] = Counter()
        early = 0
        for line in lines:
            data = Path(str(line["destination"])).read_bytes()
            early += digest(data) != line["digest"]
            seen[_instance(data)] += 1
        early += seen.pop(b"", 0)
        names = [str(line["name"]) for line in lines]
        return Tally(way, count, early, count - len(seen), seen.total() - len(seen), self._latencies(names))

    def _latencies(self, names: list[str]) -> list[float]:
        time.sleep(0.1)  # the observer reads what the kernel told
        left, complete = self._observer.left, self._observer.complete
        return [left[name] - complete[name] for name in names if name in left and name in complete]


def _instance(data: bytes) -> bytes:
    """The SOP instance UID of a DICOM file that is whole: its encapsulated pixels end as they must. Else nothing."""
    at = data.find(b"\x08\x00\x18\x00UI")
    if data[128:132] != b"DICM" or at < 0 or not data.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0"):
        return b""
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    return data[at + 8 : at + 8 + length]


def row(tally: Tally) -> str:
    """One line of the table."""
    t = tally.latencies_s
    times = f"{statistics.median(t):.2f} s | {max(t):.2f} s" if t else "- | -"
    return f"| {tally.way.told} | {tally.files} | {tally.early} | {tally.missed} | {tally.doubled} | {times} |"


HEAD = """\
| how files arrive | files | early | missed | doubled | median | longest |
|---|---:|---:|---:|---:|---:|---:|
"""


def page(rows: list[str], skipped: list[str], machine: str) -> str:
    """The table with what it means."""
    told = "".join(f"\nNot tried: {line}." for line in skipped)
    return f"""\
# Real producers

Written by `make test-producers`. {machine}.

Files of about 200 kB each, brought by the programs themselves; servers on loopback. The real daemon, with its default
settings and the shipped weights. **Early**: decided upon before it was complete. **Missed**: not filed, or without an
outcome. **Doubled**: filed twice, or with two outcomes. The times are from the last close, link or rename in the inbox
until the file left it, by inotify. A hard link gives the daemon no event: it waits for the scan (5 s) and `settle_s`
(2 s). A file that was tried while its writer paused, and found cut short, gets until its next close, or change.

{HEAD}{chr(10).join(rows)}
{told}"""


def install(programs: list[str]) -> None:
    """Install what is missing, where this is Debian and we are root. No service that comes along is started."""
    if os.geteuid() or not shutil.which("apt-get"):
        return
    policy = Path("/usr/sbin/policy-rc.d")  # invoke-rc.d(8): 101 forbids
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        packages = sorted({producer_ways.PACKAGES[program] for program in programs})
        quiet = {
            "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            "stdout": subprocess.DEVNULL,
            "check": False,
        }
        subprocess.run(["apt-get", "update", "-qq"], **quiet)  # type: ignore[call-overload]
        for package in packages:
            sys.stderr.write(f"producers: installing {package}\n")
            command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
            subprocess.run(command, **quiet)  # type: ignore[call-overload]
    finally:
        if ours:
            policy.unlink()


def main() -> int:
    """Run every way there is, print the table, and write the page."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--files", type=int, default=100)
    words.add_argument("--only", nargs="+", metavar="WAY", choices=[way.name for way in producer_ways.WAYS])
    words.add_argument("--install", action="store_true", help="install what is missing (Debian, as root)")
    words.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    args = words.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    chosen = [way for way in producer_ways.WAYS if not args.only or way.name in args.only]
    absent = [program for way in chosen for program in producer_ways.missing(way)]
    if args.install and absent:
        install(absent)
    rows, skipped, failed = [], [], 0
    with tempfile.TemporaryDirectory(prefix="mednet-producers-") as place, _scratch() as scratch:
        root = Path(place)
        root.chmod(0o755)  # an FTP server's users must get there
        with Daemon(root, DEFAULTS, fresh=True) as daemon:
            trial = Trial(daemon, scratch)
            for way in chosen:
                if lacking := producer_ways.missing(way):
                    skipped.append(f"{way.told}, which needs {', '.join(lacking)}")
                    continue
                sys.stderr.write(f"producers: {way.told} ...\n")
                tally = trial.run(way, args.files)
                failed += not tally.good
                rows.append(row(tally))
    core = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    machine = (
        f"{datetime.now(UTC).date()}, {core.partition(': ')[2] or platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores (load {os.getloadavg()[2]:.1f} from others), Linux {platform.release()}"
    )
    sys.stdout.write(HEAD + "\n".join(rows) + "\n" + "".join(f"not tried: {line}\n" for line in skipped))
    if args.write:
        args.write.write_text(page(rows, skipped, machine))
    return 1 if failed else 0


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A directory on another file system than the temporary one, if there is any."""
    with tempfile.TemporaryDirectory(prefix="mednet-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        yield Path(place)


if __name__ == "__main__":
    sys.exit(main())
