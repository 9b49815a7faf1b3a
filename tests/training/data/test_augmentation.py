"""Augmentation: what is changed, for which classes, and by how much at most."""

from __future__ import annotations

import numpy as np
import pytest

from watcher.training.data import augmentation

CLASSES = ("Hand", "CXR")
LABELS = np.array([0, 1] * 20)
IMAGES = np.random.default_rng(3).integers(0, 256, (40, 16, 16), dtype=np.uint8)
HANDS = LABELS == 0


def changed(plan: dict[str, dict[str, float]], seed: int = 0) -> augmentation.Grey:
    return augmentation.apply(IMAGES, LABELS, CLASSES, plan, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", sorted(augmentation.KINDS))
def test_only_the_class_that_is_named_changes(kind: str) -> None:
    """Images of other classes stay pixel for pixel, and so do the arrays given."""
    before = IMAGES.copy()
    done = changed({kind: {"Hand": 1.0}})
    assert (done[HANDS] != IMAGES[HANDS]).any(axis=(1, 2)).sum() > 5
    np.testing.assert_array_equal(done[~HANDS], IMAGES[~HANDS])
    np.testing.assert_array_equal(IMAGES, before)


@pytest.mark.parametrize("kind", sorted(augmentation.KINDS))
def test_seed_is_what_decides(kind: str) -> None:
    """A generator state always gives the same images, another one others."""
    plan = {kind: {"all": 0.5 if kind in ("flip", "inversion") else 2.0}}
    np.testing.assert_array_equal(changed(plan), changed(plan))
    assert (changed(plan) != changed(plan, seed=1)).any()


def test_a_class_can_be_left_out_of_all() -> None:
    """A class's own strength counts more than that of all."""
    done = changed({"inversion": {"all": 1.0, "CXR": 0.0}})
    np.testing.assert_array_equal(done[HANDS], 255 - IMAGES[HANDS])
    np.testing.assert_array_equal(done[~HANDS], IMAGES[~HANDS])


def test_shift_is_by_whole_pixels() -> None:
    """Every shifted image holds the old one's pixels at an offset of at most as many pixels, its edge repeated."""
    offsets = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    seen = set()
    for image, old in zip(changed({"shift": {"all": 2.0}}), IMAGES, strict=True):
        padded = np.pad(old, 2, mode="edge")
        fits = [(d, r) for d, r in offsets if (padded[2 - d : 18 - d, 2 - r : 18 - r] == image).all()]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 8


def test_rotation_by_nothing_and_by_a_right_angle() -> None:
    """No angle gives the image itself, a quarter turn the turned image: the centre stays where it is."""
    tiny = changed({"rotation": {"all": 1e-9}})
    np.testing.assert_array_equal(tiny, IMAGES)

    class Quarter:
        def uniform(self, low: float, high: float, size: int) -> np.ndarray:
            return np.ones(size)

    turned = augmentation.KINDS["rotation"](IMAGES, np.full(40, 90.0), Quarter())  # type: ignore[arg-type]
    assert (turned == np.rot90(IMAGES, axes=(1, 2))).all() or (turned == np.rot90(IMAGES, -1, axes=(1, 2))).all()


def test_flip_mirrors_left_and_right() -> None:
    """A flipped image is the mirrored one, top and bottom stay."""
    np.testing.assert_array_equal(changed({"flip": {"all": 1.0}}), IMAGES[:, :, ::-1])


def test_contrast_keeps_order_black_and_white() -> None:
    """Gamma moves grey levels, never past each other, and leaves the darkest and the brightest."""
    ramp = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (40, 1, 1))
    done = augmentation.apply(ramp, LABELS, CLASSES, {"contrast": {"all": 0.5}}, np.random.default_rng(0)).reshape(
        40, -1
    )
    assert (np.diff(done.astype(int), axis=1) >= 0).all()
    assert (done[:, 0] == 0).all() and (done[:, -1] == 255).all()
    assert (done != ramp.reshape(40, -1)).any(axis=1).all()


def test_a_kind_that_there_is_not() -> None:
    """A word that names no kind is an error, not a training without it."""
    with pytest.raises(KeyError):
        changed({"blur": {"all": 1.0}})
