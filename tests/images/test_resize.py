"""From any size to 64 x 64."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from watcher.images import resize

NOISE = np.random.default_rng(4).integers(0, 256, (64, 64), np.uint8)


def test_the_model_s_own_size_is_not_touched() -> None:
    """A grey picture of 64 x 64, as all of MedNIST's are, comes back pixel for pixel."""
    np.testing.assert_array_equal(resize.to_64(NOISE), NOISE)


def test_a_square_is_resampled_and_no_more() -> None:
    """Nothing is cut off or filled up."""
    large = np.kron(NOISE, np.ones((5, 5), np.uint8))
    wanted = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize.to_64(large), wanted)


@pytest.mark.parametrize("deep", [False, True])
def test_the_shape_of_things_is_kept(deep: bool) -> None:
    """A circle in a wide or a tall picture stays a circle, in the middle, and the rest is what was at the edge."""
    y, x = np.mgrid[:100, :200]
    circle = np.where((y - 50) ** 2 + (x - 100) ** 2 < 30**2, 200, 10)
    wide = circle.astype(np.float32) * 100 if deep else circle.astype(np.uint8)
    found = resize.to_64(wide)
    np.testing.assert_allclose(resize.to_64(np.ascontiguousarray(wide.T)).astype(int), found.T, atol=1)
    inside = found > 128
    height, width = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert abs(int(height) - int(width)) <= 1 and 18 <= width <= 20
    assert (found[:16] == found[16]).all() and (found[48:] == found[47]).all()


def test_one_level_stays_one_level() -> None:
    """The margins that are filled up leave a blank picture blank."""
    for levels in (np.full((30, 90), 200, np.uint8), np.full((90, 30), 7e4, np.float32)):
        assert np.ptp(resize.to_64(levels)) == 0


def test_a_thread_of_pixels() -> None:
    """The most pixels allowed, in one row, are no square of that side in memory."""
    started = time.process_time()
    assert resize.to_64(np.zeros((1, 64_000_000), np.uint8)).shape == (64, 64)
    assert time.process_time() - started < 5
