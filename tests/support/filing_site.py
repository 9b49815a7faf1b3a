"""A place to file in without a daemon: directories, a ledger, and what moves files between them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from watcher.core.records import Decision, Filed, Identity, MoveOrder, Outcome, Timing
from watcher.filing import put_back, put_back_requests
from watcher.filing.audit import Audit
from watcher.filing.audit_report import Report
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.mover import Mover
from watcher.filing.put_back import PutBackResult
from watcher.inbox.scan import Inbox
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger

HAND = Decision(Outcome.SORTED, "Hand", 0.99)
BROKEN = Decision(Outcome.QUARANTINE, None, 0.0, "truncated", "no end")
EMPTY = Decision(Outcome.QUARANTINE, None, 0.0, "empty", "no bytes")
ODD = os.fsdecode(b"odd \xff\n.png")
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class FilingSite:
    """Directories, a ledger, and an executor that files as a daemon does."""

    def __init__(self, root: Path, identify: Callable[[Path], Identity]) -> None:
        self.root, self.identify = root, identify
        self.inbox, self.quarantine, self.hand = root / "inbox", root / "quarantine", root / "sorted" / "Hand"
        self.inbox.mkdir()
        self.quarantine.mkdir()
        self.path = root / "state" / "ledger.sqlite3"
        self.book = Ledger(self.path)
        places = Destinations(root / "sorted", root / "review", self.quarantine, root / "rejected")
        self.executor = DecisionExecutor(self.book, Mover(self.inbox), places, "m" * 64)

    def order(self, name: str, decision: Decision, content: bytes) -> MoveOrder:
        path = self.inbox / name
        path.write_bytes(content)
        return MoveOrder(name, self.identify(path), hashlib.sha256(content).hexdigest(), decision, Timing(0.0))

    def file(self, name: str, decision: Decision = HAND, content: bytes = b"a radiograph") -> int:
        [(number, result)] = self.executor.carry_out([self.order(name, decision, content)])
        assert isinstance(result, Filed)
        return number

    def undo(self, to: Path | None = None, dry: bool = False, **which: object) -> list[PutBackResult]:
        with LedgerReader(self.path) as ledger_reader, put_back.open_executor(self.path, self.inbox) as executor:
            chosen = put_back_requests.filed(ledger_reader, **which)  # type: ignore[arg-type]
            return list(put_back.put_back(chosen, "undo", to or self.inbox, None if dry else executor))

    def retry(self, *files: Path, reason: str | None = None) -> list[PutBackResult]:
        with LedgerReader(self.path) as ledger_reader, put_back.open_executor(self.path, self.inbox) as executor:
            chosen = (
                put_back_requests.named(ledger_reader, map(str, files), self.quarantine)
                if files
                else put_back_requests.quarantined(ledger_reader, reason)
            )
            return list(put_back.put_back(chosen, "retry", self.inbox, executor))

    def entries(self) -> list[tuple[str, str | None, str | None, int | None]]:
        with LedgerReader(self.path) as ledger_reader:
            return [(e.outcome, e.reason, e.state, e.restores) for e in ledger_reader.entries()]


def audit(site: FilingSite, quick: bool = False) -> Report:
    """Compare the ledger of a site with its files."""
    places = Destinations(site.root / "sorted", site.root / "review", site.quarantine, site.root / "rejected")
    with LedgerReader(site.path) as ledger_reader:
        return Audit(ledger_reader, places, Inbox(site.inbox, [".*"]), site.path.parent, quick=quick).run()
