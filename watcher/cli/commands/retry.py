"""``retry``: put quarantined files back into the inbox."""

from __future__ import annotations

import argparse
import os

from watcher.cli import put_back_files
from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Fatal
from watcher.filing import duplicates, put_back_requests
from watcher.images import decoder_answers, decoder_pool
from watcher.ledger.reader import LedgerReader

REASONS = sorted({*decoder_answers.REASONS, *decoder_pool.FAILURES, *duplicates.REASONS} - {"not_found"})
"""Reasons for quarantine. A file that was not found can not be quarantined."""


def run(args: argparse.Namespace) -> int:
    """Put the files back. Return exit code 1 if one could not be put back."""
    if args.files and args.reason:
        raise Fatal("--reason selects from all quarantined files", "Give files or a reason, not both.", Exit.USAGE)
    if args.reason and args.reason not in REASONS:
        raise Fatal(f"{args.reason} is no reason for quarantine", f"Give one of {', '.join(REASONS)}.", Exit.USAGE)
    settings = loader.load(args.config or loader.default_path(), os.environ)
    name = put_back_files.naming(settings)
    with_reason = f" with the reason {args.reason}" if args.reason else ""
    with LedgerReader(paths_and_limits.ledger_path(settings)) as ledger_reader:
        return put_back_files.run(
            lambda: (
                put_back_requests.named(ledger_reader, args.files, settings.output.quarantine, name)
                if args.files
                else put_back_requests.quarantined(ledger_reader, args.reason, name)
            ),
            "retry",
            settings.inbox.path,
            settings,
            dry_run=args.dry_run,
            as_json=args.json,
            nothing=f"the ledger knows of no quarantined file{with_reason}",
        )
