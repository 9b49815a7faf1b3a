"""Resume a training: by one process at a time, from the last checkpoint on disk."""

from __future__ import annotations

import errno
import fcntl
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Lock a file for this process, and yield False if another has it. A process that dies releases its locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class Identity:
    """The settings and images that a training shares with the checkpoint that it resumes from.

    ``recipe`` is plain values, equal to themselves once they are on disk. ``data`` is a digest of the images.
    """

    recipe: dict[str, Any]
    seed: int
    data: str


@dataclass(frozen=True)
class LastCheckpoint:
    """``last.pt`` in the directory of a training: everything that it needs to continue as if it had never stopped.

    ``generator`` draws the images, where they are not drawn from the seed alone.
    """

    directory: Path
    identity: Identity
    net: nn.Module
    optimizer: Optimizer
    averaged: AveragedModel | None = None
    generator: torch.Generator | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / "last.pt"

    def save(self, history: list[dict[str, Any]]) -> None:
        """Write networks, optimizer, random states and the figures of each epoch, completely or not at all.

        Raises:
            OSError: They cannot be written. A checkpoint that was there stays.
        """
        state: dict[str, Any] = {
            **vars(self.identity),
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "random": torch.get_rng_state(),
            "generator": None if self.generator is None else self.generator.get_state(),
            "history": history,
        }
        with atomic_write.replacing(self.path) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # torch says so when the disk is full
                raise OSError(errno.EIO, f"torch could not write it ({error})", str(self.path)) from error

    def restore(self) -> list[dict[str, Any]]:
        """Put everything back as it was saved, and return the figures of each epoch; none if nothing was saved.

        Raises:
            Fatal: The checkpoint is of another recipe, seed or version, or of other images (exit code 2), or it is
                damaged (exit code 5).
        """
        if not self.path.exists():
            return []
        state = self._read()
        self._refuse_another(state)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        torch.set_rng_state(state["random"])
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        return list(state["history"])

    def _read(self) -> dict[str, Any]:
        content = io.BytesIO(self.path.read_bytes())  # an error of the disk is not a damaged file
        try:
            return dict(torch.load(content, weights_only=True))
        # Which one depends on where the damage is.
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise Fatal(
                f"{self.path} is damaged, so the run can not be continued",
                f"Remove {self.directory}, and the run is done again from its beginning.",
                Exit.DIRECTORY,
            ) from error

    def _refuse_another(self, state: dict[str, Any]) -> None:
        identity, advice = self.identity, "Give --out another directory."
        if not {*vars(identity), "generator", "history"} <= state.keys():
            problem = f"{self.directory} holds a run that another version of this program began"
            raise Fatal(problem, f"Finish it with that version, or remove {self.directory}.", Exit.USAGE)
        if state["recipe"] != identity.recipe or state["seed"] != identity.seed:
            raise Fatal(
                f"{self.directory} holds a run of another recipe, seed or number of classes", advice, Exit.USAGE
            )
        if state["data"] != identity.data:
            problem = f"{self.directory} holds a run on other images or labels: continued, it would be of neither"
            raise Fatal(problem, advice, Exit.USAGE)
