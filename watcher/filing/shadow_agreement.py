"""Shadow decisions compared with where people put the files. Reads only."""

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
    """``decided`` counts files by outcome; ``classes`` those found, by people's class and then by what was decided.

    What was decided is a class, or ``review`` or ``quarantine``.
    """

    decided: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """Files that turned up in class directories."""
        return sum(map(Counter.total, self.classes.values()))

    @property
    def agreed(self) -> int:
        """Of those, the ones that people put where the decision had led."""
        return sum(decided[name] for name, decided in self.classes.items())


def compare(ledger_reader: LedgerReader, sorted_into: Path) -> ShadowAgreement:
    """Look for the files of shadow decisions, by their bytes, in the class directories (and below them).

    A file counts once; of several decisions upon the same bytes the last. One of the same inode, size and time is
    not read again. What a model filed itself since is no evidence and does not count.
    """
    told, by_digest = ShadowAgreement(), {}
    for entry in ledger_reader.entries("e.state = 'shadowed'"):
        if entry.digest is not None:
            by_digest[entry.digest] = entry
        told.decided[entry.outcome] += 1
    by_size: dict[int | None, list[LedgerEntry]] = defaultdict(list)
    for entry in by_digest.values():
        by_size[entry.size].append(entry)
    for label, path in _files(sorted_into) if by_digest else ():
        found = _decided(path, by_size, by_digest)
        if found is None or found.digest is None or _is_models(ledger_reader, found):
            continue
        del by_digest[found.digest]
        by_size[found.size].remove(found)
        decided = found.label if found.outcome == "sorted" and found.label is not None else found.outcome
        told.classes.setdefault(label, Counter())[decided] += 1
    return told


def _files(directory: Path) -> Iterator[tuple[str, str]]:
    """Each file, with the class directory it is in."""
    for folder, _, names in os.walk(directory):
        below = Path(folder).relative_to(directory).parts
        for name in names if below else ():
            yield below[0], os.path.join(folder, name)


def _decided(
    path: str, by_size: dict[int | None, list[LedgerEntry]], by_digest: dict[str, LedgerEntry]
) -> LedgerEntry | None:
    try:
        found = os.lstat(path)
        candidates = by_size.get(found.st_size)
        if not candidates or not stat.S_ISREG(found.st_mode):
            return None
        stamp = found.st_ino, signed(found.st_mtime_ns)
        same = next((entry for entry in candidates if (entry.inode, entry.mtime_ns) == stamp), None)
        return same or by_digest.get(no_overwrite.digest(Path(path)))
    except OSError:
        return None


def _is_models(ledger_reader: LedgerReader, shadowed: LedgerEntry) -> bool:
    """Whether a model's decision has filed it since, as after a change to ``mode: sort``."""
    query = "d.digest = ? and e.state = 'filed' and d.outcome = 'sorted' and d.model is not null"
    return next(ledger_reader.entries(query, (shadowed.digest,)), None) is not None
