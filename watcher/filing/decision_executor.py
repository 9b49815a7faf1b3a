"""Carry out decisions: record them in the ledger, move the files, record the endings."""

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
from watcher.inbox import claims
from watcher.ledger.writer import Ledger

Result = Filed | Returned | Shadowed
"""The result of an order. Only :class:`watcher.filing.shadow_mode.ShadowExecutor` gives Shadowed."""


@dataclass
class DecisionExecutor:
    """Carries out decisions. ``model`` is the digest of the weights that made them, None if a person made them."""

    ledger: Ledger
    mover: Mover
    destinations: Destinations
    model: str | None
    rules: DuplicateRules = field(default=DuplicateRules())
    carried: int = 0
    """Steps done so far: files read for a verdict, moved or returned, and batches recorded. Tells slow from stuck."""
    keep_subdirectories: bool = False
    """If true, a file from a directory below the inbox keeps its relative path below its class directory."""
    _failing: dict[Path, str] = field(default_factory=dict)
    """Directories that refused every one of several files the last time, each with the reason."""
    _round: int = 0

    def handle(self, orders: Sequence[MoveOrder]) -> list[tuple[int, Result]]:
        """File the files of these orders. Return each with its decision's id, see :meth:`carry_out`.

        To a directory that fails (a share that is away, a full disk) only one file is moved at a time, each time
        another one, until one succeeds. Otherwise thousands of files would be recorded at every try, for days.
        """
        tried: list[MoveOrder] = []
        failing: dict[Path, list[MoveOrder]] = {}
        for order in orders:
            directory = self.destinations.of(order.decision)
            (failing.setdefault(directory, []) if directory in self._failing else tried).append(order)
        self._round += 1
        tried += [waiting.pop(self._round % len(waiting)) for waiting in failing.values()]
        returned = [
            (0, Returned(order, self._failing[directory], later=True))
            for directory, waiting in failing.items()
            for order in waiting
        ]
        results = self.carry_out(tried)
        self._note_failing_directories(results)
        return [*results, *returned]

    def _note_failing_directories(self, results: Sequence[tuple[int, Filed | Returned]]) -> None:
        """Note which directories fail.

        One file alone is no proof, because the fault may be the file's. An order that was not recorded proves nothing.
        """
        reasons: dict[Path, list[str]] = {}
        succeeded = set()
        for number, result in results:
            directory = self.destinations.of(result.order.decision)
            if isinstance(result, Filed):
                succeeded.add(directory)
            elif number and result.later:
                reasons.setdefault(directory, []).append(result.why)
        for directory in succeeded:
            self._failing.pop(directory, None)
        for directory, whys in reasons.items():
            if directory not in succeeded and (len(whys) > 1 or directory in self._failing):
                self._failing[directory] = whys[-1]

    def carry_out(self, orders: Sequence[MoveOrder], to: Path | None = None) -> list[tuple[int, Filed | Returned]]:
        """Record the decisions, move the files, sync the directories and record the endings.

        Return each result with its decision's id, 0 if the decision was not recorded.

        All files go to ``to``, with their relative paths, or by default where their decisions say. If the endings can
        not be recorded now, for example because the ledger's disk is full, :attr:`Ledger.lag` says so, and nothing
        else moves until they are recorded.

        Raises:
            Fatal: files were moved and the directories could not be synced, or the ledger was removed.
        """
        try:
            with self.ledger.transaction():
                orders = self._apply_duplicate_rules(orders) if self.rules.need_lookup else orders
                targets = [self._target(order, to) for order in orders]
                directories = [str(root / below) for root, below in targets]
                ids = self.ledger.record_decisions(orders, directories, self.model, self.mover.inbox)
                sources = {Path(order.source).parent if order.source else self.mover.inbox for order in orders}
                self.ledger.record_directories(map(claims.inbox_of, sources | {root for root, _ in targets}))
        except Retry as error:
            self.carried += 1
            return [(0, Returned(order, str(error), later=True)) for order in orders]
        self.carried += 1
        failpoints.reach("decided")
        results = [self._move(order, *target) for order, target in zip(orders, targets, strict=True)]
        failpoints.reach("moved")
        try:
            self.mover.flush()
        except Retry as error:
            raise Fatal(str(error), "Check the disk. The next start reconciles ledger and disk.") from error
        failpoints.reach("synced")
        self.ledger.record_or_postpone(_ending(number, result) for number, result in zip(ids, results, strict=True))
        self.carried += 1
        failpoints.reach("filed")
        return list(zip(ids, results, strict=True))

    def _target(self, order: MoveOrder, to: Path | None = None) -> tuple[Path, str]:
        """Return the directory for an order, and the relative path from there down.

        Files for review or quarantine get no relative path, so that a person need not search for them.
        """
        root, below = to or self.destinations.of(order.decision), os.path.dirname(order.name)
        keep_path = to is not None or (self.keep_subdirectories and order.decision.outcome is Outcome.SORTED)
        return root, no_overwrite.free_directory(root, below) if keep_path else ""

    def _apply_duplicate_rules(self, orders: Sequence[MoveOrder]) -> list[MoveOrder]:
        """Return the orders, changed where the rules say so. Of two orders with the same bytes the second changes."""
        known = self.ledger.find_duplicates(order.digest for order in orders if order.digest is not None)
        checked = []
        for order in orders:
            root, below = self._target(order)
            path, digest = root / below / order.target_name, order.digest
            duplicate = None if digest is None else known.get(digest)
            bound_for_path = self.ledger.digests_bound_for(path)
            decision = duplicates.apply_rules(order.decision, path, digest, duplicate, self.rules, bound_for_path)
            checked.append(replace(order, decision=decision))
            if digest is not None and decision.outcome is Outcome.SORTED:
                known.setdefault(digest, self.ledger.next_id + len(checked) - 1)
        return checked

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
            note = quarantine_notes.compose(order.name, d.reason, d.detail, order.digest, self.ledger.now())
            quarantine_notes.write(path, note, self._was_filed)
        elif order.source is not None:  # a person had it moved, maybe out of quarantine
            quarantine_notes.remove(Path(order.source), self._was_filed)
        return Filed(order, str(path), (time.perf_counter() - started) * 1000)

    def _was_filed(self, path: Path) -> bool:
        """Return True if a file at this path was filed, and is not our note. True also if the ledger can not tell."""
        try:
            return self.ledger.was_bound_for(path)
        except Retry:
            return True


def _ending(number: int, result: Filed | Returned) -> Ending:
    if isinstance(result, Filed):
        return Ending(number, "filed", result.destination)
    return Ending(number, "returned", None, result.why)
