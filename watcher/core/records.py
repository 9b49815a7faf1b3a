"""Define the frozen values that the stages of the pipeline pass on.

A file is known by its name in the inbox, or by its path from there if it lies in a directory below. The name is as
``os.fsdecode`` returns it: bytes that are not UTF-8 become surrogate escapes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Folder = tuple[str, int]
"""A directory below the inbox: its path from there, and its inode number."""


class Outcome(StrEnum):
    """The outcome for a file."""

    SORTED = "sorted"
    REVIEW = "review"
    QUARANTINE = "quarantine"
    RESTORED = "restored"  # put back by a person's command
    REJECTED = "rejected"  # a person says that it belongs to none of the classes


def signed(number: int) -> int:
    """Return a number as SQLite stores it, in 64 bits with a sign.

    Device and inode numbers may use all 64 bits without a sign, and times after 2262-04-11 in ns need more than 63.
    """
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True, slots=True)
class Identity:
    """A file in one state, as the kernel reported it: another file or other content gives another identity.

    ``mtime_ns`` is stored as the ledger stores it, see :func:`signed`.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "mtime_ns", signed(self.mtime_ns))


@dataclass(frozen=True, slots=True)
class Decoded:
    """A file that is an image. ``digest`` is the SHA-256 of its bytes, in hex.

    ``modality`` and ``body_part`` come from the tags of a DICOM file and are words of
    :mod:`watcher.images.dicom_vocabulary`. ``tags`` holds the parts of its new name, if it gets one
    (see :mod:`watcher.images.dicom_filenames`).
    """

    name: str
    identity: Identity
    digest: str
    image: npt.NDArray[np.uint8] = field(repr=False)  # (64, 64)
    blank: bool
    decode_ms: float
    frames: int = 1
    modality: str | None = None
    body_part: str | None = None
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that could not be read as an image. Without an identity it could not even be opened."""

    name: str
    reason: str
    detail: str
    identity: Identity | None = None
    digest: str | None = None
    gone: bool = False
    """True if the file does not exist any more."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of the network for n images.

    ``logits`` has the shape (n, classes), or (n, classes + 1) if the last output stands for "none of the classes".
    ``distance`` (n,) is the out-of-distribution score, or None if the weights have none.
    """

    logits: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on one image.

    ``label`` is the most probable class, also if the outcome is review. ``top`` holds (class, probability), most
    probable first.
    """

    outcome: Outcome
    label: str | None
    confidence: float
    reason: str | None = None
    detail: str | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """The time when a file was first seen (monotonic seconds), and the milliseconds it spent in each stage."""

    seen_s: float
    queue_ms: float = 0.0
    decode_ms: float = 0.0
    infer_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """An order to move a file to a class, to review or to quarantine, or back to the inbox.

    ``source`` is the path of the file if that is not its name in the inbox. ``new_name`` is its new name, without a
    path, if it is renamed. ``restores`` and ``verdict`` are rows of the ledger: the decision that a person takes
    back, and what that person said.
    """

    name: str
    identity: Identity | None
    digest: str | None
    decision: Decision
    timing: Timing
    source: str | None = None
    restores: int | None = None
    new_name: str | None = None
    verdict: int | None = None

    @property
    def target_name(self) -> str:
        """The name of the file after the move, without a path."""
        return self.new_name or os.path.basename(self.name)


@dataclass(frozen=True, slots=True)
class Filed:
    """An order that was carried out, with the path of the file now and the duration of the move."""

    order: MoveOrder
    destination: str
    move_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Shadowed:
    """An order that is only recorded, in shadow mode. ``destination`` is the path that the file would have now."""

    order: MoveOrder
    destination: str


@dataclass(frozen=True, slots=True)
class Returned:
    """An order that was not carried out. The file stays in the inbox, and ``later`` asks to wait before a retry."""

    order: MoveOrder
    why: str
    later: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a decision. ``destination`` is the path of the file now, if it was filed."""

    decision: int
    state: Literal["filed", "returned", "missing", "shadowed"]
    destination: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerLag:
    """The number of decisions that have ended on disk but not yet in the ledger, and the reason for the delay."""

    files: int
    why: str


Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the log, from a package that does not log."""

    level: Level
    event: str
    fields: Mapping[str, object]
