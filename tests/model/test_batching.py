"""Batcher: full or due, whichever comes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from watcher.model.batching import Batcher


def test_empty_is_never_due() -> None:
    """Without images there is nothing to wait for and nothing to take."""
    batcher: Batcher[str] = Batcher(2, 100)
    assert batcher.due_s() is None
    assert batcher.take(1e9) == []


def test_full_batch_leaves_at_once() -> None:
    """A full batch is due already when its last image arrives."""
    batcher: Batcher[str] = Batcher(2, 1000)
    batcher.add("a", 5.0)
    assert batcher.take(5.0) == []
    batcher.add("b", 5.0)
    assert batcher.take(5.0) == ["a", "b"]
    assert len(batcher) == 0


def test_lone_image_waits_max_wait_ms() -> None:
    """An image without company leaves max_wait_ms after its arrival: not before, and not later."""
    batcher: Batcher[str] = Batcher(64, 50)
    batcher.add("a", 10.0)
    due = batcher.due_s()
    assert due is not None and abs(due - 10.05) < 1e-9
    assert batcher.take(10.049) == []
    assert batcher.take(due) == ["a"]


def test_the_wait_is_that_of_the_oldest() -> None:
    """A newcomer does not prolong the wait of the oldest; after a batch has left, the next oldest counts."""
    batcher: Batcher[int] = Batcher(2, 1000)
    for number in range(3):
        batcher.add(number, float(number))
    assert batcher.take(2.0) == [0, 1]
    assert batcher.due_s() == 3.0


@given(st.lists(st.floats(0, 10), max_size=40), st.integers(1, 7), st.floats(0, 2000))
def test_nothing_is_lost_doubled_or_reordered(waits: list[float], size: int, max_wait_ms: float) -> None:
    """Every image leaves exactly once, in order of arrival, in batches of at most size."""
    batcher: Batcher[int] = Batcher(size, max_wait_ms)
    now, left = 0.0, []
    for number, wait in enumerate(waits):
        now += wait
        batcher.add(number, now)
        batch = batcher.take(now)
        assert len(batch) <= size
        left += batch
    while (due := batcher.due_s()) is not None:
        batch = batcher.take(max(now, due))
        assert 0 < len(batch) <= size
        left += batch
    assert left == list(range(len(waits)))
