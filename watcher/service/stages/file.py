"""Move decided files in the filing thread, and settle what became of each."""

from __future__ import annotations

from collections.abc import Sequence

from watcher.core.records import Filed, Returned, Shadowed
from watcher.filing.decision_executor import Result
from watcher.filing.shadow_mode import ShadowInbox
from watcher.service import log_lines
from watcher.service.stages.claim import Claim
from watcher.service.stages.stage import FilesUnderWay, FilingThread, Stage
from watcher.service.stall_detection import StageProgress

PAUSE_S = 5.0
"""Seconds that a file waits after its surroundings failed it (a full disk, say)."""


class File(Stage):
    """Files the orders in batches. ``others`` are the stages that share the filing thread."""

    def __init__(self, files: FilesUnderWay, claim: Claim, thread: FilingThread, others: Sequence[Stage]) -> None:
        self._files, self._claim, self._thread, self._others = files, claim, thread, others

    def advance(self, now: float) -> None:
        """Take in the moves that have ended, and begin the next ones.

        While the inbox can not be reached none begins. If a reload waits too, the files are given back.
        """
        files, thread = self._files, self._thread
        if thread.move is not None and thread.move.done():
            self._take_in(thread.move.result(), now)
            thread.move = None
        if thread.move is None and files.orders and not self._claim.arrivals.unreachable:
            orders, files.orders = files.orders, []
            thread.move = thread.executor.submit(files.stations.executor.handle, orders)
            thread.move.add_done_callback(lambda _: files.wake())
        elif thread.move is None and files.draining:
            for order in files.orders:
                del files.held[order.name]
                files.pending.pause(order.name, now, PAUSE_S)
            files.orders.clear()

    def _take_in(self, results: list[tuple[int, Result]], now: float) -> None:
        """Account for files, each with the number of its decision, 0 where none was recorded just now."""
        files = self._files
        batch = next((number for number, _ in results if number), 0)
        failed: list[Returned] = []
        for number, result in results:
            name = result.order.name
            del files.held[name]
            if isinstance(result, Filed | Shadowed):
                self._ended(result, number, batch, now)
            elif result.later:
                files.pending.pause(name, now, PAUSE_S)
                failed.append(result)
            else:
                files.pending.pause(name, now, 0.0)
                log_lines.returned(files.log, result, number)
        if failed:
            log_lines.not_filed(files.log, failed)

    def _ended(self, result: Filed | Shadowed, number: int, batch: int, now: float) -> None:
        """Count and log a file that was filed, or left where it is in shadow mode."""
        files, stations, order = self._files, self._files.stations, result.order
        facts = (number, batch, stations.executor.model, stations.device(), now)
        if isinstance(result, Filed):
            files.counters.record(result, now - order.timing.seen_s)
            log_lines.outcome(files.log, result, *facts)
        else:
            files.counters.shadow(order, now - order.timing.seen_s)
            if number:
                log_lines.shadowed(files.log, result, *facts)
            if isinstance(stations.inbox, ShadowInbox):
                stations.inbox.mark_decided(order.name, order.identity)
        files.pending.filed(order.name)

    def progress(self, now: float) -> list[StageProgress]:
        """Count files moved and batches recorded. A move that waits for the other stages owes nothing."""
        moving = self._thread.move is not None and not any(stage.busy for stage in self._others)
        executor, limits = self._files.stations.executor, self._files.stations.limits
        return [StageProgress("filing", int(moving), executor.carried, limits.filing)]

    def close(self, now: float) -> None:
        """Finish the moves under way, and account for them."""
        self._thread.shutdown()
        if self._thread.move is not None:
            self._take_in(self._thread.move.result(), now)
            self._thread.move = None
