"""Ways into the inbox that need no server; ``make test-producers`` tries all of them with more files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proofs.producers import Trial, _scratch, row
from tests.support import producer_ways, waiting
from tests.support.daemon import Daemon

FILES = 6
FAST = "inbox: {{settle_s: 0.3, patience_s: {patience_s}, scan_interval_s: 0.3}}\n"
QUICK = ("cp", "mv", "mv-across", "link", "rsync", "tar", "overwrite", "slow", "slow-closed")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """One daemon for all of them."""
    daemon = Daemon(tmp_path_factory.mktemp("producers"), FAST.format(patience_s=20), stub=True)
    with daemon, _scratch() as scratch:
        yield Trial(daemon, scratch)


@pytest.fixture(autouse=True)
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writers pause for less, and still longer than the daemon settles, which is told to be quicker here."""
    monkeypatch.setattr(producer_ways, "PAUSE_S", waiting.slowness())
    monkeypatch.setattr("tests.proofs.producers.QUIET_S", 0.2)


@pytest.mark.parametrize("way", [way for way in producer_ways.WAYS if way.name in QUICK], ids=lambda way: way.name)
def test_never_early_never_missed_never_doubled(trial: Trial, way: producer_ways.Way) -> None:
    """Each file is decided upon when it is complete, sorted, and sorted once."""
    if lacking := producer_ways.missing(way):
        pytest.skip(f"needs {', '.join(lacking)}")
    tally = trial.run(way, FILES)
    assert tally.good, row(tally)
    assert len(tally.latencies_s) == FILES


def test_an_impatient_daemon_is_found_out(tmp_path: Path) -> None:
    """The trial can fail: with no patience, files whose writer pauses are decided upon too early, and that shows."""
    [slow] = [way for way in producer_ways.WAYS if way.name == "slow"]
    with Daemon(tmp_path, FAST.format(patience_s=0), stub=True) as daemon, _scratch() as scratch:
        tally = Trial(daemon, scratch).run(slow, 2)
    assert (tally.early, tally.good) == (2, False)
