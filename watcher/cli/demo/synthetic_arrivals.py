"""Make synthetic files for the demo, and put them into the inbox in the ways of different producers."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from watcher.cli import contact_sheet
from watcher.images.decode import SIDE
from watcher.training.data.synthetic_images import Grey, Sketch

SLOW_PAUSE_S = 1.2
"""Seconds that the slow writer pauses half-way: longer than the demo's ``settle_s``."""

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Drop:
    """One file for the inbox.

    ``way`` is the way in which it arrives. ``label`` is the class that it was sampled from, None if it is of no class.
    """

    name: str
    way: str
    label: str | None
    data: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex. It identifies the file wherever it is moved."""
        return hashlib.sha256(self.data).hexdigest()


def plan(count: int, sketch: Sketch, rng: np.random.Generator) -> list[Drop]:
    """Return ``count`` images, with classes and ways of arriving in turn, and a few files that belong to no class."""
    images = _images(count, sketch, rng)
    for number, other in enumerate(_no_images_of_a_class(sketch, rng)):
        images.insert(min(len(images), 5 + 4 * number), other)
    return images


def _images(count: int, sketch: Sketch, rng: np.random.Generator) -> list[Drop]:
    drops: list[Drop] = []
    for turn in range(count):
        if len(drops) == count:
            break
        way, label = tuple(WAYS)[turn % len(WAYS)], sketch.classes[turn % len(sketch.classes)]
        name = f"{turn:04}-{label.lower()}.jpeg"
        kind = "PNG" if way == PNG else "JPEG"
        drops.append(Drop(name, way, label, _encoded(sketch.sample(label, rng), kind)))
        if way == TWICE and len(drops) < count:
            drops.append(Drop(name, way, label, _encoded(sketch.sample(label, rng), kind)))
    return drops


def _no_images_of_a_class(sketch: Sketch, rng: np.random.Generator) -> Iterator[Drop]:
    whole = _encoded(sketch.sample(sketch.classes[0], rng), "JPEG")
    noise = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    yield Drop("cut-short.jpeg", "truncated JPEG", None, whole[: len(whole) * 3 // 5])
    yield Drop("empty.jpeg", "empty file", None, b"")
    yield Drop("notes.txt", "text file", None, b"Synthetic text. This is no radiograph.\n")
    yield Drop("noise.jpeg", NOISE, None, _encoded(noise, "JPEG"))


def _encoded(image: Grey, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return buffer.getvalue()


def picture(drop: Drop) -> Image.Image | None:
    """Return the image in a file, or None if there is none."""
    try:
        with Image.open(io.BytesIO(drop.data)) as image:
            image.load()
            return image.copy()
    except OSError:
        return None


def tile(drop: Drop, caption: tuple[str, ...], group: str) -> contact_sheet.Tile:
    """Return the tile of a file for the contact sheet."""
    return contact_sheet.Tile(picture(drop), (drop.name, *caption), group)


# ------------------------------------------------------------------ ways of arriving


def _plain(data: bytes, target: Path, outgoing: Path) -> None:
    _new(target, data)


def _part(data: bytes, target: Path, outgoing: Path) -> None:
    partial = target.with_name(f"{target.name}.part")
    _new(partial, data)
    partial.rename(target)


def _moved(data: bytes, target: Path, outgoing: Path) -> None:
    source = outgoing / target.name
    _new(source, data)
    source.rename(target)


def _linked(data: bytes, target: Path, outgoing: Path) -> None:
    source = outgoing / target.name
    _new(source, data)
    os.link(source, target)
    source.unlink()


def _slow(data: bytes, target: Path, outgoing: Path) -> None:
    with target.open("xb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(SLOW_PAUSE_S)
        file.write(data[len(data) // 2 :])


def _new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:  # "x": never over another file, which the producer would lose
        file.write(data)


TWICE, PNG, SLOW, NOISE = "same name twice", "PNG named .jpeg", "slow writer", "pure noise"

WAYS: dict[str, Callable[[bytes, Path, Path], None]] = {
    "plain write": _plain,
    "renamed from .part": _part,
    "moved in": _moved,
    "published by hard link": _linked,
    SLOW: _slow,
    TWICE: _plain,
    PNG: _plain,
}
"""Ways of arriving, by name: functions of the content, the path in the inbox and the producer's own directory."""


def deliver(drop: Drop, inbox: Path, outgoing: Path, stop: threading.Event, patience_s: float = 20.0) -> bool:
    """Put one file into the inbox in its way, as soon as its name is free.

    Return False, without putting it there, if the name was still in use after ``patience_s``, or ``stop`` was set
    before.

    Raises:
        OSError: the file can not be written.
    """
    target, deadline = inbox / drop.name, time.monotonic() + patience_s
    while True:
        try:
            WAYS.get(drop.way, _plain)(drop.data, target, outgoing)
        except FileExistsError:
            if time.monotonic() > deadline or stop.wait(0.05):
                return False
        else:
            return True
