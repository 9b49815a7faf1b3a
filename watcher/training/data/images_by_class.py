"""The training images a sketch is fitted to, class by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from watcher.core.errors import Exit, Fatal
from watcher.training.data import labelled_images


def images_by_class(root: Path, split: Path | None, part: str | None) -> dict[str, npt.NDArray[np.uint8]]:
    """Decode the images, (n, 64, 64) uint8 for each class, in the order of the classes.

    Raises:
        Fatal: the files are missing, an image can not be decoded, or a class
            has fewer than two images: one image is no statistic.
    """
    examples = labelled_images.load(labelled_images.listing(root, split, part if split else None))
    labelled_images.refuse_broken(examples)
    found = {name: examples.images[examples.labels == label] for label, name in enumerate(examples.classes)}
    for name, images in found.items():
        if len(images) < 2:
            raise Fatal(
                f"{name} has {len(images)} images: a sketch of it would be the image itself",
                "Give at least two images of each class, better some hundreds.",
                Exit.DIRECTORY,
            )
    return found
