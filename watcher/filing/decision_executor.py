"""Moves decided files, with the ledger around the move.

ledger(decided) -> filing -> ledger(filed)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from watcher.core import failpoints, no_overwrite
from watcher.core.errors import Fatal, Retry, Vanished
from watcher.core.records import Ending, Filed, MoveOrder, Outcome, Returned, Shadowed
from watcher.filing import duplicates, quarantine_notes
from watcher.filing.destinations import Destinations
from watcher.filing.duplicates import DuplicateRules
from watcher.filing.mover import Mover
from watcher.filing.quarantine_notes import reason
from watcher.inbox import claims
from watcher.ledger.writer import Ledger

Result = Filed | Returned | Shadowed
"""What became of an order. Shadowed: only of a :class:`watcher.filing.shadow_mode.ShadowExecutor`'s."""


@dataclass
class DecisionExecutor:
    """Carries out decisions. ``model`` is the digest of the weights that took them, None where people do."""

    ledger: Ledger
    mover: Mover
    destinations: Destinations
    model: str | None
    rules: DuplicateRules = field(default=DuplicateRules())
    carried: int = 0
    """Files looked at for a verdict, moved or returned, and batches recorded, so far: tells slow from stuck."""
    keep_subdirectories: bool = False
    """Whether what lay below the inbox lies as far below the directory of its class."""
    _failing: dict[Path, str] = field(default_factory=dict)
    """Directories that took none of several files the last time, and why."""
    _turn: int = 0

    def handle(self, orders: Sequence[MoveOrder]) -> list[tuple[int, Result]]:
        """Do with decided files what this daemon is for: file them. As :meth:`carry_out`.

        To a directory that fails (a share that is away, a full disk) one file goes at a time, another one each time,
        until one has arrived: else thousands of files would be recorded, try after try, for days.
        """
        tried: list[MoveOrder] = []
        held: dict[Path, list[MoveOrder]] = {}
        for order in orders:
            directory = self.destinations.of(order.decision)
            (held.setdefault(directory, []) if directory in self._failing else tried).append(order)
        self._turn += 1
        tried += [own.pop(self._turn % len(own)) for own in held.values()]
        spared = [(0, Returned(each, self._failing[place], later=True)) for place, own in held.items() for each in own]
        results = self.carry_out(tried)
        self._learn(results)
        return [*results, *spared]

    def _learn(self, results: Sequence[tuple[int, Filed | Returned]]) -> None:
        """Which directories fail. One file alone may have something about it; what was not recorded tells nothing."""
        failed: dict[Path, list[str]] = {}
        took = set()
        for number, result in results:
            directory = self.destinations.of(result.order.decision)
            if isinstance(result, Filed):
                took.add(directory)
            elif number and result.later:
                failed.setdefault(directory, []).append(result.why)
        for directory in took:
            self._failing.pop(directory, None)
        for directory, whys in failed.items():
            if directory not in took and (len(whys) > 1 or directory in self._failing):
                self._failing[directory] = whys[-1]

    def carry_out(self, orders: Sequence[MoveOrder], to: Path | None = None) -> list[tuple[int, Filed | Returned]]:
        """Record, move, sync, record. Gives each order's decision id and what became of it.

        All go to ``to`` (or below, as they lay below the inbox), or where their decisions say. If the ledger can not
        follow the files just now (its disk is full, say), it is :attr:`Ledger.behind`, and nothing else moves before
        it has caught up.

        Raises:
            Fatal: files moved and the directories could not be synced, or the ledger was removed.
        """
        try:
            with self.ledger.deciding():
                orders = self._without_collisions(orders) if self.rules.ask else orders
                ways = [self._way(order, to) for order in orders]
                directories = [str(root / below) for root, below in ways]
                ids = self.ledger.decided(orders, directories, self.model, self.mover.inbox)
                sources = {Path(order.source).parent if order.source else self.mover.inbox for order in orders}
                self.ledger.note(map(claims.inbox_of, sources | {root for root, _ in ways}))
        except Retry as error:
            self.carried += 1
            return [(0, Returned(order, str(error), later=True)) for order in orders]
        self.carried += 1
        failpoints.reach("decided")
        results = [self._move(order, *way) for order, way in zip(orders, ways, strict=True)]
        failpoints.reach("moved")
        try:
            self.mover.flush()
        except Retry as error:
            raise Fatal(str(error), "Check the disk. The next start reconciles ledger and disk.") from error
        failpoints.reach("synced")
        self.ledger.owe(_ending(*each) for each in zip(ids, results, strict=True))
        self.carried += 1
        failpoints.reach("filed")
        return list(zip(ids, results, strict=True))

    def _way(self, order: MoveOrder, to: Path | None = None) -> tuple[Path, str]:
        """Where an order leads: to a directory, and from there down. What goes to a person needs no search."""
        root, below = to or self.destinations.of(order.decision), os.path.dirname(order.name)
        kept = to is not None or (self.keep_subdirectories and order.decision.outcome is Outcome.SORTED)
        return root, no_overwrite.free_directory(root, below) if kept else ""

    def _without_collisions(self, orders: Sequence[MoveOrder]) -> list[MoveOrder]:
        """The orders, some of them sent to a person: of two with the same bytes the second."""
        twins = self.ledger.twins(order.digest for order in orders if order.digest is not None)
        judged = []
        for order in orders:
            root, below = self._way(order)
            path, digest = root / below / order.target_name, order.digest
            twin = None if digest is None else twins.get(digest)
            coming = self.ledger.coming(path)
            decision = duplicates.judge(order.decision, path, digest, twin, self.rules, coming)
            judged.append(replace(order, decision=decision))
            if digest is not None and decision.outcome is Outcome.SORTED:
                twins.setdefault(digest, self.ledger.next_id + len(judged) - 1)
        return judged

    def _move(self, order: MoveOrder, directory: Path, below: str) -> Filed | Returned:
        self.carried += 1
        started = time.perf_counter()
        try:
            source = order.source or order.name
            path = self.mover.move(source, order.identity, order.digest, directory, order.target_name, below)
        except Vanished as error:
            return Returned(order, str(error), later=False)
        except Retry as error:
            return Returned(order, str(error), later=True)
        if order.decision.outcome is Outcome.QUARANTINE:
            d = order.decision
            told = reason(order.name, d.reason, d.detail, order.digest, self.ledger.now())
            quarantine_notes.explain(path, told, self._is_a_file)
        elif order.source is not None:  # a person's
            quarantine_notes.unexplain(Path(order.source), self._is_a_file)
        return Filed(order, str(path), (time.perf_counter() - started) * 1000)

    def _is_a_file(self, path: Path) -> bool:
        """Whether what lies beside a file was filed itself. Where the ledger can not tell just now, it may be."""
        try:
            return self.ledger.was_bound_for(path)
        except Retry:
            return True


def _ending(number: int, result: Filed | Returned) -> Ending:
    if isinstance(result, Filed):
        return Ending(number, "filed", result.destination)
    return Ending(number, "returned", None, result.why)
