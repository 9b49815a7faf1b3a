"""The way of a file, on one screen: :meth:`Route.step`.

    inbox -> settle -> decode -> batch -> classify -> decide -> ledger -> filing -> ledger -> log

Stations raise; what becomes of the file is decided here. The loop that calls
:meth:`Route.step` owns the clock. Two threads help: one classifies while the
next batch is decoded, one moves files while the next batch is classified.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from watcher import decide, failpoints, log
from watcher.batch import Batcher
from watcher.clerk import Clerk
from watcher.decoder_pool import DecoderPool
from watcher.errors import Retry
from watcher.inbox import Inbox, Watch
from watcher.records import Decision, Decoded, Filed, Order, Outcome, Rejected, Returned, Timing
from watcher.settle import Ready, Settle

CAPACITY = 16384
"""Names remembered at once. Bounds memory; a larger inbox is swept again as it drains."""

SWEEP_CHUNK = 1024
"""Names taken from a sweep in one turn, so that a large inbox does not hold up what is under way."""

COLLECT_S = 0.004
"""How often the decoders' answers are collected during an inference."""

PAUSE_S = 5.0
"""How long a file waits after its surroundings failed it (disk full, ...)."""


class Network(Protocol):
    """What a classifier station looks like from here: images (n, 64, 64) to logits (n, classes)."""

    def __call__(self, images: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Score one batch."""


@dataclass
class Route:
    """All stations, and what is between them."""

    inbox: Inbox
    watch: Watch | None
    settle: Settle
    decoders: DecoderPool
    batcher: Batcher[tuple[Decoded, Ready]]
    network: Network
    policy: decide.Policy
    clerk: Clerk
    log: log.Logger
    device: Callable[[], str]
    wake: Callable[[], None]
    in_flight: int = 256
    scan_interval_s: float = 5.0
    filed: dict[str, int] = field(default_factory=lambda: {o.value: 0 for o in Outcome})

    def __post_init__(self) -> None:
        self._held: dict[str, Ready] = {}
        self._orders: list[Order] = []
        self._sweep: Iterator[str] | None = None
        self._next_sweep_s = float("-inf")
        self._unreachable = False
        self._told_directories = 0
        self._thinking: Future[list[Order]] | None = None
        self._moving: Future[list[tuple[int, Filed | Returned]]] | None = None
        self._thinker = ThreadPoolExecutor(1, "classify")
        self._mover = ThreadPoolExecutor(1, "filing")

    def step(self, now: float) -> float | None:
        """One turn of the route. Gives the time at which the next is due, or None: only when woken."""
        self._look_for_arrivals(now)
        self._send_to_decoders(now)
        self._take_decoded(now)
        self._classify(now)
        self._file(now)
        return self._due(now)

    @property
    def connections(self) -> list[socket.socket]:
        """What else wakes the loop: answers of the decoders, while nothing else is under way.

        During an inference they are collected every COLLECT_S instead: waking for each costs more than it gains.
        """
        return self.decoders.connections if self._thinking is None else []

    def _look_for_arrivals(self, now: float) -> None:
        if self.watch is not None:
            for name in self.watch.take():
                if self.inbox.wants(name) and not self.settle.arrived(name, now):
                    self._next_sweep_s = now
            if self.watch.lost():
                self.log.warning("inbox.events_lost", note="the kernel dropped events; scanning instead")
                self._next_sweep_s = now
        if self._sweep is None and now >= self._next_sweep_s and self.settle.room > 0:
            self._sweep = self.inbox.sweep()
        if self._sweep is not None:
            self._sweep_on(now)

    def _sweep_on(self, now: float) -> None:
        assert self._sweep is not None
        try:
            for _ in range(min(SWEEP_CHUNK, self.settle.room)):
                name = next(self._sweep, None)
                if name is None:
                    return self._swept(now)
                self.settle.seen(name, now)
        except Retry as error:
            self._sweep, self._next_sweep_s = None, now + self.scan_interval_s
            if not self._unreachable:
                self.log.error("inbox.unreachable", detail=str(error), note="waiting for it to come back")
            self._unreachable = True

    def _swept(self, now: float) -> None:
        self._sweep, self._next_sweep_s = None, now + self.scan_interval_s
        if self._unreachable or (self.watch is not None and not self.watch.current):
            self._watch_again()
        if self.inbox.directories != self._told_directories:
            self._told_directories = self.inbox.directories
            self.log.warning("inbox.directories_ignored", count=self._told_directories)

    def _watch_again(self) -> None:
        """The inbox is back: perhaps another directory by now, so the old watch is worth nothing."""
        if self._unreachable:
            self.log.info("inbox.reachable")
        self._unreachable = False
        if self.watch is None:
            return
        self.watch.stop()
        try:
            self.watch.start()
        except Retry as error:
            self.log.error("inbox.not_watched", detail=str(error), note="the scan alone serves")

    def _send_to_decoders(self, now: float) -> None:
        for ready in self.settle.ready(now, self.inbox.look, self._room):
            self._held[ready.name] = ready
            self.decoders.submit(ready.name)
            failpoints.reach("claimed")

    @property
    def _room(self) -> int:
        """How many more files may be between settle and filing: bounds memory when filing is slow."""
        return self.in_flight - len(self.decoders) - len(self.batcher) - len(self._orders)

    def _take_decoded(self, now: float) -> None:
        for result in self.decoders.collect():
            if isinstance(result, Decoded):
                self.batcher.add((result, self._held[result.name]), now)
                failpoints.reach("decoded")
            else:
                self._rejected(result, now)

    def _rejected(self, bad: Rejected, now: float) -> None:
        ready = self._held[bad.name]
        identity = bad.identity or self.inbox.look(bad.name)
        if bad.gone or identity is None:
            self._forget(bad.name)
        elif not ready.last_try:
            del self._held[bad.name]
            self.settle.doubt(bad.name, identity, now)
        else:
            decision = Decision(Outcome.QUARANTINE, None, 0.0, bad.reason, bad.detail)
            timing = Timing(ready.seen_s, (now - ready.seen_s) * 1000)
            self._orders.append(Order(bad.name, identity, bad.digest, decision, timing))

    def _classify(self, now: float) -> None:
        if self._thinking is not None and self._thinking.done():
            self._orders.extend(self._thinking.result())
            self._thinking = None
        if self._thinking is None and (batch := self.batcher.take(now)):
            self._thinking = self._thinker.submit(self._think, batch, now)
            self._thinking.add_done_callback(lambda _: self.wake())

    def _think(self, batch: list[tuple[Decoded, Ready]], now: float) -> list[Order]:
        started = time.perf_counter()
        logits = self.network(np.stack([image.image for image, _ in batch]))
        decisions = decide.decide(logits, [image.blank for image, _ in batch], self.policy)
        infer_ms = (time.perf_counter() - started) * 1000
        return [
            Order(
                image.name,
                image.identity,
                image.digest,
                decision,
                Timing(ready.seen_s, _queued_ms(ready, image, now), image.decode_ms, infer_ms),
            )
            for (image, ready), decision in zip(batch, decisions, strict=True)
        ]

    def _file(self, now: float) -> None:
        if self._moving is not None and self._moving.done():
            self._settle_accounts(self._moving.result(), now)
            self._moving = None
        if self._moving is None and self._orders and not self._unreachable:
            orders, self._orders = self._orders, []
            self._moving = self._mover.submit(self.clerk.carry_out, orders)
            self._moving.add_done_callback(lambda _: self.wake())

    def _settle_accounts(self, results: list[tuple[int, Filed | Returned]], now: float) -> None:
        failed: list[Returned] = []
        for number, result in results:
            name = result.order.name
            if isinstance(result, Filed):
                self.filed[result.order.decision.outcome.value] += 1
                log.outcome(self.log, result, number, self.clerk.model, self.device(), now)
                self._forget(name)
                continue
            del self._held[name]
            self.settle.pause(name, now, PAUSE_S if result.later else 0.0)
            if result.later:
                failed.append(result)
            else:
                self.log.info("image.returned", id=number, name=log.printable(name), detail=log.printable(result.why))
        if failed:
            first = failed[0]
            self.log.error(
                "filing.failed",
                files=len(failed),
                name=log.printable(first.order.name),
                detail=log.printable(first.why),
                note="they stay in the inbox and are tried again, later each time",
            )

    def _forget(self, name: str) -> None:
        self._held.pop(name, None)
        self.settle.forget(name)

    def _due(self, now: float) -> float | None:
        sweep = None if self._sweep is None and self.settle.room <= 0 else self._next_sweep_s
        if self._sweep is not None and self.settle.room > 0:
            sweep = float("-inf")
        batch = None if self._thinking is not None else self.batcher.due_s()
        settle = self.settle.due_s() if self._room > 0 else None
        answers = now + COLLECT_S if self._thinking is not None and len(self.decoders) else self.decoders.due_s()
        return min((due for due in (sweep, batch, settle, answers) if due is not None), default=None)

    def close(self, now: float) -> None:
        """Finish the move under way; everything else simply stays in the inbox."""
        if self.watch is not None:
            self.watch.stop()
        self._thinker.shutdown(wait=True)
        self._mover.shutdown(wait=True)
        if self._moving is not None:
            self._settle_accounts(self._moving.result(), now)
            self._moving = None
        self.decoders.close()


def _queued_ms(ready: Ready, image: Decoded, now: float) -> float:
    """What a file waited, from first sight to its inference, without the decoding itself."""
    return max(0.0, (now - ready.seen_s) * 1000 - image.decode_ms)
