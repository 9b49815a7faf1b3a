"""Images that are copies of others, or nearly: what a random split of slices puts on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from watcher.training.data.labelled_images import Examples

BITS = 112
"""Of a hash. Two images of nothing in common differ in about half of those that are not empty."""

CHANCE = 0.005
"""The share of images that may have a near twin in another class: so often, nearness is chance."""

NO_NEIGHBOUR = 255
"""The distance where there is no image to compare with."""

Grey = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]

_BLOCKS = 8
_CHUNK = 64  # hashes that are compared with all others at once
_STEP = 2.0  # grey levels; less is the noise of a background


def exact_copies(images: Grey) -> list[list[int]]:
    """Groups of images that are equal pixel for pixel, each in order."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        groups[image.tobytes()].append(number)
    return [group for group in groups.values() if len(group) > 1]


def hashes(images: Grey) -> Hashes:
    """Difference hashes (n, 2) of images (n, 64, 64): where it grows brighter to the right, and downwards.

    Of the means of 8 x 8 blocks, as in the perceptual "dHash", in both
    directions. Shades and small shifts change few of the bits.
    """
    count, block = len(images), images.shape[1] // _BLOCKS
    means = images.reshape(count, _BLOCKS, block, _BLOCKS, block).mean(axis=(2, 4), dtype=np.float32)
    right = (means[:, :, 1:] > means[:, :, :-1] + _STEP).reshape(count, -1)
    down = (means[:, 1:] > means[:, :-1] + _STEP).reshape(count, -1)
    empty = np.zeros((count, 64 - right.shape[1]), bool)
    packed = np.packbits(np.concatenate([right, empty, down, empty], axis=1), axis=1)
    return np.asarray(packed.view(np.uint64))


def nearest_distances(images: Examples, others: Examples) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Bits by which each image images of differs from the nearest of its own class, and of the other classes."""
    hashes_asked, hashes_of_others = hashes(images.images), hashes(others.images)
    own, other = np.full(len(hashes_asked), NO_NEIGHBOUR, np.uint8), np.full(len(hashes_asked), NO_NEIGHBOUR, np.uint8)
    for label in range(len(images.classes)):
        members = hashes_of_others[others.labels == label]
        distances = _to_nearest(hashes_asked, members)
        same = images.labels == label
        own[same] = distances[same]
        other[~same] = np.minimum(other[~same], distances[~same])
    return own, other


def _to_nearest(hashes_asked: Hashes, hashes_of_others: Hashes) -> npt.NDArray[np.uint8]:
    found = np.full(len(hashes_asked), NO_NEIGHBOUR, np.uint8)
    for start in range(0, len(hashes_asked) if len(hashes_of_others) else 0, _CHUNK):
        some = hashes_asked[start : start + _CHUNK]
        bits = np.bitwise_count(some[:, None] ^ hashes_of_others[None])  # (chunk, m, 2)
        found[start : start + _CHUNK] = (bits[..., 0] + bits[..., 1]).min(axis=1)
    return found


def largest_distance(other: Sequence[int] | npt.NDArray[np.uint8], chance: float = CHANCE) -> int:
    """The most bits two near twins may differ in: at most a share ``chance`` has one of another class that near."""
    counts = np.bincount(np.asarray(other, np.int64), minlength=NO_NEIGHBOUR + 1).cumsum()
    near = np.flatnonzero(counts > chance * len(other))
    return int(near[0]) - 1 if len(near) else BITS
