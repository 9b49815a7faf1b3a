"""Shared mode: several workers sort one inbox, and each file is claimed by one rename.

A claimed file lies in ``.mednet-claims/<worker>`` in the inbox: still in a place
that an operator would look in, on the same file system, and out of the others'
sight. The lease is the worker's lock, which the kernel frees when it dies.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

from watcher import failpoints, unique
from watcher.errors import Exit, Fatal, Retry

DIRECTORY = ".mednet-claims"
"""Where claimed files lie, in the inbox."""

MOST_WORKERS = 64


class Claim(Enum):
    """What came of :meth:`Claims.take`."""

    TAKEN = auto()
    GONE = auto()  # another worker was faster, or the producer took it away
    BUSY = auto()  # an earlier file of that name is still being sorted here


class Claims:
    """The files that one worker has claimed, in :attr:`path`."""

    def __init__(self, inbox: Path, worker: str) -> None:
        self._inbox, self.worker = inbox, worker
        self.path = inbox / DIRECTORY / worker

    def take(self, name: str) -> Claim:
        """Claim a file of the inbox.

        Raises:
            Retry: neither claimed nor gone; the surroundings failed.
        """
        try:
            unique.rename_noreplace(self._inbox / name, self.path / name)
        except FileExistsError:
            return Claim.BUSY
        except FileNotFoundError:
            if self.path.is_dir():
                return Claim.GONE
            self._make_again()
            return self.take(name)
        except OSError as error:
            raise Retry(f"{name} can not be claimed: {error.strerror}") from error
        failpoints.reach("taken")
        return Claim.TAKEN

    def _make_again(self) -> None:
        """The inbox is another directory by now (mounted anew, say)."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Retry(f"{self.path} can not be made: {error.strerror}") from error

    def others(self) -> list[str]:
        """Workers who have claimed files just now, without this one."""
        try:
            return [name for name in workers(self._inbox) if name != self.worker and _holds_files(self._inbox, name)]
        except OSError:
            return []

    def adopt(self, worker: str) -> list[str]:
        """Take over what a dead worker had claimed. Whoever calls holds its lock.

        A name that is claimed here already is left for the next time.
        """
        adopted = []
        for path in _files(self._inbox / DIRECTORY / worker):
            with contextlib.suppress(OSError):
                unique.rename_noreplace(path, self.path / path.name)
                failpoints.reach("adopted")
                adopted.append(path.name)
        return adopted

    def give_back(self) -> int:
        """Put everything back into the inbox, at the end of this worker. How many files it was."""
        return release(self._inbox, self.worker)


def workers(inbox: Path) -> list[str]:
    """Everybody who has a directory for claims in this inbox, at work or dead."""
    try:
        with os.scandir(inbox / DIRECTORY) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def held(inbox: Path) -> int:
    """How many files are claimed just now, by anybody."""
    try:
        return sum(1 for worker in workers(inbox) for _ in _files(inbox / DIRECTORY / worker))
    except OSError:
        return 0


def release(inbox: Path, worker: str) -> int:
    """Put what a worker has claimed back into the inbox, under the name it has or a free one. How many files."""
    count = 0
    for path in _files(inbox / DIRECTORY / worker):
        for candidate in unique.candidates(path.name, None):
            try:
                unique.rename_noreplace(path, inbox / candidate)
            except FileExistsError:
                continue
            except OSError:
                break  # the inbox is gone, say: it stays claimed, and is taken over by the next start
            count += 1
            break
    return count


def belong(inbox: Path, state: Path) -> None:
    """See that this inbox's claims belong to this state directory: its ledger knows what became of them.

    Raises:
        Fatal: exit code 5; they belong to another, or nothing can be written.
    """
    try:
        (inbox / DIRECTORY).mkdir(exist_ok=True)
        ours, theirs = _stamp(state / "id"), _stamp(inbox / DIRECTORY / "id", state / "id")
    except OSError as error:
        raise Fatal(
            f"the inbox {inbox} can not be shared: {error}",
            "Give the daemon's user the right to write in it and in the state directory.",
            Exit.DIRECTORY,
        ) from error
    if ours != theirs:
        raise Fatal(
            f"the inbox {inbox} is shared by daemons with another state directory",
            "All that share an inbox run on one host with the same configuration. If the other state directory is "
            f"gone for good, see that nothing is left in {inbox / DIRECTORY} and remove that directory.",
            Exit.DIRECTORY,
        )


def _stamp(path: Path, model: Path | None = None) -> str:
    """What is written at ``path``; written now, like ``model`` or at random, if there is nothing."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    if not path.exists():
        draft.write_text(model.read_text() if model else uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):
            unique.rename_noreplace(draft, path)  # whole at once: several workers may start together
        draft.unlink(missing_ok=True)
    return path.read_text()


def _holds_files(inbox: Path, worker: str) -> bool:
    return next(_files(inbox / DIRECTORY / worker), None) is not None


def _files(directory: Path) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                yield Path(entry.path)
    except OSError:
        return
