"""Hold the findings of an audit, with advice for the operator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["missing", "moved", "changed", "unreadable", "unknown", "doubled", "stray_reason", "unended", "partial"]


ADVICE: dict[Kind, str] = {
    "missing": "It is nowhere in our directories. Ask who works with them, or take it from a backup.",
    "moved": "Somebody moved it by hand. Nothing is lost; move it back if that was a mistake.",
    "changed": "Its bytes are not those that were judged. Find out who writes there.",
    "unreadable": "Run this as a user who may read it.",
    "unknown": "Nobody filed it. Put it into the inbox if it is to be sorted.",
    "doubled": "The same bytes lie where they were filed. Compare the two, and delete this one.",
    "stray_reason": "The file it belongs to is gone. Delete it.",
    "unended": "Its owner died during the move. The next start reconciles it.",
    "partial": "An unfinished copy; its source is complete. The next start removes it, or delete it.",
}


@dataclass(frozen=True)
class Finding:
    """A difference between ledger and disk. ``where`` is another path at which the same bytes lie."""

    kind: Kind
    path: str
    name: str
    id: int | None = None
    where: str | None = None

    @property
    def advice(self) -> str:
        """The advice for the operator."""
        return ADVICE[self.kind]


@dataclass
class Report:
    """The findings, and counts of files by the ledger and by the disk.

    ``elsewhere`` counts files that were put back into another directory than the inbox. ``by_people`` counts files on
    which shadow mode decided and that people sorted.
    """

    findings: list[Finding] = field(default_factory=list)
    filed: Counter[str] = field(default_factory=Counter)
    restored: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    by_people: int = 0
    on_disk: Counter[str] = field(default_factory=Counter)
    pending: int = 0

    def due(self, outcome: str) -> int:
        """Return how many files of an outcome should lie in its directory."""
        return self.filed[outcome] - self.restored[outcome]
