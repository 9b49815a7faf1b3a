"""``undo``: put filed files back into the inbox, or into another directory."""

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
    """Put files back, except those that people judged. Return exit code 1 if one was moved or changed since."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    since = put_back_requests.parse_since(args.since, datetime.now(UTC)) if args.since is not None else None
    inbox = settings.inbox.path
    to = Path(os.path.abspath(args.to)) if args.to else inbox
    if os.path.realpath(to) == os.path.realpath(inbox):
        to = inbox
    _refuse_own_directories(to, settings)
    name = put_back_files.naming(settings)
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        for number in args.id or ():
            _refuse_not_filed(ledger_reader, number)
        if to == inbox and put_back.is_daemon_running(settings.state.path):
            warning = "a daemon runs, and will sort the files in the inbox again. Use --to DIR to prevent that."
            print(f"mednet-watcher: {warning}", file=sys.stderr)
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
            nothing="no such file is filed, or it was put back before",
        )


def _refuse_own_directories(to: Path, settings: loader.Config) -> None:
    """Refuse a target in the daemon's directories, where the files would be mixed with filed ones or with state."""
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


def _refuse_not_filed(ledger_reader: LedgerReader, number: int) -> None:
    entry = next(ledger_reader.entries("d.id = ?", (number,)), None)
    if entry is None:
        raise Fatal(f"the ledger has no decision {number}", "See `mednet-watcher explain FILE`.", Exit.FAILED)
    if entry.outcome == "restored":
        raise Fatal(
            f"decision {number} itself put a file back", f"See `mednet-watcher explain --id {number}`.", Exit.FAILED
        )
