"""Where the files of each outcome go, how many wait there and how much room is left."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from watcher.config import loader
from watcher.core import no_overwrite
from watcher.core.records import Decision, Outcome
from watcher.filing import quarantine_notes


@dataclass(frozen=True)
class Destinations:
    """Where files go. Class directories lie below ``sorted``."""

    sorted: Path
    review: Path
    quarantine: Path
    rejected: Path

    def of(self, decision: Decision) -> Path:
        """The directory for one decision."""
        if decision.outcome is Outcome.SORTED and decision.label is not None:
            return self.sorted / decision.label
        if decision.outcome is Outcome.REJECTED:
            return self.rejected
        return self.review if decision.outcome is Outcome.REVIEW else self.quarantine

    def all(self, classes: Sequence[str]) -> list[Path]:
        """Every directory that a file can go to by itself. That of the rejected is made when it is first needed."""
        return [*(self.sorted / name for name in classes), self.review, self.quarantine]


def count(directory: Path) -> int | None:
    """How many files wait in a directory for a person; None: it can not be listed."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return sum(map(waits, entries))
    return None


def waits(entry: os.DirEntry[str]) -> bool:
    """Whether this is a file that was put there, and not what we keep beside one."""
    return not (
        entry.name.endswith((quarantine_notes.ENDING, no_overwrite.PARTIAL)) or entry.is_dir(follow_symlinks=False)
    )


def places(settings: loader.Config) -> Destinations:
    """Where files go."""
    output = settings.output
    return Destinations(output.sorted, output.review, output.quarantine, output.rejected)


def backlog(where: Destinations) -> dict[str, int | None]:
    """Files that wait for a person; None where the place can not be listed."""
    return {"review": count(where.review), "quarantine": count(where.quarantine)}


def free_space(settings: loader.Config, where: Destinations) -> dict[str, float]:
    """Bytes left on the disk of each place; none of one that can not be reached."""
    paths = {"inbox": settings.inbox.path, "state": settings.state.path, **vars(where)}
    free = {}
    for place, path in paths.items():
        with contextlib.suppress(OSError):
            free[place] = float(shutil.disk_usage(path).free)
    return free
