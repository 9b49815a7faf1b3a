"""Which station is stuck: by numbers alone."""

from __future__ import annotations

from watcher.service.stall_detection import StageProgress, StallDetector, StuckStage


def work(owes: int, done: int, station: str = "decode", limit_s: float = 10) -> StageProgress:
    return StageProgress(station, owes, done, limit_s)


def test_one_that_owes_nothing_is_never_stuck() -> None:
    """However long it has been idle."""
    pulse = StallDetector()
    assert [pulse.stuck([work(0, 5)], now) for now in (0.0, 1e6)] == [None, None]


def test_idle_time_does_not_count() -> None:
    """The limit counts from when there was something to do, not from the last piece done."""
    pulse = StallDetector()
    pulse.stuck([work(0, 5)], 0)
    pulse.stuck([work(0, 5)], 1000)
    assert pulse.stuck([work(1, 5)], 1009) is None
    assert pulse.stuck([work(1, 5)], 1011) == StuckStage("decode", 1, 11)


def test_each_piece_done_starts_anew() -> None:
    """One that always owes and gets on is not stuck."""
    pulse = StallDetector()
    assert all(pulse.stuck([work(7, now)], now * 9.0) is None for now in range(100))


def test_the_longest_is_told() -> None:
    """Of two that are stuck, the one that has been so for longer: the other may wait for it."""
    pulse = StallDetector()
    pulse.stuck([work(1, 0, "decode"), work(0, 0, "filing")], 0)
    pulse.stuck([work(1, 0, "decode"), work(1, 0, "filing")], 5)
    found = pulse.stuck([work(3, 0, "decode"), work(1, 0, "filing")], 30)
    assert found == StuckStage("decode", 3, 30)


def test_each_has_its_own_limit() -> None:
    """What is long for one is not for another."""
    pulse = StallDetector()
    works = [work(1, 0, "classify", 10), work(1, 0, "takeover", 600)]
    pulse.stuck(works, 0)
    assert pulse.stuck(works, 10) is None
    assert pulse.stuck(works[1:], 600) is None
    assert pulse.stuck(works[1:], 601) == StuckStage("takeover", 1, 601)
