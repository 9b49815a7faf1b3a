"""Classify batches in a thread of its own, while the next batch is decoded."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from watcher.core.records import Decoded, MoveOrder, Timing
from watcher.inbox.completeness import CompleteFile
from watcher.model import review_triggers
from watcher.model.decision import decide
from watcher.service.stages.stage import FilesUnderWay, Stage
from watcher.service.stall_detection import StageProgress
from watcher.service.stations import Stations

Batch = list[tuple[Decoded, CompleteFile]]


class Classify(Stage):
    """Turns batches of images into orders to move them."""

    def __init__(self, files: FilesUnderWay) -> None:
        self._files, self._thread = files, _new_thread()
        self._inference: Future[list[MoveOrder]] | None = None
        self._begun = self._ended = 0

    def advance(self, now: float) -> None:
        """Take in the orders of the batch that has ended, and begin the next if it is due."""
        files = self._files
        if self._inference is not None and self._inference.done():
            files.orders.extend(self._inference.result())
            self._inference = None
            self._ended += 1
        if self._inference is None and (batch := files.batcher.take(float("inf") if self._last_batch else now)):
            self._inference = self._thread.submit(orders_of, batch, files.stations, now)
            self._begun += 1
            files.counters.batches.add(len(batch))
            self._inference.add_done_callback(lambda _: files.wake())
        files.classifying = self._inference is not None

    @property
    def _last_batch(self) -> bool:
        """True if a reload waits and nothing more is being decoded: then the last batch need not be full."""
        return self._files.draining and not len(self._files.stations.decoders)

    def due_s(self, now: float) -> float | None:
        """Return when the batch that fills must begin, full or not."""
        due = None if self._inference is not None else self._files.batcher.due_s()
        return now if due is not None and self._last_batch else due

    def progress(self, now: float) -> list[StageProgress]:
        """Count batches begun and ended."""
        limits, due = self._files.stations.limits, self._files.batcher.due_s()
        waits = due is not None and due <= now and self._inference is None
        return [
            StageProgress("batch", int(waits), self._begun, limits.batch),
            StageProgress("classify", int(self._inference is not None), self._ended, limits.classify),
        ]

    def use(self, stations: Stations) -> None:
        """Use a new thread for a new network: torch keeps its number of threads for each thread that calls it."""
        if stations.network is not self._files.stations.network:
            self._thread.shutdown()
            self._thread = _new_thread()

    def close(self, now: float) -> None:
        """Wait for the inference under way. Its files stay in the inbox."""
        self._thread.shutdown(wait=True)


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "classify")


def orders_of(batch: Batch, stations: Stations, now: float) -> list[MoveOrder]:
    """Classify a batch that was taken at ``now``, and return the order to move each of its files."""
    started = time.perf_counter()
    scored = stations.network(np.stack([image.image for image, _ in batch]))
    decisions = decide(scored, [image.blank for image, _ in batch], stations.policy)
    infer_ms = (time.perf_counter() - started) * 1000
    return [
        MoveOrder(
            image.name,
            image.identity,
            image.digest,
            review_triggers.apply(decision, image, stations.review_rules),
            Timing(ready.seen_s, _queued_ms(ready, image, now), image.decode_ms, infer_ms),
            new_name=stations.title(image),
        )
        for (image, ready), decision in zip(batch, decisions, strict=True)
    ]


def _queued_ms(ready: CompleteFile, image: Decoded, now: float) -> float:
    """Return the milliseconds from first sight to inference, without the decoding."""
    return max(0.0, (now - ready.seen_s) * 1000 - image.decode_ms)
