"""The out-of-distribution score: a distance from the nearest known image, as its definition says."""

from __future__ import annotations

import numpy as np
import pytest

from watcher.model import out_of_distribution


@pytest.fixture
def known() -> out_of_distribution.KnownImages:
    return out_of_distribution.fit(np.array([[2.0, 0, 0], [0, 0.5, 0]]))


def test_is_the_distance_from_the_nearest(known: out_of_distribution.KnownImages) -> None:
    """1 - cosine of the angle to the nearest known direction; lengths do not count."""
    features = np.array([[5, 0, 0], [1, 1, 0], [0, 0, 3], [-1, -1, 0]], np.float32)
    np.testing.assert_allclose(known.distance(features), [0, 1 - np.sqrt(0.5), 1, 1 + np.sqrt(0.5)], atol=1e-3)


def test_what_has_no_features_is_like_nothing(known: out_of_distribution.KnownImages) -> None:
    """Features that are all 0 give a finite distance, and a large one."""
    assert known.distance(np.zeros((1, 3), np.float32)).tolist() == [1.0]


def test_features_that_are_no_numbers_give_no_distance(known: out_of_distribution.KnownImages) -> None:
    """A damaged device's NaN stays one, so that decide sends the image to review."""
    assert np.isnan(known.distance(np.full((1, 3), np.nan, np.float32))).all()


def test_travels_in_a_checkpoint(known: out_of_distribution.KnownImages) -> None:
    """The tensors that are stored beside the network's own give the same distances when they are read again."""
    back = out_of_distribution.from_tensors({"fc1.weight": np.zeros(3), **known.tensors()})
    assert back is not None
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(back.distance(features), known.distance(features))


def test_older_weights_have_none() -> None:
    """A checkpoint without known images has no distance, rather than a wrong one."""
    assert out_of_distribution.from_tensors({"fc1.weight": np.zeros(3)}) is None


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((0, 5)), np.full((2, 2), np.inf)])
def test_what_is_no_list_of_directions_is_refused(bad: np.ndarray) -> None:
    """Statistics that can not be right are an error, not a wrong score."""
    with pytest.raises(ValueError, match="directions"):
        out_of_distribution.from_tensors({"ood.known": bad})


def test_nothing_to_fit_to() -> None:
    """Without images there is nothing to be near to."""
    with pytest.raises(ValueError, match="at least one"):
        out_of_distribution.fit(np.zeros((0, 3)))
