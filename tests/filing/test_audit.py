"""The audit: whatever does not match between ledger and disk is named, once, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import mednet
from tests.support.filing_site import BROKEN, HAND, ODD, FilingSite, audit
from watcher.core.errors import Fatal
from watcher.core.lock import Lock
from watcher.core.records import Decision, Identity, MoveOrder, Outcome, Timing
from watcher.filing import put_back, quarantine_notes
from watcher.filing.audit import Audit
from watcher.filing.audit_report import Finding
from watcher.filing.recovery import recover
from watcher.ledger.writer import Ledger

UNSURE = Decision(Outcome.REVIEW, "Hand", 0.5, "low_confidence", "0.5")


@pytest.fixture
def site(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[FilingSite]:
    site = FilingSite(tmp_path, identify)
    site.file("a.png", HAND, b"one")
    site.file(ODD, UNSURE, b"two")
    site.file("c.png", BROKEN, b"three")
    yield site
    site.book.close()


def told(site: FilingSite, quick: bool = False) -> list[tuple[str, str, int | None]]:
    return [(f.kind, os.path.basename(f.path), f.id) for f in audit(site, quick).findings]


@pytest.mark.parametrize("quick", [False, True])
def test_all_matches(site: FilingSite, quick: bool) -> None:
    """Files where they were filed, their reason files, and files waiting: no finding, and the account adds up."""
    (site.inbox / "waiting.png").write_bytes(b"x")
    site.undo(number=1)
    report = audit(site, quick)
    assert report.findings == []
    assert (report.filed, report.restored) == (
        {"sorted": 1, "review": 1, "quarantine": 1},
        {"sorted": 1},
    )
    assert [report.due(p) for p in ("sorted", "review", "quarantine")] == [0, 1, 1]
    assert (report.on_disk, report.pending) == ({"review": 1, "quarantine": 1}, 2)


def test_missing(site: FilingSite) -> None:
    """A file that is nowhere."""
    (site.hand / "a.png").unlink()
    assert told(site) == told(site, quick=True) == [("missing", "a.png", 1)]


@pytest.mark.parametrize("found", ["never", "in the inbox", "filed"])
def test_what_the_ledger_calls_missing(site: FilingSite, found: str) -> None:
    """A file that was nowhere when its move was reconciled is told, until it turns up."""
    order = site.order("m.png", HAND, b"gone")
    with site.book.transaction():
        [number] = site.book.record_decisions([order], [str(site.hand)], "m" * 64, site.inbox)
    (site.inbox / "m.png").unlink()
    assert [ending.state for ending in recover(site.book)] == ["missing"]
    if found == "filed":
        site.file("again.png", HAND, b"gone")
    if found == "in the inbox":
        (site.inbox / "again.png").write_bytes(b"gone")
    expected = {"never": [("missing", "m.png", number)], "in the inbox": [("moved", "m.png", number)], "filed": []}
    assert told(site) == expected[found]


@pytest.mark.parametrize("to", ["review/x", "inbox/x", "sorted/CXR/x", "quarantine/" + ODD])
def test_moved_by_hand(site: FilingSite, to: str) -> None:
    """A file that somebody moved is found by its bytes, and is not unknown there."""
    target = site.root / to
    target.parent.mkdir(exist_ok=True)
    (site.hand / "a.png").rename(target)
    assert audit(site).findings == [Finding("moved", str(site.hand / "a.png"), "a.png", 1, str(target))]


def test_changed(site: FilingSite) -> None:
    """Other bytes, of another size or of the same; a quick audit looks at the size only."""
    (site.hand / "a.png").write_bytes(b"ONE")
    (site.root / "review" / ODD).write_bytes(b"longer")
    assert told(site) == [("changed", "a.png", 1), ("changed", ODD, 2)]
    assert told(site, quick=True) == [("changed", ODD, 2)]


def test_unknown_and_doubled(site: FilingSite) -> None:
    """A file nobody filed; one with the bytes of a filed one is doubled, and it is said where that lies."""
    (site.hand / "b\n.png").write_bytes(b"new")
    (site.quarantine / "d.png").write_bytes(b"one")
    assert told(site) == [("doubled", "d.png", 1), ("unknown", "b\n.png", None)]


def test_one_path_filed_twice(site: FilingSite) -> None:
    """A file removed by hand whose name another got since: the first is missing, the second is not changed."""
    (site.hand / "a.png").unlink()
    site.file("a.png", HAND, b"uno")
    assert told(site) == [("missing", "a.png", 1)]


def test_stray_reason(site: FilingSite) -> None:
    """A reason file without its file; those of names too long for the ending are known, too."""
    for end, data in (("1", b"four"), ("2", b"five")):
        site.file("n" * 250 + f"{end}.png", BROKEN, data)
    assert told(site) == []
    lost = site.quarantine / ("n" * 250 + "2.png")
    lost.rename(site.root / "aside")
    assert told(site) == [("stray_reason", quarantine_notes.path_beside(lost).name, None), ("missing", lost.name, 5)]
    (site.root / "aside").rename(lost)
    (site.quarantine / "c.png").rename(site.root / "elsewhere")
    assert told(site) == [("stray_reason", "c.png.reason.json", None), ("missing", "c.png", 3)]


def test_a_file_that_looks_like_a_reason(site: FilingSite) -> None:
    """An arriving file with such a name is a file like any other."""
    site.file("x.reason.json", BROKEN, b"{}")
    assert told(site) == []


def test_it_keeps_nothing_open_after_an_error(site: FilingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit that cannot read the inbox closes its temporary database."""
    opened, connect = list[sqlite3.Connection](), sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: opened.append(connect(*words, **more)) or opened[-1])
    shutil.rmtree(site.inbox)
    with pytest.raises(Fatal):
        audit(site)
    assert len(opened) == 2
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("select 1")


def test_partial(site: FilingSite) -> None:
    """An unfinished copy is a finding, also in the inbox."""
    for directory in (site.hand, site.inbox):
        (directory / ".0123.mednet-partial").write_bytes(b"half")
    assert told(site) == [("partial", ".0123.mednet-partial", None)] * 2


def test_unended(site: FilingSite) -> None:
    """A move whose owner died is told, and what it explains is not; while its owner lives there is no finding."""
    book = Ledger(site.path, owner="operator")
    path = site.hand / "a.png"
    order = MoveOrder(
        "a.png", site.identify(path), "d" * 64, Decision(Outcome.RESTORED, None, 0.0, "undo"), Timing(0.0), str(path), 1
    )
    with book.transaction():
        book.record_decisions([order], [str(site.root / "review")], None)
    book.close()
    path.rename(site.root / "review" / "a.png")
    held = Lock(site.path.with_name("operator.lock"))
    held.acquire()
    assert told(site) == []
    held.release()
    assert told(site) == [("unended", "a.png", 4)]


def test_what_is_filed_and_put_back_meanwhile(site: FilingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon and a person at work during the audit make no finding."""
    walk = Audit._walk

    def then_more(self: Audit, place: tuple[str, Path] | None) -> Iterator[str]:
        yield from walk(self, place)
        if place is None:
            site.file("b.png", HAND, b"more")
            site.undo(number=1)

    monkeypatch.setattr(Audit, "_walk", then_more)
    assert told(site) == []


def test_put_back_elsewhere(site: FilingSite) -> None:
    """Files that a person took out are told apart."""
    site.undo(put_back.prepare_landing(site.root / "out", site.inbox), number=1)
    report = audit(site)
    assert (report.findings, report.elsewhere) == ([], 1)


def test_command(site: FilingSite) -> None:
    """The equation and the findings in words and as JSON; exit code 0 when all matches, else 1; nothing is written."""
    config = site.root / "config.yaml"
    config.touch()
    ended = mednet("audit", "--config", str(config))
    assert (ended.returncode, "everything matches" in ended.stdout) == (0, True), ended.stderr
    assert "seen 3 = sorted 1 + review 1 + quarantined 1 + pending 0" in ended.stdout
    (site.root / "review" / ODD).rename(site.inbox / "x")
    before = sorted(site.root.rglob("*"))
    ended = mednet("audit", "--json", "--config", str(config))
    [finding] = json.loads(ended.stdout)["findings"]
    assert (ended.returncode, finding["kind"], finding["where"]) == (1, "moved", str(site.inbox / "x"))
    assert finding["advice"]
    assert "odd \\udcff\\n.png" in mednet("audit", "--quick", "--config", str(config)).stdout
    assert sorted(site.root.rglob("*")) == before


def test_many_pages(site: FilingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of many pages is read to its end."""
    monkeypatch.setattr("watcher.ledger.reader.PAGE", 2)
    site.file("d.png", HAND, b"d")
    (site.hand / "d.png").unlink()
    assert told(site) == [("missing", "d.png", 4)]


def test_a_time_beyond_what_sqlite_holds(tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
    """Files that are dated after 2262-04-11 are filed, audited and put back as others are."""

    def dated(path: Path) -> Identity:
        os.utime(path, (10**10,) * 2)
        if os.lstat(path).st_mtime_ns < 1 << 63:
            pytest.skip("this file system knows no such time")
        return identify(path)

    site = FilingSite(tmp_path, dated)
    site.file("a.png", HAND, b"one")
    assert told(site) == []
    assert [result.state for result in site.undo(number=1)] == ["restored"]
    assert told(site) == []
    site.book.close()
