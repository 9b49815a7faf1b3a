"""Shadow mode: every file decided upon once, nothing moved, and compared with what people did."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from numpy.random import default_rng

from tests.support.daemon import Daemon, digest
from tests.support.dropped_files import metrics, picture
from watcher.cli import main
from watcher.config import loader
from watcher.core.errors import Fatal
from watcher.core.records import Decision, Identity, MoveOrder, Outcome, Returned, Shadowed, Timing
from watcher.filing import shadow_agreement
from watcher.filing.audit import Audit
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.duplicates import DuplicateRules
from watcher.filing.mover import Mover
from watcher.filing.shadow_mode import ShadowExecutor, ShadowInbox
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger
from watcher.service import stations

HAND = Decision(Outcome.SORTED, "Hand", 0.99)
UNSURE = Decision(Outcome.REVIEW, "CXR", 0.5, "low_confidence", "0.5")
BROKEN = Decision(Outcome.QUARANTINE, None, 0.0, "truncated", "no end")


class Trial:
    """An inbox that is only looked at."""

    def __init__(self, root: Path, identify: Callable[[Path], Identity]) -> None:
        self.root, self.identify = root, identify
        self.inbox = root / "inbox"
        self.inbox.mkdir()
        self.path = root / "ledger"
        self.book = Ledger(self.path)
        self.places = Destinations(*(root / place for place in ("sorted", "review", "quarantine", "rejected")))
        self.executor = ShadowExecutor(self.book, Mover(self.inbox), self.places, "m" * 64)

    def order(self, name: str, decision: Decision = HAND, data: bytes | None = None) -> MoveOrder:
        path = self.inbox / name
        if data is not None or not path.exists():
            path.write_bytes(os.fsencode(name) if data is None else data)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        return MoveOrder(name, self.identify(path), found, decision, Timing(0.0))

    def recorded(self) -> list[tuple[str, str, str | None]]:
        with LedgerReader(self.path) as ledger_reader:
            return [(entry.name, entry.outcome, entry.state) for entry in ledger_reader.entries()]

    def put(self, name: str, label: str) -> Path:
        """Move a file as a person does."""
        (self.places.sorted / label).mkdir(parents=True, exist_ok=True)
        return (self.inbox / name).rename(self.places.sorted / label / name)

    def compare(self) -> dict[str, dict[str, int]]:
        with LedgerReader(self.path) as ledger_reader:
            found = shadow_agreement.compare(ledger_reader, self.places.sorted).classes
        return {label: dict(decided) for label, decided in found.items()}


@pytest.fixture
def trial(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[Trial]:
    trial = Trial(tmp_path, identify)
    yield trial
    trial.book.close()


class TestTheClerk:
    def test_records_and_moves_nothing(self, trial: Trial) -> None:
        """Every outcome is on record, with where the file would have gone; nothing is moved, made, or left open."""
        orders = [trial.order("a", HAND), trial.order("b", UNSURE), trial.order("c", BROKEN)]
        results = trial.executor.handle(orders)
        assert [r.destination for _, r in results if isinstance(r, Shadowed)] == [
            str(trial.root / place) for place in ("sorted/Hand/a", "review/b", "quarantine/c")
        ]
        assert trial.recorded() == [
            ("a", "sorted", "shadowed"),
            ("b", "review", "shadowed"),
            ("c", "quarantine", "shadowed"),
        ]
        assert {path.name for path in trial.root.iterdir() if path.is_dir()} == {"inbox"}
        assert (trial.book.unended_owners(), trial.book.counts()) == ([], {})

    def test_each_file_once(self, trial: Trial) -> None:
        """Touched, renamed, or handed in again: the same bytes of the same file are not decided upon again."""
        first = trial.order("a")
        trial.executor.handle([first])
        os.utime(trial.inbox / "a", ns=(1, 1))
        again = [first, trial.order("a")]
        (trial.inbox / "a").rename(trial.inbox / "b")
        again.append(trial.order("b"))
        assert [number for number, _ in trial.executor.handle(again)] == [0, 0, 0]
        assert len(trial.recorded()) == 1

    def test_another_file_is_decided_upon(self, trial: Trial) -> None:
        """Other bytes under the same name, and equal bytes of another file."""
        trial.executor.handle([trial.order("a")])
        more = [trial.order("a", data=b"new"), trial.order("copy", data=b"a")]
        assert [number for number, _ in trial.executor.handle(more)] == [2, 3]

    def test_without_a_digest(self, trial: Trial) -> None:
        """A file that can not be read is known by inode, size and time; another file of its name is another."""
        order = replace(trial.order("a", BROKEN), digest=None)
        trial.executor.handle([order])
        trial.inbox.joinpath("a").unlink()
        other = replace(trial.order("a", BROKEN, b"longer"), digest=None)
        assert [number for number, _ in trial.executor.handle([order, other])] == [0, 2]

    def test_a_full_disk(self, trial: Trial) -> None:
        """A row that can not be recorded is tried again later."""
        pages = trial.book._db.execute("pragma page_count").fetchone()[0]
        trial.book._db.execute(f"pragma max_page_count = {pages}")
        results = trial.executor.handle([trial.order(str(n)) for n in range(300)])
        assert all(isinstance(result, Returned) and result.later for _, result in results)
        assert trial.recorded() == []

    def test_decides_as_the_other_would(self, trial: Trial) -> None:
        """Collisions are judged as well."""
        trial.executor.rules = DuplicateRules(same_name_other_bytes="review")
        (trial.places.sorted / "Hand").mkdir(parents=True)
        (trial.places.sorted / "Hand" / "a").write_bytes(b"another")
        trial.executor.handle([trial.order("a")])
        assert trial.recorded() == [("a", "review", "shadowed")]


class TestTheInbox:
    def test_what_is_known_is_not_seen_until_it_changes(self, trial: Trial) -> None:
        """And what has gone is forgotten, so that memory follows the inbox and not its history."""
        standing = ShadowInbox(trial.inbox, [])
        for name in "abc":
            order = trial.order(name)
            standing.mark_decided(name, order.identity)
        (trial.inbox / "d").write_bytes(b"d")
        (trial.inbox / "b").write_bytes(b"changed")
        assert sorted(standing.scan()) == ["b", "d"]
        (trial.inbox / "a").unlink()
        assert (sorted(standing.scan()), len(standing._decided)) == (["b", "d"], 1)

    def test_what_is_learned_during_a_sweep_is_kept(self, trial: Trial) -> None:
        """A sweep lasts while decisions are taken."""
        standing = ShadowInbox(trial.inbox, [])
        orders = {name: trial.order(name) for name in "abc"}
        for name in standing.scan():
            standing.mark_decided(name, orders[name].identity)
        assert list(standing.scan()) == []

    def test_after_a_restart(self, trial: Trial) -> None:
        """The ledger tells what was decided upon; not what was changed since."""
        trial.executor.handle([trial.order("a"), trial.order("b")])
        trial.order("b", data=b"changed")
        trial.order("new")
        standing = ShadowInbox(trial.inbox, [])
        standing.load_decided(trial.book)
        assert sorted(standing.scan()) == ["b", "new"]
        fresh = ShadowInbox(trial.inbox, [])
        fresh.copy_decided_from(standing)
        assert sorted(fresh.scan()) == ["b", "new"]


class TestAgreement:
    def test_by_class(self, trial: Trial) -> None:
        """For each class that people chose: what had been decided. Files still in the inbox do not count."""
        orders = [trial.order("a"), trial.order("b"), trial.order("c", UNSURE), trial.order("d", BROKEN)]
        trial.executor.handle([*orders, trial.order("e")])
        for name, label in (("a", "Hand"), ("b", "CXR"), ("c", "CXR"), ("d", "Knee")):
            trial.put(name, label)
        assert trial.compare() == {"Hand": {"Hand": 1}, "CXR": {"Hand": 1, "review": 1}, "Knee": {"quarantine": 1}}

    def test_by_bytes(self, trial: Trial) -> None:
        """A copy under another name and time is found, a file of other bytes and the same size is not; each once."""
        trial.executor.handle([trial.order("a", data=b"aaaa")])
        folder = trial.places.sorted / "Hand" / "2026" / "03"
        folder.mkdir(parents=True)
        (folder / "other").write_bytes(b"bbbb")
        assert trial.compare() == {}
        (folder / "renamed").write_bytes(b"aaaa")
        (folder / "twice").write_bytes(b"aaaa")
        assert trial.compare() == {"Hand": {"Hand": 1}}

    def test_what_a_model_filed_is_no_evidence(self, trial: Trial) -> None:
        """After a change to `mode: sort` the daemon does not agree with itself."""
        trial.executor.handle([trial.order("a")])
        DecisionExecutor(trial.book, trial.executor.mover, trial.places, "m" * 64).carry_out([trial.order("a")])
        assert (trial.places.sorted / "Hand" / "a").exists()
        assert trial.compare() == {}


class TestAudit:
    """Files that people sort during a trial are expected by the audit."""

    def audit(self, trial: Trial, *, quick: bool = False) -> tuple[list[tuple[str, str]], int]:
        with LedgerReader(trial.path) as ledger_reader:
            look = Audit(ledger_reader, trial.places, ShadowInbox(trial.inbox, []), trial.root / "state", quick=quick)
            report = look.run()
        return [(found.kind, os.path.basename(found.path)) for found in report.findings], report.by_people

    @pytest.fixture(autouse=True)
    def places(self, trial: Trial) -> None:
        for place in vars(trial.places).values():
            place.mkdir()

    @pytest.mark.parametrize("quick", [False, True])
    def test_what_people_sorted_is_no_finding(self, trial: Trial, quick: bool) -> None:
        """Moved, copied or renamed by hand, a file that was decided upon is counted; what was not stays unknown."""
        trial.executor.handle([trial.order(name) for name in ("a", "b", "waits")] + [trial.order("c", BROKEN)])
        trial.put("a", "Hand")
        trial.put("c", "CXR")
        (trial.places.sorted / "Hand" / "renamed").write_bytes((trial.inbox / "b").read_bytes())
        (trial.places.review / "d").write_bytes(b"d")  # of the same size, and nobody decided upon it
        assert self.audit(trial, quick=quick) == ([("unknown", "d")], 3)

    def test_what_the_daemon_filed_since_is_doubled(self, trial: Trial) -> None:
        """After a change to `mode: sort` a second copy of a filed file is told, although there was a trial."""
        trial.executor.handle([trial.order("a")])
        DecisionExecutor(trial.book, trial.executor.mover, trial.places, "m" * 64).carry_out([trial.order("a")])
        (trial.places.sorted / "Hand" / "again").write_bytes(b"a")
        assert self.audit(trial) == ([("doubled", "again")], 0)


def test_the_inbox_need_only_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is moved out of it, so nothing is asked for that; else the daemon refuses to start."""
    (tmp_path / "inbox").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    shadow, sort = (loader.Config(mode=mode).resolve_paths(tmp_path) for mode in ("shadow", "sort"))
    assert isinstance(stations.usable_inbox(shadow), ShadowInbox)
    with pytest.raises(Fatal, match="moved out"):
        stations.usable_inbox(sort)


SHADOW = (
    "mode: shadow\ninbox: {settle_s: 0.1, patience_s: 0.2, scan_interval_s: 0.2}\nmetrics: {port: 0}\n"
    "output: {sorted: filed, review: later, quarantine: bad}\n"
)


def _images(daemon: Daemon, count: int) -> dict[str, bytes]:
    rng = default_rng(4)
    images = {f"{number}.jpeg": picture(rng) for number in range(count)} | {"broken.jpeg": b"x"}
    for name, data in images.items():
        (daemon.inbox / name).write_bytes(data)
    return images


def test_the_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file decided upon once, over scans and a restart; none moved or pending; status compares with people."""
    daemon = Daemon(tmp_path, SHADOW, stub=True)
    images = _images(daemon, 5)

    def decided() -> list[str]:
        return sorted(line["digest"] for line in daemon.events("image.shadowed"))

    with daemon.start():
        daemon.until(lambda: len(decided()) == 6)
        (tmp_path / "inbox" / "more.jpeg").write_bytes(picture(default_rng(9)))
        daemon.until(lambda: len(decided()) == 7)
        told = metrics(daemon)
        assert (told["mednet_files_seen_total"], told["mednet_files_shadowed_total"]) == (7, 7)
        assert (told["mednet_files_pending"], told["mednet_files_withdrawn_total"]) == (0, 0)
        assert daemon.stop() == 0
    with daemon.start():
        os.utime(tmp_path / "inbox" / "0.jpeg")
        (tmp_path / "inbox" / "last.jpeg").write_bytes(picture(default_rng(10)))
        daemon.until(lambda: len(decided()) == 8)
        daemon.until(lambda: metrics(daemon)["mednet_files_shadowed_total"] == 2)  # the touched one, and the last
        assert daemon.stop() == 0
    assert len(set(decided())) == 8
    assert {name: (tmp_path / "inbox" / name).read_bytes() for name in images} == images
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "inbox", "log", "state"]
    _people_sort(daemon, capsys)


def _people_sort(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    label = next(line["class"] for line in daemon.events("image.shadowed") if line["outcome"] == "sorted")
    files = {line["name"]: line for line in daemon.events("image.shadowed")}
    (daemon.root / "filed" / label).mkdir(parents=True)
    for name in files:
        (daemon.inbox / name).rename(daemon.root / "filed" / label / name)
    main.main(["status", "--json", "--config", str(daemon.config)])
    told = json.loads(capsys.readouterr().out)["shadow"]
    agreed = sum(line["class"] == label and line["outcome"] == "sorted" for line in files.values())
    assert (told["found"], told["agreed"], list(told["classes"])) == (8, agreed, [label])
    main.main(["status", "--config", str(daemon.config)])
    assert "backlog     nothing" in (told := capsys.readouterr().out)  # a trial makes no directories
    assert f"8 of them into class directories since, {agreed} as decided" in told
    assert main.main(["explain", "--config", str(daemon.config), "broken.jpeg"]) == 0
    assert "it was not moved" in capsys.readouterr().out
    assert main.main(["audit", "--config", str(daemon.config)]) == 0
    assert "8 of those on disk were put there by people, after decisions in shadow mode" in capsys.readouterr().out
    assert digest(b"x") in {line["digest"] for line in files.values()}


def test_after_the_trial(tmp_path: Path) -> None:
    """With `mode: sort` the files that were left in the inbox are filed as any others."""
    daemon = Daemon(tmp_path, SHADOW, stub=True)
    images = _images(daemon, 3)
    with daemon.start():
        daemon.until(lambda: len(daemon.events("image.shadowed")) == 4)
        assert daemon.stop() == 0
    daemon.config.write_text(daemon.config.read_text().replace("mode: shadow", "mode: sort"))
    with daemon.start():
        daemon.until_filed(4)
        assert daemon.stop() == 0
    assert {line["digest"] for line in daemon.outcomes()} == set(map(digest, images.values()))
    assert os.listdir(daemon.inbox) == []
