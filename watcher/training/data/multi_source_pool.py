"""Read the multi-source pool: images of the six classes and of none of them, with their origin.

``pool.csv`` has a row for each image (path, class, kind, source, series, rendering, ...). The class ``outlier`` is none
of the six, and ``kind`` says which kind of outlier. Images are held at 128 x 128 with all their levels, so that those
in Hounsfield units can still be shown in any window.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from watcher.core.errors import Exit, Fatal

SIDE = 128
"""Height and width of the images of the pool, in pixels."""

OUTLIER = -1
"""The label of an image of none of the classes."""

HU_OFFSET = 1024
"""The number that is added to Hounsfield units, so that they fit 16 bits without a sign."""

Rendering = Literal["hu", "raw16", "as_exported"]


@dataclass(frozen=True)
class Pool:
    """Images and their origins; ``levels`` (n, 128, 128) uint16, ``labels`` (n,) int64.

    A fold leaves out images of the same origin together. An origin is a source, or a patient of a source
    (``ucsf_nact/dev``). ``grades`` are those of the licences.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    levels: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.int64]
    kinds: tuple[str, ...]
    origins: tuple[str, ...]
    renderings: tuple[Rendering, ...]
    grades: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def subset(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Pool:
        """Return a part of the pool, by indices or by a mask."""
        places = np.arange(len(self))[chosen]
        columns = ("paths", "kinds", "origins", "renderings", "grades")
        parts = {name: tuple(getattr(self, name)[i] for i in places) for name in columns}
        return replace(self, levels=self.levels[places], labels=self.labels[places], **parts)


def load(root: Path, table: Path, classes: Sequence[str]) -> Pool:
    """Read every image that ``table`` lists; paths in it are relative to ``root``.

    Raises:
        Fatal: The table or an image of it cannot be read (exit code 5).
    """
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        levels = np.stack([_levels(root / row["path"]) for row in rows])
        labels = [OUTLIER if row["class"] == "outlier" else classes.index(row["class"]) for row in rows]
        return Pool(
            tuple(classes),
            tuple(row["path"] for row in rows),
            levels,
            np.array(labels, np.int64),
            tuple(row["kind"] or row["class"] for row in rows),
            tuple(_origin(row) for row in rows),
            tuple(cast(Rendering, row["rendering"]) for row in rows),
            tuple(row["licence_conf"] for row in rows),
        )
    except (OSError, KeyError, ValueError) as error:
        raise Fatal(
            f"the pool {table} can not be read: {error}",
            "Unpack it, and give --pool its pool.csv and --pool-data the directory that its paths start from.",
            Exit.DIRECTORY,
        ) from error


def digest(pool: Pool) -> str:
    """Return a digest of the images and of all that the table says of them, in their order; 64 hexadecimal digits."""
    sha = hashlib.sha256(np.ascontiguousarray(pool.levels).data)
    sha.update(np.ascontiguousarray(pool.labels).data)
    sha.update(repr((pool.classes, pool.kinds, pool.origins, pool.renderings, pool.grades)).encode())
    return sha.hexdigest()


def _origin(row: dict[str, str]) -> str:
    # Two patients of one hospital are all that the pool has of this kind. The report says that they are told apart.
    return f"{row['source']}/{row['split_suggestion']}" if row["source"] == "ucsf_nact" else row["source"]


def _levels(path: Path) -> npt.NDArray[np.uint16]:
    """Read all levels of an image, its long side 128 pixels, padded to a square with its edge pixels."""
    with Image.open(path) as image:
        deep = image.mode.startswith("I")
        grey = Image.fromarray(np.asarray(image, np.float32)) if deep else image.convert("L")
    longest = max(grey.size)
    width, height = (max(1, round(side * SIDE / longest)) for side in grey.size)
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.BILINEAR)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    around = ((top, SIDE - height - top), (left, SIDE - width - left))
    return np.pad(np.rint(np.asarray(grey)).astype(np.uint16), around, "edge")
