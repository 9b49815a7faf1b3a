"""Hostile files among good ones: a short version of ``make hostile``."""

from __future__ import annotations

from pathlib import Path

from tests.proofs.hostile import SPECIAL, Siege


def test_hostile_files_are_accounted_for(tmp_path: Path) -> None:
    """Of 600 hostile files none stops the daemon, none is lost or followed, and the good ones are all sorted.

    Two more hang their decoders.
    """
    siege = Siege(tmp_path, seed=5, hang_every_s=2)
    report = siege.run(600, hangs=2)
    assert report.good == 32
    assert set(siege.special) == set(SPECIAL)
    assert {"empty", "damaged", "truncated", "not_a_file", "too_large", "too_complex"} <= set(report.reasons)
    assert (report.reasons["decoder_crashed"], report.reasons["decoder_hung"]) == (0, 2)
