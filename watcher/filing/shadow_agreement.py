"""Compare the decisions of shadow mode with the directories that people put the files into. Reads only."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from watcher.core import no_overwrite
from watcher.core.records import signed
from watcher.ledger.reader import LedgerEntry, LedgerReader


@dataclass
class ShadowAgreement:
    """Counts of shadow decisions and of their files.

    ``decided`` counts all files by outcome. ``classes`` counts the files that were found, by the class that people
    chose and then by decision: a class, ``review`` or ``quarantine``.
    """

    decided: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """The number of files that were found in class directories."""
        return sum(map(Counter.total, self.classes.values()))

    @property
    def agreed(self) -> int:
        """The number of files that people put into the class that was decided."""
        return sum(decided[name] for name, decided in self.classes.items())


def compare(ledger_reader: LedgerReader, sorted_into: Path) -> ShadowAgreement:
    """Look for the files of shadow decisions in and below the class directories, by their bytes.

    A file counts once. Of several decisions on the same bytes the last counts. A file with the same inode, size and
    time is not read again. A file that a model has filed since does not count, because it says nothing about people.
    """
    agreement, by_digest = ShadowAgreement(), {}
    for entry in ledger_reader.entries("e.state = 'shadowed'"):
        if entry.digest is not None:
            by_digest[entry.digest] = entry
        agreement.decided[entry.outcome] += 1
    by_size: dict[int | None, list[LedgerEntry]] = defaultdict(list)
    for entry in by_digest.values():
        by_size[entry.size].append(entry)
    for label, path in _files(sorted_into) if by_digest else ():
        shadowed = _shadow_decision(path, by_size, by_digest)
        if shadowed is None or shadowed.digest is None or _was_filed_by_model(ledger_reader, shadowed):
            continue
        del by_digest[shadowed.digest]
        by_size[shadowed.size].remove(shadowed)
        decided = shadowed.label if shadowed.outcome == "sorted" and shadowed.label is not None else shadowed.outcome
        agreement.classes.setdefault(label, Counter())[decided] += 1
    return agreement


def _files(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the class directory and the path of each file."""
    for folder, _, names in os.walk(directory):
        parts = Path(folder).relative_to(directory).parts
        for name in names if parts else ():
            yield parts[0], os.path.join(folder, name)


def _shadow_decision(
    path: str, by_size: dict[int | None, list[LedgerEntry]], by_digest: dict[str, LedgerEntry]
) -> LedgerEntry | None:
    """Return the shadow decision on a file, or None if there is none or the file can not be read."""
    try:
        status = os.lstat(path)
        candidates = by_size.get(status.st_size)
        if not candidates or not stat.S_ISREG(status.st_mode):
            return None
        stamp = status.st_ino, signed(status.st_mtime_ns)
        same = next((entry for entry in candidates if (entry.inode, entry.mtime_ns) == stamp), None)
        return same or by_digest.get(no_overwrite.digest(Path(path)))
    except OSError:
        return None


def _was_filed_by_model(ledger_reader: LedgerReader, shadowed: LedgerEntry) -> bool:
    """Return True if a model has filed these bytes, for example after a change to ``mode: sort``."""
    query = "d.digest = ? and e.state = 'filed' and d.outcome = 'sorted' and d.model is not null"
    return next(ledger_reader.entries(query, (shadowed.digest,)), None) is not None
