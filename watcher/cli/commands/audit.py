"""``audit``: compare the ledger with the disk."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit
from watcher.core.printable import printable
from watcher.filing import destinations
from watcher.filing.audit import Audit
from watcher.filing.audit_report import Report
from watcher.ledger.reader import LedgerReader
from watcher.service import stations

PLACES = {"sorted": "sorted", "review": "review", "quarantine": "quarantined", "rejected": "rejected"}
"""Output directories, each with the name of its files in the account."""


def run(args: argparse.Namespace) -> int:
    """Print what does not match, and the account of all files. Return exit code 1 if anything does not match."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    inbox = stations.new_inbox(settings)
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        report = Audit(ledger_reader, destinations.places(settings), inbox, settings.state.path, quick=args.quick).run()
    print(json.dumps(_json(report)) if args.json else _text(report))
    return Exit.FAILED if report.findings else Exit.OK


def _seen(report: Report) -> int:
    return sum(report.due(place) for place in PLACES) + report.pending


def _json(report: Report) -> dict[str, Any]:
    return {
        "findings": [{**asdict(finding), "advice": finding.advice} for finding in report.findings],
        "places": {
            place: {
                "filed": report.filed[place],
                "put_back": report.restored[place],
                "due": report.due(place),
                "on_disk": report.on_disk[place],
            }
            for place in PLACES
        },
        "put_back_elsewhere": report.elsewhere,
        "by_people_in_shadow": report.by_people,
        "pending": report.pending,
        "seen": _seen(report),
    }


def _text(report: Report) -> str:
    lines = []
    for finding in report.findings:
        number = f"#{finding.id} " if finding.id is not None else ""
        where = f" (the same bytes: {printable(finding.where)})" if finding.where else ""
        lines += [f"{finding.kind:12}  {number}{printable(finding.path)}{where}", f"{'':14}{finding.advice}"]
    lines.append(f"{'':12} {'filed':>12} {'put back':>12} {'should be':>14} {'on disk':>12}")
    for place, name in PLACES.items():
        counts = f"{report.filed[place]:12,} {report.restored[place]:12,}"
        lines.append(f"{name:12} {counts} {report.due(place):14,} {report.on_disk[place]:12,}")
    if report.elsewhere:
        lines.append(f"{report.elsewhere:,} of those put back did not go to the inbox")
    if report.by_people:
        lines.append(f"{report.by_people:,} of those on disk were put there by people, after decisions in shadow mode")
    counted = {name: report.due(place) for place, name in PLACES.items() if place != "rejected" or report.filed[place]}
    terms = " + ".join(f"{name} {count:,}" for name, count in counted.items())
    lines.append(f"seen {_seen(report):,} = {terms} + pending {report.pending:,}")
    count = len(report.findings)
    lines.append(f"{count} finding{'s' if count > 1 else ''}" if count else "everything matches")
    return "\n".join(lines)
