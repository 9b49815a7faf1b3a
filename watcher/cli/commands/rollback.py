"""``rollback``: take the last promotion back."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from watcher.config import loader
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, promotions
from watcher.review import verdicts


def run(args: argparse.Namespace) -> int:
    """Put the weights of before in force again, from the next start or reload on; or list what was promoted."""
    settings = loader.load_or_default(args.config)
    state = settings.state.path
    if args.list:
        entries = promotions.history(state)
        return _list(entries, str(settings.model.weights) if settings.model.weights else _present(entries, state))
    promotions.refuse_named_weights(settings)
    if not promotions.history(state):
        raise _nothing()
    with promotions.locked(state):
        entries = promotions.history(state)
        if not promotions.not_taken_back(entries):
            raise _nothing()
        last = promotions.not_taken_back(entries)[-1]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        taken = replace(last, taken_back=now, taken_back_by=verdicts.current_reviewer(os.environ).user)
        entries = [taken if entry is last else entry for entry in entries]
        before = _before(entries, state)  # refused here rather than at the next start
        promotions.write(state, entries)
    print(f"taken back: {last.digest}, promoted {last.when} by {last.who}")
    print(f"in force from the next start or reload on: {before}")
    return Exit.OK


def _nothing() -> Fatal:
    told = "nothing is promoted: the weights that were shipped are in force"
    return Fatal(told, "There is nothing to take back.", Exit.FAILED)


def _before(entries: list[promotions.Promotion], state: Path) -> str:
    """What is in force by these entries: its digest, and whether it was shipped.

    Raises:
        Fatal: exit code 4; those weights can not be used.
    """
    standing = promotions.not_taken_back(entries)
    if not standing:
        return f"{checkpoint.load(shipped_files.weights()).digest} (as shipped)"
    return checkpoint.load(promotions.weights_file(state, standing[-1].digest)).digest


def _present(entries: list[promotions.Promotion], state: Path) -> str:
    """The same for a list, which is most needed where they can not be used."""
    try:
        return _before(entries, state)
    except Fatal as error:
        return f"{error.problem}. `mednet-watcher rollback` goes back to what was in force before"


def _list(entries: list[promotions.Promotion], present: str) -> int:
    for entry in entries:
        back = f", taken back {entry.taken_back} by {entry.taken_back_by}" if entry.taken_back else ""
        print(f"{entry.digest}  promoted {entry.when} by {entry.who}{back}")
    print(f"in force: {present}")
    return Exit.OK
