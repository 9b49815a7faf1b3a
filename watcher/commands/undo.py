"""``undo``: files that were filed back into the inbox, or into a directory of one's choice."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from watcher import config, layout, restore, wishes
from watcher.annals import Annals
from watcher.commands import putting_back
from watcher.errors import Exit, Fatal


def run(args: argparse.Namespace) -> int:
    """Put them back, but for what people judged. Exit code 1 if one is no longer what and where it was."""
    settings = config.load(args.config or config.default(), os.environ)
    since = wishes.since(args.since, datetime.now(UTC)) if args.since is not None else None
    inbox = settings.inbox.path
    to = Path(os.path.abspath(args.to)) if args.to else inbox
    if os.path.realpath(to) == os.path.realpath(inbox):
        to = inbox
    _refuse_among_others(to, settings)
    name = putting_back.naming(settings)
    with Annals(layout.ledger_path(settings)) as annals:
        for number in args.id or ():
            _refuse_other_than_filed(annals, number)
        if to == inbox and restore.daemons(settings.state.path):
            told = "a daemon runs: it sorts again what comes back to the inbox. With --to DIR it does not."
            print(f"mednet-watcher: {told}", file=sys.stderr)
        return putting_back.run(
            lambda: (
                wish
                for number in dict.fromkeys(args.id or (None,))
                for wish in wishes.filed(
                    annals, since=since, batch=args.batch, number=number, verdicts=args.verdicts, name=name
                )
            ),
            "undo",
            to,
            settings,
            dry=args.dry_run,
            as_json=args.json,
            nothing="nothing of that is filed, or it was put back before",
        )


def _refuse_among_others(to: Path, settings: config.Config) -> None:
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


def _refuse_other_than_filed(annals: Annals, number: int) -> None:
    entry = next(annals.entries("d.id = ?", (number,)), None)
    if entry is None:
        raise Fatal(f"the ledger has no decision {number}", "See `mednet-watcher explain FILE`.", Exit.FAILED)
    if entry.outcome == "restored":
        raise Fatal(
            f"decision {number} put a file back itself", f"See `mednet-watcher explain --id {number}`.", Exit.FAILED
        )
