"""A stuck stage is told from an idle one and from a slow one, by numbers alone."""

from __future__ import annotations

from watcher.service.stall_detection import StageProgress, StallDetector, StuckStage


def progress(owes: int, done: int, stage: str = "decode", limit_s: float = 10) -> StageProgress:
    return StageProgress(stage, owes, done, limit_s)


def test_a_stage_that_owes_nothing_is_never_stuck() -> None:
    """A stage may be idle for however long."""
    detector = StallDetector()
    assert [detector.stuck([progress(0, 5)], now) for now in (0.0, 1e6)] == [None, None]


def test_idle_time_does_not_count() -> None:
    """The limit counts from when there was something to do, not from the last piece done."""
    detector = StallDetector()
    detector.stuck([progress(0, 5)], 0)
    detector.stuck([progress(0, 5)], 1000)
    assert detector.stuck([progress(1, 5)], 1009) is None
    assert detector.stuck([progress(1, 5)], 1011) == StuckStage("decode", 1, 11)


def test_each_piece_done_starts_anew() -> None:
    """A stage that always owes something and gets on is not stuck."""
    detector = StallDetector()
    assert all(detector.stuck([progress(7, now)], now * 9.0) is None for now in range(100))


def test_the_longest_is_reported() -> None:
    """Of two stuck stages the one that has been stuck for longer is reported: the other may wait for it."""
    detector = StallDetector()
    detector.stuck([progress(1, 0, "decode"), progress(0, 0, "filing")], 0)
    detector.stuck([progress(1, 0, "decode"), progress(1, 0, "filing")], 5)
    stuck = detector.stuck([progress(3, 0, "decode"), progress(1, 0, "filing")], 30)
    assert stuck == StuckStage("decode", 3, 30)


def test_each_stage_has_its_own_limit() -> None:
    """A time that is too long for one stage may be short for another."""
    detector = StallDetector()
    stages = [progress(1, 0, "classify", 10), progress(1, 0, "takeover", 600)]
    detector.stuck(stages, 0)
    assert detector.stuck(stages, 10) is None
    assert detector.stuck(stages[1:], 600) is None
    assert detector.stuck(stages[1:], 601) == StuckStage("takeover", 1, 601)
