"""Apply the rules for files whose name or bytes were filed before.

Nothing is ever overwritten or deleted. The rules apply only to files on their way to a class: all others go to a
person anyway.
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
"""The actions of :mod:`watcher.config.settings`."""


REASONS = ("duplicate", "name_taken")


@dataclass(frozen=True)
class DuplicateRules:
    """An action for each case of a collision. Another name with other bytes is no collision."""

    same_name_same_bytes: Action = "keep"
    same_name_other_bytes: Action = "keep"
    other_name_same_bytes: Action = "keep"

    @property
    def need_lookup(self) -> bool:
        """True if a collision can change a decision. False if the action is always ``keep``."""
        return self != DuplicateRules()


def apply_rules(
    decision: Decision,
    path: Path,
    digest: str | None,
    duplicate: int | None,
    rules: DuplicateRules,
    digests_bound_for_path: Sequence[str | None] = (),
) -> Decision:
    """Return the decision, or another one if the file collides with a filed one.

    ``path`` is the path that the file would get. ``duplicate`` is the decision that filed the same bytes, None if
    there is none. ``digests_bound_for_path`` are the digests of files that are being moved to that path now.
    """
    if decision.outcome is not Outcome.SORTED:
        return decision
    same_bytes = _has_bytes(path, digest)
    if same_bytes is None and digests_bound_for_path:
        same_bytes = digest in digests_bound_for_path
    if same_bytes:
        return _act(rules.same_name_same_bytes, decision, "duplicate", f"{path} has the same name and bytes")
    if same_bytes is False and rules.same_name_other_bytes != "keep":
        return _act(rules.same_name_other_bytes, decision, "name_taken", f"{path} has the same name, other bytes")
    if duplicate is not None:
        return _act(rules.other_name_same_bytes, decision, "duplicate", f"the same bytes as decision {duplicate}")
    return decision


def _has_bytes(path: Path, digest: str | None) -> bool | None:
    """Return True if a file has this digest, None if there is no such file."""
    try:
        regular = stat.S_ISREG(os.lstat(path).st_mode)
        return regular and no_overwrite.digest(path) == digest
    except FileNotFoundError:
        return None
    except OSError:
        return False


def _act(action: Action, decision: Decision, reason: str, detail: str) -> Decision:
    if action == "keep":
        return decision
    return replace(decision, outcome=Outcome(action), reason=reason, detail=detail)
