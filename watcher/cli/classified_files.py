"""Decode and classify files in batches, and yield the results in the order of the files."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait

import numpy as np

from watcher.core.records import Decision, Decoded, Outcome, Rejected
from watcher.images.decoder_pool import DecoderPool
from watcher.model import decision as deciding
from watcher.model import review_triggers
from watcher.model.decision import Network
from watcher.model.review_triggers import ReviewRules

BATCHES_AHEAD = 4
"""Number of batches that may be with the decoders at once."""

Result = Decoded | Rejected


def files_below(paths: Iterable[str]) -> Iterator[str]:
    """Yield each path that is no directory, and every file below the directories, sorted. Links are not followed."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        yield from _files_in(path)


def _files_in(directory: str) -> Iterator[str]:
    """Yield every file below a directory, then the directories that can not be read."""
    unreadable: list[str] = []
    for folder, folders, names in os.walk(directory, onerror=lambda error: unreadable.append(str(error.filename))):
        folders.sort()
        names += [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from (os.path.join(folder, name) for name in sorted(names))
    yield from unreadable


def classify(
    paths: Iterable[str],
    pool: DecoderPool,
    network: Network,
    policy: deciding.Policy,
    batch_size: int,
    review_rules: ReviewRules,
) -> Iterator[tuple[str, Result, Decision]]:
    """Decode and classify files. Yield the results in the order of the paths."""
    remaining, ordered = iter(paths), _InOrder()
    images: list[Decoded] = []
    exhausted = False
    while not exhausted or ordered:
        while not exhausted and len(pool) + len(images) < BATCHES_AHEAD * batch_size:
            path = next(remaining, None)
            exhausted = path is None
            if path is not None:
                ordered.expect(path)
                pool.submit(path)
        for result in pool.collect():
            if isinstance(result, Decoded):
                images.append(result)
            else:
                ordered.put(result, Decision(Outcome.QUARANTINE, None, 0.0, result.reason, result.detail))
        if len(images) >= batch_size or (images and exhausted and not len(pool)):
            batch, images = images[:batch_size], images[batch_size:]
            scores = network(np.stack([image.image for image in batch]))
            decisions = deciding.decide(scores, [image.blank for image in batch], policy)
            for image, decision in zip(batch, decisions, strict=True):
                ordered.put(image, review_triggers.apply(decision, image, review_rules))
        elif len(pool):
            due_s = pool.due_s()
            wait(pool.connections, None if due_s is None else max(0.0, due_s - time.monotonic()))
        yield from ordered.complete()


class _InOrder:
    """Returns results in the order in which their paths were announced."""

    def __init__(self) -> None:
        self._paths: deque[str] = deque()
        self._results: dict[str, list[tuple[Result, Decision]]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def expect(self, path: str) -> None:
        self._paths.append(path)

    def put(self, result: Result, decision: Decision) -> None:
        self._results.setdefault(result.name, []).append((result, decision))

    def complete(self) -> Iterator[tuple[str, Result, Decision]]:
        while self._paths and (results := self._results.get(self._paths[0])):
            path = self._paths.popleft()
            yield (path, *results.pop(0))
            if not results:
                del self._results[path]
