"""``undo``: files that were filed back into the inbox, or into a directory of one's choice."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from watcher.cli import put_back_files
from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Fatal
from watcher.filing import put_back, put_back_requests
from watcher.ledger.reader import LedgerReader


def run(args: argparse.Namespace) -> int:
    """Put them back, but for what people judged. Exit code 1 if one is no longer what and where it was."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    since = put_back_requests.parse_since(args.since, datetime.now(UTC)) if args.since is not None else None
    inbox = settings.inbox.path
    to = Path(os.path.abspath(args.to)) if args.to else inbox
    if os.path.realpath(to) == os.path.realpath(inbox):
        to = inbox
    _refuse_among_others(to, settings)
    name = put_back_files.naming(settings)
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        for number in args.id or ():
            _refuse_other_than_filed(ledger_reader, number)
        if to == inbox and put_back.is_daemon_running(settings.state.path):
            told = "a daemon runs: it sorts again what comes back to the inbox. With --to DIR it does not."
            print(f"mednet-watcher: {told}", file=sys.stderr)
        return put_back_files.run(
            lambda: (
                request
                for number in dict.fromkeys(args.id or (None,))
                for request in put_back_requests.filed(
                    ledger_reader, since=since, batch=args.batch, number=number, verdicts=args.verdicts, name_of=name
                )
            ),
            "undo",
            to,
            settings,
            dry_run=args.dry_run,
            as_json=args.json,
            nothing="nothing of that is filed, or it was put back before",
        )


def _refuse_among_others(to: Path, settings: loader.Config) -> None:
    """Files put there would lie among those that were filed, or where nobody looks, and could not be told apart."""
    output = settings.output
    places = {
        "output.sorted": output.sorted,
        "output.review": output.review,
        "output.quarantine": output.quarantine,
        "output.rejected": output.rejected,
        "state.path": settings.state.path,
        **({"inbox.path": settings.inbox.path} if to != settings.inbox.path else {}),
    }
    for key, place in places.items():
        if Path(os.path.realpath(to)).is_relative_to(os.path.realpath(place)):
            raise Fatal(f"{to} lies in {key}", "Choose a directory outside of it with --to.", Exit.USAGE)


def _refuse_other_than_filed(ledger_reader: LedgerReader, number: int) -> None:
    entry = next(ledger_reader.entries("d.id = ?", (number,)), None)
    if entry is None:
        raise Fatal(f"the ledger has no decision {number}", "See `mednet-watcher explain FILE`.", Exit.FAILED)
    if entry.outcome == "restored":
        raise Fatal(
            f"decision {number} put a file back itself", f"See `mednet-watcher explain --id {number}`.", Exit.FAILED
        )
