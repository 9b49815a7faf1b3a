"""What travels the route: frozen values, passed from station to station.

A file is known by its name in the inbox (its path from there, if it lies in a
directory below), as ``os.fsdecode`` gives it: bytes that are no UTF-8 survive as
surrogate escapes.
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
"""A directory below the inbox: its path there, and its inode."""


class Outcome(StrEnum):
    """What becomes of a file."""

    SORTED = "sorted"
    REVIEW = "review"
    QUARANTINE = "quarantine"
    RESTORED = "restored"  # put back by a person's command
    REJECTED = "rejected"  # of none of the classes, as a person says


def signed(number: int) -> int:
    """This number in the 64 bits, with a sign, that SQLite has for one.

    Device and inode numbers may use all 64 without one, and a time after 2262-04-11 in ns needs more than 63.
    """
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file a name stood for, and in which state, when it was looked at.

    ``mtime_ns`` is kept as the ledger keeps it, see :func:`signed`.
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

    ``modality`` and ``body_part`` are what a DICOM file says of itself, in words of
    :mod:`watcher.images.dicom_vocabulary`; ``tags`` what its name is to be made of, if anything
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
    """A file that could not be read as an image. No identity: it could not even be opened."""

    name: str
    reason: str
    detail: str
    identity: Identity | None = None
    digest: str | None = None
    gone: bool = False
    """It is no longer there at all."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the network says of n images.

    ``logits`` (n, classes), or (n, classes + 1) where the network has an answer
    of its own for what is none of the classes, the last. ``distance`` (n,) is
    the out-of-distribution score, None where the weights have none.
    """

    logits: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the logits of one image amount to.

    ``top`` holds (class, probability), most probable first. ``label`` is the
    most probable class, also when the outcome is review.
    """

    outcome: Outcome
    label: str | None
    confidence: float
    reason: str | None = None
    detail: str | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a file spent in each station, and when it was first seen (monotonic seconds)."""

    seen_s: float
    queue_ms: float = 0.0
    decode_ms: float = 0.0
    infer_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """A decided file, on its way to a class, review or quarantine, or back.

    ``source`` is its path where that is not its name in the inbox; ``restores``
    the decision that a person takes back; ``call`` what the file is to be called
    if not as before; ``verdict`` what that person said.
    """

    name: str
    identity: Identity | None
    digest: str | None
    decision: Decision
    timing: Timing
    source: str | None = None
    restores: int | None = None
    call: str | None = None
    verdict: int | None = None

    @property
    def title(self) -> str:
        """What the file is to be called, without a path."""
        return self.call or os.path.basename(self.name)


@dataclass(frozen=True, slots=True)
class Filed:
    """An order carried out: where the file lies now, and how long the move took."""

    order: MoveOrder
    destination: str
    move_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Shadowed:
    """An order that is only recorded, in shadow mode: the file stays. ``destination`` is where it would have gone."""

    order: MoveOrder
    destination: str


@dataclass(frozen=True, slots=True)
class Returned:
    """An order not carried out: the file stays in the inbox. ``later`` asks for a pause first."""

    order: MoveOrder
    why: str
    later: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """How a decision ended. ``destination`` is where the file lies now, if it was filed."""

    decision: int
    state: Literal["filed", "returned", "missing", "shadowed"]
    destination: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerLag:
    """How many decisions have ended on disk and not yet in the ledger, and what keeps them from it."""

    files: int
    why: str


Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for the log, from a module that does not log itself."""

    level: Level
    event: str
    fields: Mapping[str, object]
