"""How a training is gone on with: by one process at a time, from the last checkpoint that it put on disk."""

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
    """Keep what this lock stands for from other processes; False if one has it. A process that dies gives it up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class Last:
    """``last.pt`` in the directory of a run: all that it needs to go on as if it had never stopped.

    ``recipe`` is plain values, equal to themselves once they are on disk.
    """

    directory: Path
    recipe: dict[str, Any]
    seed: int
    net: nn.Module
    optimizer: Optimizer
    averaged: AveragedModel | None

    def save(self, **progress: Any) -> None:
        """Put networks, optimizer, torch's random state and the run's own ``progress`` on disk, whole or not at all.

        Raises:
            OSError: they can not be written; what was there stays.
        """
        state: dict[str, Any] = {
            "recipe": self.recipe,
            "seed": self.seed,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "random": torch.get_rng_state(),
            **progress,
        }
        path = self.directory / "last.pt"
        with atomic_write.written(path) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # how torch says that a disk is full
                raise OSError(errno.EIO, f"torch could not write it ({error})", str(path)) from error

    def restore(self) -> dict[str, Any] | None:
        """Put all of it back as it was saved. Gives the run's own progress with it; None: the run has not begun.

        Raises:
            Fatal: exit code 2; it is of another recipe or seed. Exit code 5; it is damaged.
        """
        path = self.directory / "last.pt"
        if not path.exists():
            return None
        content = io.BytesIO(path.read_bytes())  # what can not be read is not therefore damaged
        try:
            state: dict[str, Any] = torch.load(content, weights_only=True)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:  # by where the damage is
            raise Fatal(
                f"{path} is damaged, so the run can not be gone on with",
                f"Remove {self.directory}, and the run is done anew.",
                Exit.DIRECTORY,
            ) from error
        if state["recipe"] != self.recipe or state["seed"] != self.seed:
            raise Fatal(
                f"{self.directory} holds a run of another recipe, seed or number of classes",
                "Give --out another directory.",
                Exit.USAGE,
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        torch.set_rng_state(state["random"])
        return state
