"""``retry``: quarantined files back into the inbox."""

from __future__ import annotations

import argparse
import os

from watcher import composition, config, restore
from watcher.annals import Annals
from watcher.commands import putting_back
from watcher.errors import Exit, Fatal


def run(args: argparse.Namespace) -> int:
    """Put them back. Exit code 1 if one could not be."""
    if args.files and args.reason:
        raise Fatal("--reason chooses among all quarantined files", "Name files or a reason, not both.", Exit.USAGE)
    settings = config.load(args.config or config.default(), os.environ)
    name = putting_back.naming(settings)
    with Annals(composition.ledger_path(settings)) as annals:
        return putting_back.run(
            lambda: (
                restore.named(annals, args.files, settings.output.quarantine, name)
                if args.files
                else restore.quarantined(annals, args.reason, name)
            ),
            "retry",
            settings.inbox.path,
            settings,
            dry=args.dry_run,
            as_json=args.json,
        )
