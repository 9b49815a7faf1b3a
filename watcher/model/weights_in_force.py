"""Put weights in force on this host, and take the last promotion back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from watcher.core import atomic_write, shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, promotions
from watcher.model.promotions import Promotion


def put_in_force(state: Path, candidate: Path, digest: str, judged_against: Path | None, who: str) -> None:
    """Put weights in force from the next start or reload on.

    Args:
        state: The state directory.
        candidate: The file of the weights, which is copied to the state directory.
        digest: The digest of the weights that were judged.
        judged_against: The file of the promoted weights that they were judged against; None for the shipped ones.
        who: The name of the person who promotes them.

    Raises:
        Fatal: The weights in force, or the candidate, are others than were judged (exit code 1); the state directory
            cannot be written (exit code 5).
    """
    place = promotions.weights_file(state, digest)
    with promotions.locked(state):
        if promotions.in_force(state) != judged_against:
            problem = "other weights were put in force meanwhile"
            raise Fatal(problem, "Promote it anew, to be judged against those.", Exit.FAILED)
        if not _is_intact(place, digest):
            _copy(candidate, place, digest)
        promotions.write(state, [*promotions.history(state), Promotion(digest, _now(), who)])


def take_back(state: Path, who: str) -> tuple[Promotion, str]:
    """Take the last promotion back, and return it with a description of the weights in force from now on.

    Raises:
        Fatal: Nothing is promoted (exit code 1); the weights of before cannot be used (exit code 4); the state
            directory cannot be read or written (exit code 5).
    """
    if not promotions.history(state):
        raise _nothing_promoted()
    with promotions.locked(state):
        entries = promotions.history(state)
        if not promotions.not_taken_back(entries):
            raise _nothing_promoted()
        last = promotions.not_taken_back(entries)[-1]
        taken_back = replace(last, taken_back=_now(), taken_back_by=who)
        entries = [taken_back if entry is last else entry for entry in entries]
        before = description(entries, state)  # refused here rather than at the next start
        promotions.write(state, entries)
    return last, before


def description(entries: Sequence[Promotion], state: Path) -> str:
    """Return the digest of the weights in force by these entries, and "(as shipped)" if they are.

    Raises:
        Fatal: These weights cannot be used (exit code 4).
    """
    standing = promotions.not_taken_back(entries)
    if not standing:
        return f"{checkpoint.load(shipped_files.weights()).digest} (as shipped)"
    return checkpoint.load(promotions.weights_file(state, standing[-1].digest)).digest


def write_report(state: Path, digest: str, text: str) -> Path:
    """Write the report on weights beside those in force, and return its path.

    Raises:
        Fatal: It cannot be written (exit code 5).
    """
    try:
        path = promotions.make_directory(state) / f"{digest}.md"
        path.write_text(text, "utf-8")
    except OSError as error:
        raise Fatal(
            f"the report can not be written to {state / promotions.DIRECTORY}: {error.strerror}",
            "Run this as the daemon's user, or as root, and make room there.",
            Exit.DIRECTORY,
        ) from error
    return path


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _nothing_promoted() -> Fatal:
    problem = "nothing is promoted: the weights that were shipped are in force"
    return Fatal(problem, "There is nothing to take back.", Exit.FAILED)


def _is_intact(place: Path, digest: str) -> bool:
    """Return True if an earlier promotion has left these weights there."""
    try:
        return checkpoint.load(place).digest == digest
    except Fatal:
        return False


def _copy(candidate: Path, place: Path, digest: str) -> None:
    try:
        with atomic_write.replacing(place) as partial:
            shutil.copyfile(candidate, partial)
            if checkpoint.load(partial).digest != digest:
                raise Fatal(f"{candidate} is another file now than was judged", "Promote it anew.", Exit.FAILED)
    except OSError as error:
        raise Fatal(
            f"the weights can not be copied to {place}: {error.strerror}",
            "Give yourself the right to write in the state directory, and make room there.",
            Exit.DIRECTORY,
        ) from error
