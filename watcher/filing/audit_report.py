"""What an audit found, with advice for the operator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["missing", "moved", "changed", "unreadable", "unknown", "doubled", "stray_reason", "unended", "partial"]


ADVICE: dict[Kind, str] = {
    "missing": "It is nowhere in our directories. Ask who works with them, or take it from a backup.",
    "moved": "Somebody moved it by hand. Nothing is lost; move it back if that was a mistake.",
    "changed": "Other bytes than those that were judged. See who writes there.",
    "unreadable": "Run this as a user who may read it.",
    "unknown": "Nobody filed it. Put it into the inbox if it is to be sorted.",
    "doubled": "The same bytes lie where they were filed. Compare, and delete this one.",
    "stray_reason": "The file it belongs to has gone. Delete it.",
    "unended": "Its owner died at it. The next start reconciles.",
    "partial": "An unfinished copy; its source is whole. The next start removes it, or delete it.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that does not match. ``where`` is where the same bytes lie instead."""

    kind: Kind
    path: str
    name: str
    id: int | None = None
    where: str | None = None

    @property
    def advice(self) -> str:
        """What the operator can do."""
        return ADVICE[self.kind]


@dataclass
class Report:
    """What was found, and how many files there are, by the ledger and by the disk.

    ``by_people`` are files that shadow mode had decided upon and people sorted.
    """

    findings: list[Finding] = field(default_factory=list)
    filed: Counter[str] = field(default_factory=Counter)
    restored: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    by_people: int = 0
    on_disk: Counter[str] = field(default_factory=Counter)
    pending: int = 0

    def due(self, outcome: str) -> int:
        """How many should lie where this outcome leads."""
        return self.filed[outcome] - self.restored[outcome]
