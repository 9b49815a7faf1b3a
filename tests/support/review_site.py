"""A place to file in without a daemon, where a person judges what was filed."""

from __future__ import annotations

from pathlib import Path

from tests.support.filing_site import FilingSite
from watcher.core.records import Decision, Outcome
from watcher.filing.decision_executor import DecisionExecutor
from watcher.ledger.reader import LedgerReader, Verdict
from watcher.review import export, judged_files, verdicts
from watcher.review.verdicts import Reviewer, VerdictResult

UNSURE = Decision(Outcome.REVIEW, "CXR", 0.5, "low_confidence", "0.5 is below 0.9", (("CXR", 0.5), ("Hand", 0.4)))
ANNA = Reviewer(1234, "anna")


class ReviewSite(FilingSite):
    """A place to file in where a person, ANNA, gives verdicts."""

    def subject(self, word: str | Path) -> judged_files.JudgedFile:
        with LedgerReader(self.path) as ledger_reader:
            return judged_files.find(ledger_reader, str(word), self.executor.destinations)

    def give(self, word: str | Path, label: str | None, note: str | None = None) -> int:
        return verdicts.record(self.book, self.subject(word), label, ANNA, note)

    def carry_out(self) -> list[VerdictResult]:
        return verdicts.carry_out_open(
            DecisionExecutor(self.book, self.executor.mover, self.executor.destinations, None)
        )

    def verdicts(self, where: str = "true") -> list[Verdict]:
        with LedgerReader(self.path) as ledger_reader:
            return ledger_reader.verdicts(where)

    def export(self, to: Path) -> list[tuple[str, str]]:
        with LedgerReader(self.path) as ledger_reader:
            return [
                (r.state, str(r.destination and r.destination.relative_to(to)))
                for r in export.export(ledger_reader, to)
            ]

    def tree(self) -> dict[str, bytes]:
        places = ("inbox", "sorted", "review", "quarantine", "rejected")
        found = (path for place in places for path in (self.root / place).rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}
