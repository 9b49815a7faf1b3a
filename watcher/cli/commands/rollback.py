"""``rollback``: take the last promotion back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from watcher.config import loader
from watcher.core.errors import Exit, Fatal
from watcher.model import promotions, weights_in_force
from watcher.model.promotions import Promotion
from watcher.review import verdicts


def run(args: argparse.Namespace) -> int:
    """Put the weights of before in force again, from the next start or reload on; or list the promotions."""
    settings = loader.load_or_default(args.config)
    state = settings.state.path
    if args.list:
        entries = promotions.history(state)
        return _list(entries, str(settings.model.weights) if settings.model.weights else _in_force(entries, state))
    promotions.refuse_named_weights(settings)
    last, before = weights_in_force.take_back(state, verdicts.current_reviewer(os.environ).user)
    print(f"taken back: {last.digest}, promoted {last.when} by {last.who}")
    print(f"in force from the next start or reload on: {before}")
    return Exit.OK


def _in_force(entries: Sequence[Promotion], state: Path) -> str:
    """Describe the weights in force. A list is most needed where they can not be used: so this is no error."""
    try:
        return weights_in_force.description(entries, state)
    except Fatal as error:
        return f"{error.problem}. `mednet-watcher rollback` goes back to what was in force before"


def _list(entries: Sequence[Promotion], in_force: str) -> int:
    for entry in entries:
        back = f", taken back {entry.taken_back} by {entry.taken_back_by}" if entry.taken_back else ""
        print(f"{entry.digest}  promoted {entry.when} by {entry.who}{back}")
    print(f"in force: {in_force}")
    return Exit.OK
