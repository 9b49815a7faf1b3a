"""What becomes of a file whose name or bytes were filed before. Whatever it is, nothing is overwritten or deleted.

Only files on their way to a class are judged: those in doubt go to a person anyway.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from watcher.core import no_overwrite
from watcher.core.records import Decision, Outcome

Action = Literal["keep", "review", "quarantine"]
"""As in :mod:`watcher.config.settings`."""


REASONS = ("duplicate", "name_taken")


@dataclass(frozen=True)
class DuplicateRules:
    """One action for each case. The fourth, another name and other bytes, is no collision."""

    same_name_same_bytes: Action = "keep"
    same_name_other_bytes: Action = "keep"
    other_name_same_bytes: Action = "keep"

    @property
    def ask(self) -> bool:
        """Whether anything is to be looked up: not if all is kept."""
        return self != DuplicateRules()


def judge(
    decision: Decision,
    path: Path,
    digest: str | None,
    twin: int | None,
    rules: DuplicateRules,
    coming: Sequence[str | None] = (),
) -> Decision:
    """The decision, or another if ``path`` (where the file would go) is taken, or its bytes were filed before.

    ``twin`` is the decision that filed the same bytes, None if there is none; ``coming`` holds the digests of
    files that are on their way to that very path.
    """
    if decision.outcome is not Outcome.SORTED:
        return decision
    equal = _is_equal(path, digest)
    if equal is None and coming:
        equal = digest in coming
    if equal:
        return _follow(rules.same_name_same_bytes, decision, "duplicate", f"{path} has the same name and bytes")
    if equal is False and rules.same_name_other_bytes != "keep":
        return _follow(rules.same_name_other_bytes, decision, "name_taken", f"{path} has the same name, other bytes")
    if twin is not None:
        return _follow(rules.other_name_same_bytes, decision, "duplicate", f"the same bytes as decision {twin}")
    return decision


def _is_equal(path: Path, digest: str | None) -> bool | None:
    """Whether a file has these bytes. None: there is no such file."""
    try:
        regular = stat.S_ISREG(os.lstat(path).st_mode)
        return regular and no_overwrite.digest(path) == digest
    except FileNotFoundError:
        return None
    except OSError:
        return False


def _follow(action: Action, decision: Decision, reason: str, detail: str) -> Decision:
    if action == "keep":
        return decision
    return replace(decision, outcome=Outcome(action), reason=reason, detail=detail)
