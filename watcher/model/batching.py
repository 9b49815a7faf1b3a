"""Fill a batch to its size, or until its oldest image has waited long enough."""

from __future__ import annotations

from typing import Generic, TypeVar

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """A queue that gives out batches of at most ``size`` items. No item waits longer than ``max_wait_ms``."""

    def __init__(self, size: int, max_wait_ms: float) -> None:
        self._size, self._max_wait_s = size, max_wait_ms / 1000
        self._items: list[tuple[float, Item]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item, now: float) -> None:
        """Add an item that begins to wait at ``now``, in monotonic seconds."""
        self._items.append((now, item))

    def due_s(self) -> float | None:
        """Return the time when the next batch is due: in the past if one is full, None if there is no item."""
        if not self._items:
            return None
        oldest = self._items[0][0]
        return oldest if len(self._items) >= self._size else oldest + self._max_wait_s

    def take(self, now: float) -> list[Item]:
        """Return the next batch if it is due, else an empty list."""
        due = self.due_s()
        if due is None or due > now:
            return []
        batch, self._items = self._items[: self._size], self._items[self._size :]
        return [item for _, item in batch]
