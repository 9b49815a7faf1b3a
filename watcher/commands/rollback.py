"""``rollback``: take the last promotion back."""

from __future__ import annotations

import argparse

from watcher import assets, checkpoint, composition, promoted
from watcher.errors import Exit, Fatal


def run(args: argparse.Namespace) -> int:
    """Put the weights of before in force again, from the next start or reload on."""
    state = composition.optional_config(args.config).state.path
    entries = promoted.history(state)
    if not entries:
        raise Fatal(
            "nothing was promoted: the weights that were shipped are in force",
            "There is nothing to take back.",
            Exit.FAILED,
        )
    *rest, last = entries
    before = rest[-1].digest if rest else checkpoint.load(assets.weights()).digest
    if rest:
        checkpoint.load(promoted.place_of(state, before))  # refused here rather than at the next start
    promoted.write(state, rest)
    print(f"taken back: {last.digest}, promoted {last.when} by {last.who}")
    print(f"in force from the next start or reload on: {before}{'' if rest else ' (as shipped)'}")
    return Exit.OK
