"""Read the verdicts of a site: images by class directory, and outliers in a directory of their own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from watcher.training.data import labelled_images
from watcher.training.data.labelled_images import Examples

OUTLIER_DIRECTORY = "outlier"
"""The directory of images that people said are none of the classes."""

HELD_BACK = 0.3
"""The share of the verdicts that nothing is learnt from, because ``promote`` judges by them."""


def load(root: Path, classes: tuple[str, ...]) -> Examples:
    """Load the images of ``root/<class>/``, and those of ``root/outlier/`` with the label after the last class.

    Outliers that cannot be decoded teach nothing, and stay in ``broken``.

    Raises:
        Fatal: There are no images, or a directory is not named after a class (exit code 5); an image of a class cannot
            be decoded (exit code 1).
    """
    known = (*classes, OUTLIER_DIRECTORY)
    advice = f"Name them {', '.join(known)}, as `review export` does."
    listing = labelled_images.listing(root)
    data = labelled_images.relabelled(
        labelled_images.load(listing), known, f"{root} has directories that are no class:", advice
    )
    labelled_images.refuse_broken(replace(data, broken=tuple(file for file in data.broken if file[1] < len(classes))))
    return replace(data, classes=classes)


def split(data: Examples) -> tuple[Examples, Examples]:
    """Split images into those to learn from and those held back.

    Their pixels decide, so that the split is the same each time and exact copies are on one side.
    """
    keys = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in data.images])
    held = np.zeros(len(keys), np.bool_)
    for label in np.unique(data.labels):
        own = data.labels == label
        distinct = np.unique(keys[own])
        held |= own & np.isin(keys, distinct[: int(HELD_BACK * len(distinct))])
    return _part(data, ~held), _part(data, held)


def _part(data: Examples, mask: npt.NDArray[np.bool_]) -> Examples:
    places = np.flatnonzero(mask)
    return Examples(data.classes, tuple(data.paths[n] for n in places), data.images[places], data.labels[places])
