"""Hostile files through the real daemon: ``make hostile`` drops ten thousand among good ones, and looks for each.

Whatever it is, the daemon neither crashes nor loses it nor lets it hold up the good ones, and says what became of it.
Files that hang a decoder come one by one all along. The network is a stand-in.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import socket
import sqlite3
import stat
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.proofs.fuzz import damaged
from tests.support.daemon import Daemon
from tests.support.dropped_files import metrics, picture
from tests.support.jpeg_bits import progressive
from tests.support.repository import TOP
from watcher.filing import quarantine_notes

Maker = Callable[[Path], None]

SETTINGS = (
    "inbox: {settle_s: 0.1, patience_s: 0.5, scan_interval_s: 0.5}\n"
    "decode: {max_bytes: 4000000, max_pixels: 4000000, timeout_s: 2}\nmetrics: {port: 0}\n"
)

HANG_EVERY_S = 10.0
"""Each hangs two decoders, one after the other, and twice holds up what is behind it until another decoder takes over:
half a second, and the time to start one. Files that hang any faster than they are moved out of the way delay all."""

NAMES = [
    b"new\nline.jpeg",
    b'{"event": "image.sorted"}\n.jpeg',
    b"\xff\xfe\x80.jpeg",
    b"\x1b[31mred\x1b[0m.jpeg",
    b"-rf",
    b"--config=x",
    b"'; drop table decision; --.jpeg",
    b"a" * 255,
    "\u202egpj.exe".encode(),
    b" ",
    b"\\..\\x.jpeg",
    b"%s%n%d.jpeg",
    b"CON",
    b"*?[a].jpeg",
    b"\t\r\x07.png",
    b"$(reboot).jpeg",
]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, body: bytes) -> bytes:
    """A PNG that says it has this size, whatever is in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(70_000_000)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{here}/{path.name}"[:107])
        finally:
            os.close(here)


def _jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header lies about its size."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


SCANS = progressive(2000, 2000, 883)
BOMB = zlib.compress(bytes(30_000_000), 9)
SPECIAL: dict[str, Maker] = {
    "empty": lambda path: path.touch(),
    "text": lambda path: _write(path, b"Patient: none\n"),
    "huge sparse file": _sparse,
    "PNG that says it is huge": lambda path: _write(path, png(2**31 - 1, 2**31 - 1, b"")),
    "PNG that unpacks to 30 MB": lambda path: _write(path, png(64, 64, BOMB)),
    "PNG of most pixels allowed": lambda path: _write(path, png(2000, 2000, zlib.compress(bytes(4_002_000)))),
    "JPEG that says it is huge": lambda path: _write(path, _jpeg_of(65500, 65500)),
    "JPEG that says it is larger": lambda path: _write(path, _jpeg_of(1900, 1900)),
    "JPEG of 883 scans": lambda path: _write(path, SCANS),
    "dangling link": lambda path: os.symlink("/nowhere", path),
    "link to itself": lambda path: os.symlink(path.name, path),
    "link to a device": lambda path: os.symlink("/dev/zero", path),
    "link to a directory": lambda path: os.symlink("/etc", path),
    "link to a secret": lambda path: os.symlink("/etc/passwd", path),
    "pipe": lambda path: os.mkfifo(path),
    "socket": _socket,
    "unreadable": lambda path: _write(path, b"secret", 0),
}


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.write_bytes(data)
    path.chmod(mode)


@dataclass
class Report:
    """The figures of a run."""

    hostile: int
    good: int
    outcomes: Counter[str]
    reasons: Counter[str]
    slowest_good_s: float
    behind_hanging_s: float
    seconds: float


class Siege:
    """A daemon in ``root`` under hostile files."""

    def __init__(self, root: Path, seed: int, hang_every_s: float = HANG_EVERY_S) -> None:
        self.daemon = Daemon(root, SETTINGS, stub=True)
        self.daemon.environ["PYTHONPATH"] = os.pathsep.join([str(TOP), str(TOP / "tests/support/hanging")])
        self.outside = root / "outside"
        self.outside.mkdir()
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.files = 0
        self.special: Counter[str] = Counter()
        self.names: set[str] = set()
        self.good: list[str] = []
        self.hung, self.next_hang_s, self.hang_every_s = 0, 0.0, hang_every_s

    def run(self, hostile: int, hangs: int) -> Report:
        """Drop them all, wait until the inbox is empty, look for each. Fails by assertion."""
        started = time.monotonic()
        with self.daemon as daemon:
            pid = daemon.process.pid if daemon.process else None
            for number, make in enumerate(self._hostile(hostile)):
                if number % 20 == 0:
                    self._drop_good(f"{number}")
                make()
                self._hang(hangs)
            (daemon.inbox / "directory.jpeg").mkdir()
            self._swaps()
            daemon.until(
                lambda: self._hang(hangs) and os.listdir(daemon.inbox) == ["directory.jpeg"],
                longest_s=1800,
            )
            daemon.until(lambda: metrics(daemon)["mednet_files_pending"] == 0)
            told = metrics(daemon)
            assert daemon.process is not None
            assert daemon.process.pid == pid
            assert daemon.stop() == 0
        return self._account(told, time.monotonic() - started)

    def _hostile(self, count: int) -> Iterator[Callable[[], None]]:
        """Half of them damaged images, half special files, odd names all over."""
        corpus = damaged(count, self.seed)
        kinds = list(SPECIAL)
        for number in range(count):
            name = self._name(number)
            if number % 2:
                _, _, data = next(corpus)
                yield lambda name=name, data=data: self._drop(name, lambda path: _write(path, data))  # type: ignore[misc]
            else:
                kind = kinds[number // 2 % len(kinds)]
                self.special[kind] += 1
                yield lambda name=name, kind=kind: self._drop(name, SPECIAL[kind])  # type: ignore[misc]

    def _name(self, number: int) -> str:
        raw = NAMES[number % len(NAMES)] if number % 3 == 0 else b"x.jpeg"
        head = f"{number}".encode()
        return os.fsdecode((raw if number < len(NAMES) * 3 and number % 3 == 0 else head + raw)[:255])

    def _drop(self, name: str, make: Maker) -> None:
        path = self.outside / "x"
        make(path)
        path.rename(self.daemon.inbox / name)
        self.files += 1
        self.names.add(name)

    def _drop_good(self, number: str) -> None:
        self.good.append(f"good{number}.jpeg")
        self._drop(self.good[-1], lambda path: _write(path, picture(self.rng)))

    def _hang(self, hangs: int) -> bool:
        """Now and then a file that hangs its decoder, and a good one behind it. True when all were dropped."""
        if self.hung < hangs and time.monotonic() >= self.next_hang_s:
            self._drop(f"hang{self.hung}.jpeg", lambda path: _write(path, b"hang"))
            self._drop_good(f"behind{self.hung}")
            self.hung += 1
            self.next_hang_s = time.monotonic() + self.hang_every_s
        return self.hung == hangs

    def _swaps(self) -> None:
        """Names that stand for something else a moment later."""
        for number in range(50):
            path = self.daemon.inbox / f"swapped{number}.jpeg"
            self._drop(path.name, lambda path: _write(path, picture(self.rng)))
            link = self.outside / "link"
            os.symlink("/etc/passwd", link)
            link.rename(path)  # the file is gone by its producer's own hand, or was sorted before
            self.files += 1
        for number in range(50):
            path = self.daemon.inbox / f"withdrawn{number}.jpeg"
            self._drop(path.name, lambda path: _write(path, picture(self.rng)))
            path.unlink(missing_ok=True)

    def _account(self, told: dict[str, float], seconds: float) -> Report:
        """Ledger, log, disk and metrics agree on every file."""
        daemon = self.daemon
        lines = daemon.outcomes()  # every line of the log is JSON of its own, or this fails
        on_disk = [
            path
            for place in daemon.places[1:]
            for path in place.rglob("*")
            if not stat.S_ISDIR(path.lstat().st_mode) and not path.name.endswith(".reason.json")
        ]
        assert Counter(os.fsencode(path) for path in on_disk) == Counter(self._destinations())
        assert len(lines) == len(on_disk)
        assert told["mednet_files_seen_total"] == len(on_disk) + told["mednet_files_withdrawn_total"]
        kept = [path for path in on_disk if not os.fsdecode(path.name).startswith(("swapped", "withdrawn"))]
        assert len(kept) == self.files - 150, "a file was lost or doubled"
        quarantined = [path for path in on_disk if daemon.places[3] in path.parents]
        for path in quarantined:
            assert json.loads(quarantine_notes.path_beside(path).read_text())["what_to_do"]
        sorted_names = {line["name"] for line in lines if line["event"] != "image.quarantined"}
        assert set(self.good) <= sorted_names
        took_s = {line["name"]: line["total_ms"] / 1000 for line in lines}
        slowest = max(took_s[name] for name in self.good)
        behind = max((took_s[name] for name in self.good if "behind" in name), default=0.0)
        secret = Path("/etc/passwd").read_bytes()
        copies = [path for path in on_disk if stat.S_ISREG(path.lstat().st_mode) and path.read_bytes() == secret]
        assert copies == [], "a link was followed"
        outcomes = Counter(line["event"] for line in lines)
        reasons = Counter(line["reason"] for line in lines if line["event"] == "image.quarantined")
        return Report(self.files - len(self.good), len(self.good), outcomes, reasons, slowest, behind, seconds)

    def _destinations(self) -> list[bytes]:
        with contextlib.closing(sqlite3.connect(self.daemon.root / "state" / "ledger.sqlite3")) as ledger:
            assert ledger.execute("select count(*) from unended").fetchone() == (0,)
            return [row[0] for row in ledger.execute("select destination from ending where state = 'filed'")]


def main() -> None:
    """Run and print the tally."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--files", type=int, default=10_000)
    words.add_argument("--hangs", type=int, default=10, help="files that hang a decoder")
    words.add_argument("--seed", type=int, default=int(time.time()))
    args = words.parse_args()
    root = Path(tempfile.mkdtemp(prefix="mednet-hostile-"))
    sys.stderr.write(f"hostile: seed {args.seed}, in {root}\n")
    report = Siege(root, args.seed).run(args.files, args.hangs)
    sys.stdout.write(
        f"{report.hostile} hostile files, {report.good} good ones among them, {report.seconds:.0f} s: "
        "0 crashes of the daemon, every file accounted for\n"
        f"{dict(report.outcomes.most_common())}\nquarantine: {dict(report.reasons.most_common())}\n"
        f"slowest good file: {report.slowest_good_s:.1f} s, "
        f"of {args.hangs} right behind one that hangs a decoder: {report.behind_hanging_s:.1f} s\n"
    )
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
