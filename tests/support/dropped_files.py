"""Drop files into a daemon's inbox, and check that disk, ledger, log and metrics account for each of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon import Daemon, digest
from tests.support.waiting import LONGEST_S
from watcher.filing.quarantine_notes import SUFFIX
from watcher.inbox import claims


def picture(rng: np.random.Generator, darkest: int = 0) -> bytes:
    """A small JPEG that no other is equal to; how bright it is makes its class, if dark it goes to review."""
    noise = rng.integers(0, 24, (64, 64)) + rng.integers(darkest, 230)
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def content(rng: np.random.Generator) -> bytes:
    """A picture, or one time in ten something that is none."""
    return picture(rng) if rng.random() > 0.1 else rng.bytes(int(rng.integers(0, 3000)))


class Producer:
    """Drops files into a daemon's inbox by writing and by moving in, and remembers what."""

    def __init__(self, daemon: Daemon, seed: int, *, link: bool = True, below: Sequence[str] = ("",)) -> None:
        """Without ``link``, for inboxes that know no hard links, files are written there, each under a new name.

        They go to these directories ``below`` the inbox in turn.
        """
        self.daemon, self.rng, self.number, self.link = daemon, np.random.default_rng(seed), 0, link
        self.below = [daemon.inbox / way for way in below]
        for directory in self.below:
            directory.mkdir(parents=True, exist_ok=True)
        self.dropped: Counter[str] = Counter()

    def drop(self, count: int) -> None:
        """Some share a name with files before them."""
        for _ in range(count):
            self.number += 1
            data = content(self.rng)
            self.dropped[digest(data)] += 1
            name = f"{self.number - int(self.rng.integers(0, 2)) * int(self.rng.integers(0, 50))}.jpeg"
            directory = self.below[self.number % len(self.below)]
            if not self.link:
                (directory / f"{self.number}.jpeg").write_bytes(data)
                continue
            outside = self.daemon.root / "outside"
            outside.write_bytes(data)
            while True:
                try:
                    os.link(outside, directory / name)  # fails where a rename would overwrite
                    break
                except FileExistsError:
                    name = f"{self.number}.jpeg"
            outside.unlink()


def metrics_of_all(daemons: Sequence[Daemon]) -> dict[str, float]:
    """The sums over daemons that share an inbox."""
    total: Counter[str] = Counter()
    for daemon in daemons:
        total.update(metrics(daemon))
    return dict(total)


def metrics(daemon: Daemon) -> dict[str, float]:
    """Return the metrics that the running daemon serves, by name and labels."""
    where = daemon.events("metrics.serving")[-1]
    with urllib.request.urlopen(f"http://{where['address']}:{where['port']}/metrics", timeout=LONGEST_S) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        ",".join((sample.name, *sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
        if family.name != "mednet_watcher"
    }


def check(daemon: Daemon, dropped: Counter[str], told: dict[str, float] | None = None) -> None:
    """Every file dropped lies in exactly one place, and ledger, disk and (if given) metrics tell the same story."""
    found = daemon.digests()
    assert found - dropped == Counter(), f"doubled or unexplained: {found - dropped}"
    assert dropped - found == Counter(), f"lost: {dropped - found}"
    with contextlib.closing(sqlite3.connect(daemon.root / "state" / "ledger.sqlite3")) as ledger:
        assert ledger.execute("select count(*) from unended").fetchone() == (0,)
        assert ledger.execute("select count(*) from ending where state = 'missing'").fetchone() == (0,)
        filed = ledger.execute(
            "select destination, digest, source from ending join decision on decision.id = ending.decision"
            " where state = 'filed' order by id"
        ).fetchall()
    rows: dict[bytes, str] = {}  # where files lie, by what the ledger says, move after move
    for destination, recorded, source in filed:
        assert destination not in rows, "two files under one path"
        rows.pop(_came_from(_seen(source), recorded, rows), None)
        rows[_seen(destination)] = recorded
    on_disk = {
        os.fsencode(path)
        for place in daemon.places  # in the inbox, what was put back
        for path in place.rglob("*")
        if path.is_file() and not path.name.endswith(".reason.json") and path.name != "id"  # of shared mode
    }
    assert set(rows) == on_disk
    _explained(daemon.places[3])
    if told is not None:
        _reconcile(daemon, told)
    for destination, recorded in rows.items():
        assert digest(Path(os.fsdecode(destination)).read_bytes()) == recorded


def _explained(quarantine: Path) -> None:
    """Beside each quarantined file, and only there, lies its reason, whole."""
    there = {path.name for path in quarantine.iterdir()} if quarantine.is_dir() else set()
    files = {name for name in there if not name.endswith(SUFFIX)}
    assert there == files | {f"{name}{SUFFIX}" for name in files}
    for name in files:
        assert json.loads((quarantine / f"{name}{SUFFIX}").read_text()).keys() >= {"reason", "what_to_do", "digest"}


def _came_from(source: bytes, recorded: str, rows: dict[bytes, str]) -> bytes:
    """The row that a file leaves. What was put back may have appeared under the next free name: its digest tells."""
    if source in rows:
        return source
    inbox = os.path.dirname(source)
    same = (path for path, other in rows.items() if other == recorded and os.path.dirname(path) == inbox)
    return next(same, source)


def _seen(path: bytes) -> bytes:
    """Return the path in the inbox of a file that was claimed: it came from there, or goes there."""
    directory, name = os.path.split(os.fsdecode(path))
    return os.fsencode(claims.unclaimed_directory(Path(directory)) / name)


def _reconcile(daemon: Daemon, told: dict[str, float]) -> None:
    """seen = sorted + review + quarantined + pending: in the metrics, and each of them on disk."""
    on_disk = {
        outcome: sum(
            path.is_file() and not path.name.endswith(".reason.json") and path.name != "id"  # of shared mode
            for path in place.rglob("*")
        )
        for outcome, place in zip(("pending", "sorted", "review", "quarantine"), daemon.places, strict=True)
    }
    in_metrics = {outcome: told[f"mednet_files_filed_total,{outcome}"] for outcome in list(on_disk)[1:]}
    in_metrics["pending"] = told["mednet_files_pending"]
    assert in_metrics == on_disk
    assert told["mednet_files_seen_total"] == sum(in_metrics.values()) + told["mednet_files_withdrawn_total"]
