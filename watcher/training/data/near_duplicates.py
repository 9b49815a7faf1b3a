"""Find duplicates and near-duplicates of images, which a random split of slices puts on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from watcher.training.data.labelled_images import Examples

BITS = 112
"""The bits of a hash. Of the bits that are not empty, two unrelated images differ in about half."""

CHANCE = 0.005
"""The share of images that may have a near-duplicate in another class. So often, nearness is chance."""

NO_NEIGHBOUR = 255
"""The distance of an image that there is none to compare with."""

Grey = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]

_BLOCKS = 8
_CHUNK = 64  # hashes compared with all others at once
_STEP = 2.0  # grey levels; smaller steps are noise of the background


def exact_copies(images: Grey) -> list[list[int]]:
    """Return groups of images that are equal pixel for pixel, as ascending indices."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        groups[image.tobytes()].append(number)
    return [group for group in groups.values() if len(group) > 1]


def hashes(images: Grey) -> Hashes:
    """Return the difference hashes (n, 2) of images (n, 64, 64).

    A bit says that an image grows brighter from one block of 8 x 8 to the next, to the right or downwards. It is the
    perceptual "dHash" in both directions. Other grey levels and small shifts change few of the bits.
    """
    count, block = len(images), images.shape[1] // _BLOCKS
    means = images.reshape(count, _BLOCKS, block, _BLOCKS, block).mean(axis=(2, 4), dtype=np.float32)
    right = (means[:, :, 1:] > means[:, :, :-1] + _STEP).reshape(count, -1)
    down = (means[:, 1:] > means[:, :-1] + _STEP).reshape(count, -1)
    empty = np.zeros((count, 64 - right.shape[1]), bool)
    packed = np.packbits(np.concatenate([right, empty, down, empty], axis=1), axis=1)
    return np.asarray(packed.view(np.uint64))


def nearest_distances(images: Examples, others: Examples) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the distance of each image to the nearest other one of its class, and of another class, in bits (n,)."""
    own_hashes, other_hashes = hashes(images.images), hashes(others.images)
    own, other = (np.full(len(own_hashes), NO_NEIGHBOUR, np.uint8) for _ in range(2))
    for label in range(len(images.classes)):
        distances = _to_nearest(own_hashes, other_hashes[others.labels == label])
        same = images.labels == label
        own[same] = distances[same]
        other[~same] = np.minimum(other[~same], distances[~same])
    return own, other


def _to_nearest(own: Hashes, others: Hashes) -> npt.NDArray[np.uint8]:
    distances = np.full(len(own), NO_NEIGHBOUR, np.uint8)
    for start in range(0, len(own) if len(others) else 0, _CHUNK):
        bits = np.bitwise_count(own[start : start + _CHUNK, None] ^ others[None])  # (chunk, m, 2)
        distances[start : start + _CHUNK] = (bits[..., 0] + bits[..., 1]).min(axis=1)
    return distances


def largest_distance(other: Sequence[int] | npt.NDArray[np.uint8], chance: float = CHANCE) -> int:
    """Return the most bits in which near-duplicates may differ.

    At most a share ``chance`` of the images then has one that near in another class. ``other`` are their distances to
    the nearest image of another class.
    """
    counts = np.bincount(np.asarray(other, np.int64), minlength=NO_NEIGHBOUR + 1).cumsum()
    near = np.flatnonzero(counts > chance * len(other))
    return int(near[0]) - 1 if len(near) else BITS
