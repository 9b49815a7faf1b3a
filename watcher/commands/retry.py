"""``retry``: quarantined files back into the inbox."""

from __future__ import annotations

import argparse
import os

from watcher import collisions, config, decoder_pool, layout, wishes
from watcher.annals import Annals
from watcher.commands import putting_back
from watcher.errors import Exit, Fatal

REASONS = sorted({*decoder_pool.REASONS, *decoder_pool.BLAMED, *collisions.REASONS} - {"not_found"})
"""What files are quarantined for. What is not found is not there to be."""


def run(args: argparse.Namespace) -> int:
    """Put them back. Exit code 1 if one could not be."""
    if args.files and args.reason:
        raise Fatal("--reason chooses among all quarantined files", "Name files or a reason, not both.", Exit.USAGE)
    if args.reason and args.reason not in REASONS:
        raise Fatal(f"{args.reason} is no reason for quarantine", f"One of {', '.join(REASONS)}.", Exit.USAGE)
    settings = config.load(args.config or config.default(), os.environ)
    name = putting_back.naming(settings)
    having = f" with the reason {args.reason}" if args.reason else ""
    with Annals(layout.ledger_path(settings)) as annals:
        return putting_back.run(
            lambda: (
                wishes.named(annals, args.files, settings.output.quarantine, name)
                if args.files
                else wishes.quarantined(annals, args.reason, name)
            ),
            "retry",
            settings.inbox.path,
            settings,
            dry=args.dry_run,
            as_json=args.json,
            nothing=f"the ledger knows of no quarantined file{having}",
        )
