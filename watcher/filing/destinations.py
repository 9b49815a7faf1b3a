"""Find the directory for each decision, and count the files and the free space there."""

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
    """The directories that files go to. Class directories lie below ``sorted``."""

    sorted: Path
    review: Path
    quarantine: Path
    rejected: Path

    def of(self, decision: Decision) -> Path:
        """Return the directory for a decision."""
        if decision.outcome is Outcome.SORTED and decision.label is not None:
            return self.sorted / decision.label
        if decision.outcome is Outcome.REJECTED:
            return self.rejected
        return self.review if decision.outcome is Outcome.REVIEW else self.quarantine

    def all(self, classes: Sequence[str]) -> list[Path]:
        """Return every directory that the daemon files into by itself.

        The directory of rejected files is not among them: it is made when it is first needed.
        """
        return [*(self.sorted / name for name in classes), self.review, self.quarantine]


def count(directory: Path) -> int | None:
    """Return how many files wait in a directory for a person, or None if it can not be listed."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return sum(map(is_waiting_file, entries))
    return None


def is_waiting_file(entry: os.DirEntry[str]) -> bool:
    """Return True for a file that waits for a person, False for our notes, unfinished copies and directories."""
    return not (
        entry.name.endswith((quarantine_notes.SUFFIX, no_overwrite.PARTIAL)) or entry.is_dir(follow_symlinks=False)
    )


def places(settings: loader.Config) -> Destinations:
    """Return the directories that the config names."""
    output = settings.output
    return Destinations(output.sorted, output.review, output.quarantine, output.rejected)


def backlog(where: Destinations) -> dict[str, int | None]:
    """Return how many files wait for a person in review and in quarantine. None if a directory can not be listed."""
    return {"review": count(where.review), "quarantine": count(where.quarantine)}


def free_space(settings: loader.Config, where: Destinations) -> dict[str, float]:
    """Return the free bytes on the disk of each directory, without those that can not be reached."""
    paths = {"inbox": settings.inbox.path, "state": settings.state.path, **vars(where)}
    free = {}
    for place, path in paths.items():
        with contextlib.suppress(OSError):
            free[place] = float(shutil.disk_usage(path).free)
    return free
