"""List the files that wait in review for a person."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from watcher.filing import destinations
from watcher.ledger.reader import IN_PLACE, LedgerEntry, LedgerReader, Verdict


def find(ledger_reader: LedgerReader, review: Path, now: datetime) -> Iterator[dict[str, Any]]:
    """Yield the fields of each file that waits, as ``review list --json`` prints them.

    First come the files that the daemon filed, the longest waiting first, then those that people put there.
    """
    entries = {e.destination: e for e in ledger_reader.entries(f"{IN_PLACE} and outcome = 'review'") if e.destination}
    open_verdicts = {verdict.path: verdict for verdict in ledger_reader.verdicts("state = 'open'")}
    for path, entry in entries.items():
        if os.path.lexists(path):  # somebody may have taken it away by hand
            yield _fields(path, entry, open_verdicts.get(path), now)
    with contextlib.suppress(OSError), os.scandir(review) as files:
        unknown = sorted(e.path for e in files if destinations.is_waiting_file(e) and e.path not in entries)
        moving = {entry.name for entry in ledger_reader.unended()}
        for path in unknown:
            if os.path.basename(path) not in moving:
                yield _fields(path, None, open_verdicts.get(path), now)


def _fields(path: str, entry: LedgerEntry | None, open_verdict: Verdict | None, now: datetime) -> dict[str, Any]:
    since = datetime.fromisoformat(entry.ended_at) if entry and entry.ended_at else None
    if since is None:
        with contextlib.suppress(OSError):
            since = datetime.fromtimestamp(os.lstat(path).st_ctime, UTC)
    return {
        "id": entry.id if entry else None,
        "path": path,
        "name": entry.name if entry else os.path.basename(path),
        "digest": entry.digest if entry else None,
        "class": entry.label if entry else None,
        "confidence": entry.confidence if entry else None,
        "top": entry.top if entry else [],
        "reason": entry.reason if entry else "unknown",
        "detail": entry.detail if entry else "the daemon did not file it: a person put it there",
        "model": entry.model if entry else None,
        "since": since.isoformat(timespec="seconds") if since else None,
        "age_s": round(max(0.0, (now - since).total_seconds()), 1) if since else None,
        "verdict": asdict(open_verdict) if open_verdict else None,
    }
