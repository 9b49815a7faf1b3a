"""``classify``: what the daemon would do with these files, and ``--sort-into`` does it with copies."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Retry, Vanished
from watcher.core.printable import printable
from watcher.core.records import Decision, Decoded, Outcome, Rejected
from watcher.filing import mover
from watcher.filing.destinations import Destinations
from watcher.images.decoder_pool import DecoderPool
from watcher.model import checkpoint, promotions, review_triggers, thresholds
from watcher.model import decision as deciding
from watcher.model.decision import Network
from watcher.monitoring import log
from watcher.service import stations
from watcher.service.load_model import load as load_network

AHEAD = 4
"""Batches of files in the decoders' hands at once."""

Result = Decoded | Rejected


def run(args: argparse.Namespace) -> int:
    """Print one line for each file, in the order given. Exit code 1 if one could not be found or copied."""
    settings = loader.load_or_default(args.config)
    logger = log.configure("console", "warning", sys.stderr)
    pool = DecoderPool(None, paths_and_limits.decoder_limits(settings), settings.decode.timeout_s)
    pool.start()
    try:
        weights = checkpoint.load(promotions.weights_path(args.weights, settings))
        policy = thresholds.policy(settings.review, weights)
        network, _ = load_network(settings, weights, logger)
        show = _json_line(weights.digest) if args.json else _text_line
        sort = _Sorter(args.sort_into, weights.classes) if args.sort_into else None
        if not args.json:
            print(f"{'outcome':10} {'class':10} {'conf.':>7}  {'file':40} top three")
        failed = False
        doubts = stations.review_rules(settings)
        for path, result, decision in classified(files(args.paths), pool, network, policy, settings.batch.size, doubts):
            destination = sort(path, result, decision) if sort else None
            print(show(path, decision, destination), flush=args.json)
            failed |= decision.reason == "not_found" or bool(sort and destination is None)
    finally:
        pool.close()
    return Exit.FAILED if failed else Exit.OK


def files(paths: Iterable[str]) -> Iterator[str]:
    """Each path that is no directory, and every file below the directories, sorted. Links are not followed."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        yield from _below(path)


def _below(directory: str) -> Iterator[str]:
    unreadable: list[str] = []
    for folder, folders, names in os.walk(directory, onerror=lambda error: unreadable.append(str(error.filename))):
        folders.sort()
        names += [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from (os.path.join(folder, name) for name in sorted(names))
    yield from unreadable


def classified(
    paths: Iterable[str],
    pool: DecoderPool,
    network: Network,
    policy: deciding.Policy,
    size: int,
    doubts: review_triggers.ReviewRules = review_triggers.ReviewRules(),
) -> Iterator[tuple[str, Result, Decision]]:
    """Decode and classify in batches of ``size``; results in the order of the paths."""
    source, waiting = iter(paths), _InOrder()
    batch: list[Decoded] = []
    exhausted = False
    while not exhausted or waiting:
        while not exhausted and len(pool) + len(batch) < AHEAD * size:
            path = next(source, None)
            exhausted = path is None
            if path is not None:
                waiting.expect(path)
                pool.submit(path)
        for result in pool.collect():
            if isinstance(result, Decoded):
                batch.append(result)
            else:
                waiting.put(result, Decision(Outcome.QUARANTINE, None, 0.0, result.reason, result.detail))
        if len(batch) >= size or (batch and exhausted and not len(pool)):
            now, batch = batch[:size], batch[size:]
            decisions = deciding.decide(network(np.stack([d.image for d in now])), [d.blank for d in now], policy)
            for image, decision in zip(now, decisions, strict=True):
                waiting.put(image, review_triggers.apply(decision, image, doubts))
        elif len(pool):
            due = pool.due_s()
            wait(pool.connections, None if due is None else max(0.0, due - time.monotonic()))
        yield from waiting.complete()


class _InOrder:
    """Gives results back in the order in which their paths were announced."""

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
        while self._paths and (found := self._results.get(self._paths[0])):
            path = self._paths.popleft()
            yield (path, *found.pop(0))
            if not found:
                del self._results[path]


class _Sorter:
    """Copies files into class directories, made if missing. Says where each lies, None if it could not."""

    def __init__(self, root: Path, classes: Iterable[str]) -> None:
        self._places = Destinations(root, root / "review", root / "quarantine", root / "rejected")
        for name in (*classes, "review", "quarantine"):
            mover.prepare(root / name)

    def __call__(self, path: str, result: Result, decision: Decision) -> Path | None:
        try:
            return mover.copy(Path(path), result.identity, result.digest, self._places.of(decision))
        except (Retry, Vanished) as error:
            print(f"mednet-watcher: not copied: {printable(str(error))}", file=sys.stderr)
            return None


def _json_line(model: str) -> Callable[[str, Decision, Path | None], str]:
    def line(path: str, decision: Decision, destination: Path | None) -> str:
        told = {
            "path": path,
            "outcome": decision.outcome.value,
            "class": decision.label,
            "confidence": decision.confidence,
            "reason": decision.reason,
            "top": decision.top,
            "model": model,
        }
        if decision.detail is not None:
            told["detail"] = decision.detail
        if destination is not None:
            told["destination"] = str(destination)
        return json.dumps(told)

    return line


def _text_line(path: str, decision: Decision, destination: Path | None) -> str:
    told = "  ".join(f"{name} {probability:.4f}" for name, probability in decision.top) or printable(
        f"{decision.reason}: {decision.detail}"
    )
    if decision.reason and decision.top:
        told += f"  ({decision.reason})"
    arrow = f" -> {printable(str(destination))}" if destination else ""
    confidence = f"{decision.confidence:7.4f}" if decision.top else " " * 7
    return f"{decision.outcome.value:10} {decision.label or '-':10} {confidence}  {printable(path):40} {told}{arrow}"
