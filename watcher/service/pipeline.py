"""The way of a file, on one screen: :meth:`Pipeline.step`.

    inbox -> settle -> decode -> batch -> classify -> decide -> ledger -> filing -> ledger -> log

Stations raise; what becomes of the file is decided here. The loop that calls
:meth:`Pipeline.step` owns the clock. Two threads help: one classifies while the
next batch is decoded, one moves files while the next batch is classified.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from watcher.core import failpoints
from watcher.core.errors import Fatal, Retry
from watcher.core.records import (
    Decision,
    Decoded,
    Filed,
    Identity,
    LedgerLag,
    MoveOrder,
    Outcome,
    Rejected,
    Returned,
    Shadowed,
    Timing,
)
from watcher.filing.decision_executor import DecisionExecutor, Result
from watcher.filing.takeover import Takeover
from watcher.images.decoder_pool import DecoderPool
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.completeness import CompleteFile, PendingFiles
from watcher.inbox.scan import Inbox
from watcher.inbox.sharing import Claimer
from watcher.model import decision as deciding
from watcher.model import review_triggers
from watcher.model.batching import Batcher
from watcher.model.decision import Network
from watcher.monitoring import log
from watcher.monitoring.counters import Counters, Totals
from watcher.review.verdict_worker import VerdictWorker
from watcher.service import log_lines, stall_detection
from watcher.service.stall_detection import StageProgress

CAPACITY = 16384
"""Names remembered at once. Bounds memory; a larger inbox is swept again as it drains."""

COLLECT_S = 0.004
"""How often the decoders' answers are collected during an inference."""

PAUSE_S = 5.0
"""How long a file waits after its surroundings failed it (disk full, ...)."""


@dataclass
class Pipeline:
    """All stations, and what is between them."""

    arrivals: Arrivals
    decoders: DecoderPool
    batcher: Batcher[tuple[Decoded, CompleteFile]]
    network: Network
    policy: deciding.Policy
    executor: DecisionExecutor
    log: log.Logger
    device: Callable[[], str]
    wake: Callable[[], None]
    doubts: review_triggers.ReviewRules = field(default=review_triggers.ReviewRules())
    title: Callable[[Decoded], str | None] = lambda image: None
    """What a file is to be called when it is filed, if not as it came."""
    in_flight: int = 256
    front: Claimer | None = None
    takeover: Takeover | None = None
    desk: VerdictWorker | None = None
    keep: Callable[[str, Identity | None], None] = lambda name, identity: None
    """Told of each file that stays in the inbox, in shadow mode."""
    observe: Callable[[Totals], None] = lambda totals: None
    counters: Counters = field(default_factory=Counters)
    limits: stall_detection.StallLimits = field(default_factory=stall_detection.StallLimits)

    def __post_init__(self) -> None:
        self._held: dict[str, CompleteFile] = {}
        self._renewal: Callable[[], None] | None = None
        self._oldest_s, self._look_back_s = 0.0, float("-inf")
        self._answers = self._begun = self._thought = 0
        self._orders: list[MoveOrder] = []
        self._behind: LedgerLag | None = None
        self._thinking: Future[list[MoveOrder]] | None = None
        self._moving: Future[list[tuple[int, Result]]] | None = None
        self._thinker = ThreadPoolExecutor(1, "classify")
        self._mover = ThreadPoolExecutor(1, "filing")

    def step(self, now: float) -> float | None:
        """One turn of the route. Gives the time at which the next is due, or None: only when woken."""
        self.arrivals.look(now)
        log_lines.notices(self.log, self.arrivals.notices)
        self._claim(now)
        self._take_over(now)
        self._judge(now)
        self._send_to_decoders(now)
        self._take_decoded(now)
        self._classify(now)
        self._file(now)
        self._renew()
        self._look_back(now)
        self.observe(self.totals)
        return self._due(now)

    @property
    def inbox(self) -> Inbox:
        """Where the files lie that the route works on."""
        return self.arrivals.inbox

    @property
    def _common(self) -> Arrivals:
        """What arrives in the inbox that producers write to."""
        return self.front.arrivals if self.front is not None else self.arrivals

    @property
    def pending(self) -> PendingFiles:
        """The files that wait, and those under way."""
        return self.arrivals.pending

    @property
    def totals(self) -> Totals:
        """What this owner has done so far, in this life and before.

        Always: seen = filed + withdrawn + shadowed + pending.
        """
        reachable = not self._common.unreachable
        seen = sum(self.counters.before.values()) + self.pending.admitted
        counts = (seen, self.counters.all_lives, self.pending.withdrawn, len(self.pending))
        return Totals(*counts, reachable, self._oldest_s, self.counters.shadowed)

    def works(self, now: float) -> list[StageProgress]:
        """What each station owes, and what it has finished so far: tells one that is stuck from one that is idle."""
        most, due, full = self.limits, self.pending.due_s(), self.batcher.due_s()
        arrivals = [self.arrivals, *([self.front.arrivals] if self.front else [])]
        scanning = sum(each.scanning for each in arrivals)
        overdue = due is not None and due <= now and self._room > 0
        waits = full is not None and full <= now and self._thinking is None
        moving = self._moving is not None and not (self._taking_over or self._judging)  # else it waits for them
        return [
            StageProgress("inbox", scanning, sum(each.looked for each in arrivals), most.inbox),
            StageProgress("settle", int(overdue), self.pending.looked, most.settle),
            StageProgress("decode", len(self.decoders), self._answers, most.decode),
            StageProgress("batch", int(waits), self._begun, most.batch),
            StageProgress("classify", int(self._thinking is not None), self._thought, most.classify),
            StageProgress("filing", int(moving), self.executor.carried, most.filing),
            StageProgress(
                "takeover", int(self._taking_over), self.takeover.scans if self.takeover else 0, most.takeover
            ),
            StageProgress("verdicts", int(self._judging), self.desk.finished if self.desk else 0, most.filing),
        ]

    @property
    def connections(self) -> list[socket.socket | int]:
        """What else wakes the loop: people's verdicts; answers of the decoders, while nothing else is under way.

        During an inference they are collected every COLLECT_S instead: waking for each costs more than it gains.
        """
        bell = self.desk.bell.fds if self.desk else []
        return [*bell, *(self.decoders.connections if self._thinking is None else [])]

    def _look_back(self, now: float) -> None:
        """Once a second: how long the oldest file has been waiting, whether the ledger follows, and drift."""
        if now >= self._look_back_s:
            log_lines.ledger(self.log, self._behind, self.executor.ledger.behind)
            self._behind = self.executor.ledger.behind
            self._look_back_s, oldest = now + 1, self.pending.oldest_s
            self._oldest_s = 0.0 if oldest is None else now - oldest
            if (report := self.counters.drift.to_tell(self.counters.clock())) is not None:
                log_lines.drifted(self.log, report)

    def renew(self, put_in: Callable[[], None]) -> None:
        """Call ``put_in`` as soon as no file is under way. Until then no other begins its way."""
        self._renewal = put_in

    def use(self, network: Network, device: Callable[[], str]) -> None:
        """Classify with another network. Called by what :meth:`renew` was given."""
        self.network, self.device = network, device
        self._thinker.shutdown()
        self._thinker = ThreadPoolExecutor(1, "classify")  # torch's number of threads is a matter of each thread

    def _renew(self) -> None:
        if self._renewal is not None and not (self._held or self._taking_over or self._judging):
            put_in, self._renewal = self._renewal, None
            put_in()

    def _claim(self, now: float) -> None:
        """Shared mode: take files of the common inbox."""
        if self.front is not None:
            self.front.arrivals.look(now)
            log_lines.notices(self.log, self.front.arrivals.notices)
            for name, seen_s in self.front.claim(now, self._room):
                self.pending.arrived(name, now, seen_s)

    def _take_over(self, now: float) -> None:
        """What the dead had claimed."""
        if self.takeover is None:
            return
        mover = self._mover if self._movable else None
        endings, adopted = self.takeover.turn(mover, self._common.scans, self.wake)
        for name in adopted:
            self.pending.arrived(name, now)
        log_lines.recovered(self.log, endings)
        if adopted:
            self.log.warning("inbox.taken_over", files=len(adopted))

    @property
    def _taking_over(self) -> bool:
        """Whether what the dead left is seen to, in the thread that moves files."""
        return self.takeover is not None and self.takeover.busy

    @property
    def _judging(self) -> bool:
        """Whether verdicts of people are carried out, in that thread, too."""
        return self.desk is not None and self.desk.busy

    @property
    def _movable(self) -> bool:
        """Whether other work for the thread that moves files would not be queued behind a move that hangs."""
        return self._moving is None or self._moving.done()

    def _judge(self, now: float) -> None:
        """What people said of images since."""
        if self.desk is not None:
            free = self._movable and self._renewal is None
            done = self.desk.turn(now, self.executor, self._mover if free else None, self._common.scans)
            log_lines.verdicts(self.log, done)

    def _send_to_decoders(self, now: float) -> None:
        for ready in self.pending.ready(now, self.inbox.look, self._room):
            self._held[ready.name] = ready
            self.decoders.submit(ready.name)
            failpoints.reach("claimed")

    @property
    def _room(self) -> int:
        """How many more files may be between settle and filing: bounds memory when filing is slow."""
        if self._renewal is not None:
            return 0
        return self.in_flight - len(self.decoders) - len(self.batcher) - len(self._orders)

    def _take_decoded(self, now: float) -> None:
        for result in self.decoders.collect():
            self._answers += 1
            if isinstance(result, Decoded):
                self.batcher.add((result, self._held[result.name]), now)
                failpoints.reach("decoded")
            else:
                self._rejected(result, now)

    def _rejected(self, bad: Rejected, now: float) -> None:
        ready = self._held[bad.name]
        identity = bad.identity or self.inbox.look(bad.name)
        if bad.gone or identity is None:
            self._held.pop(bad.name, None)
            self.pending.forget(bad.name)
        elif not ready.last_try:
            del self._held[bad.name]
            self.pending.doubt(bad.name, identity, now)
        else:
            decision = Decision(Outcome.QUARANTINE, None, 0.0, bad.reason, bad.detail)
            timing = Timing(ready.seen_s, (now - ready.seen_s) * 1000)
            self._orders.append(MoveOrder(bad.name, identity, bad.digest, decision, timing))

    def _classify(self, now: float) -> None:
        if self._thinking is not None and self._thinking.done():
            self._orders.extend(self._thinking.result())
            self._thinking = None
            self._thought += 1
        if self._thinking is None and (batch := self.batcher.take(self._hurry(now))):
            self._thinking = self._thinker.submit(self._think, batch, now)
            self._begun += 1
            self.counters.batches.add(len(batch))
            self._thinking.add_done_callback(lambda _: self.wake())

    def _hurry(self, now: float) -> float:
        """For whom a reload waits, the last batch need not be filled."""
        return now if self._renewal is None or len(self.decoders) else float("inf")

    def _think(self, batch: list[tuple[Decoded, CompleteFile]], now: float) -> list[MoveOrder]:
        started = time.perf_counter()
        scored = self.network(np.stack([image.image for image, _ in batch]))
        decisions = deciding.decide(scored, [image.blank for image, _ in batch], self.policy)
        infer_ms = (time.perf_counter() - started) * 1000
        return [
            MoveOrder(
                image.name,
                image.identity,
                image.digest,
                review_triggers.take(decision, image, self.doubts),
                Timing(ready.seen_s, _queued_ms(ready, image, now), image.decode_ms, infer_ms),
                call=self.title(image),
            )
            for (image, ready), decision in zip(batch, decisions, strict=True)
        ]

    def _file(self, now: float) -> None:
        if self._moving is not None and self._moving.done():
            self._settle_accounts(self._moving.result(), now)
            self._moving = None
        if self._moving is None and self._orders and not self.arrivals.unreachable:
            orders, self._orders = self._orders, []
            self._moving = self._mover.submit(self.executor.handle, orders)
            self._moving.add_done_callback(lambda _: self.wake())
        elif self._moving is None and self._renewal is not None:  # not while the inbox can not be reached
            for order in self._orders:
                del self._held[order.name]
                self.pending.pause(order.name, now, PAUSE_S)
            self._orders.clear()

    def _settle_accounts(self, results: list[tuple[int, Result]], now: float) -> None:
        """What became of files, each with the number of its decision, 0 where none was recorded just now."""
        batch = next((number for number, _ in results if number), 0)
        failed: list[Returned] = []
        for number, result in results:
            del self._held[result.order.name]
            if isinstance(result, Filed):
                self._filed(result, number, batch, now)
            elif isinstance(result, Shadowed):
                self._shadowed(result, number, batch, now)
            elif result.later:
                self.pending.pause(result.order.name, now, PAUSE_S)
                failed.append(result)
            else:
                self.pending.pause(result.order.name, now, 0.0)
                log_lines.returned(self.log, result, number)
        if failed:
            log_lines.not_filed(self.log, failed)

    def _filed(self, result: Filed, number: int, batch: int, now: float) -> None:
        order = result.order
        self.counters.record(result, now - order.timing.seen_s)
        log_lines.outcome(self.log, result, number, batch, self.executor.model, self.device(), now)
        self.pending.filed(order.name)

    def _shadowed(self, result: Shadowed, number: int, batch: int, now: float) -> None:
        """Decided upon, and left where it is."""
        order = result.order
        self.counters.shadow(order, now - order.timing.seen_s)
        if number:
            log_lines.shadowed(self.log, result, number, batch, self.executor.model, self.device(), now)
        self.keep(order.name, order.identity)
        self.pending.filed(order.name)

    def _due(self, now: float) -> float | None:
        scan, front = self.arrivals.due_s(), self.front.due_s(self._room) if self.front else None
        batch = None if self._thinking is not None else self.batcher.due_s()
        if batch is not None and self._hurry(now) > now:
            batch = now
        settle = self.pending.due_s() if self._room > 0 else None
        answers = now + COLLECT_S if self._thinking is not None and len(self.decoders) else self.decoders.due_s()
        return min((due for due in (scan, front, batch, settle, answers) if due is not None), default=None)

    def close(self, now: float) -> None:
        """Finish the move under way; everything else simply stays in the inbox.

        Raises:
            Fatal: the ledger does not have yet what was moved.
        """
        for arrivals in (self.arrivals, *([self.front.arrivals] if self.front else [])):
            arrivals.close()
        self._thinker.shutdown(wait=True)
        self._mover.shutdown(wait=True)
        if self._moving is not None:
            self._settle_accounts(self._moving.result(), now)
            self._moving = None
        if self.desk is not None:
            log_lines.verdicts(self.log, self.desk.close(now))
        self.decoders.close()
        if self.front is not None and (returned := self.front.claims.give_back()):
            self.log.info("inbox.given_back", files=returned)
        try:
            self.executor.ledger.catch_up()
        except Retry as error:
            raise Fatal(str(error), "Mend that; the next start reconciles ledger and disk.") from error


def _queued_ms(ready: CompleteFile, image: Decoded, now: float) -> float:
    """What a file waited, from first sight to its inference, without the decoding itself."""
    return max(0.0, (now - ready.seen_s) * 1000 - image.decode_ms)
