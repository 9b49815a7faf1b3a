"""Decide: pure functions of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from watcher.core.records import Outcome, Scored
from watcher.model.decision import REVIEW_REASONS, Policy, decide, probabilities

CLASSES = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
LOGITS = hnp.arrays(np.float32, (4, 6), elements=st.floats(-1000, 1000, width=32))


@given(LOGITS, st.floats(0, 1), st.floats(0.05, 20), st.lists(st.booleans(), min_size=4, max_size=4))
def test_never_files_below_the_threshold(
    logits: np.ndarray, threshold: float, temperature: float, blank: list[bool]
) -> None:
    """Only an image that is not blank and whose most probable class reaches the threshold is filed."""
    policy = Policy(CLASSES, threshold, temperature, review_blank=True)
    rows = probabilities(logits, temperature)
    for decision, row, empty in zip(decide(Scored(logits), blank, policy), rows, blank, strict=True):
        assert (decision.outcome is Outcome.SORTED) == (not empty and row.max() >= threshold)
        assert decision.outcome is not Outcome.QUARANTINE
        assert decision.label == CLASSES[int(row.argmax())]
        assert decision.confidence == row.max()
        assert (decision.reason in REVIEW_REASONS) == (decision.outcome is Outcome.REVIEW)


@given(LOGITS, st.floats(0.05, 20))
def test_probabilities_are_probabilities(logits: np.ndarray, temperature: float) -> None:
    """Softmax in double precision: each row adds up to 1, whatever the size of the logits."""
    rows = probabilities(logits, temperature)
    assert np.all(rows >= 0)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-12)


def test_temperature_divides_the_logits() -> None:
    """A temperature of 2 gives the softmax of half the logits; 1 leaves them as they are."""
    logits = np.array([[0.0, 2.0, 4.0]], np.float32)
    np.testing.assert_allclose(probabilities(logits, 2.0), probabilities(logits / 2))
    expected = np.exp([0.0, 2.0, 4.0])
    np.testing.assert_allclose(probabilities(logits)[0], expected / expected.sum())


def test_threshold_itself_is_filed() -> None:
    """A confidence of exactly min_confidence is enough."""
    logits = np.zeros((1, 2), np.float32)
    assert decide(Scored(logits), [False], Policy(("a", "b"), 0.5))[0].outcome is Outcome.SORTED


def test_blank_image_goes_to_review_if_asked() -> None:
    """With review_blank an image of one grey level is never filed, and the reason says so; without, it is."""
    logits = np.array([[50.0, 0, 0, 0, 0, 0]], np.float32)
    decision = decide(Scored(logits), [True], Policy(CLASSES, 0.0, review_blank=True))[0]
    assert (decision.outcome, decision.reason) == (Outcome.REVIEW, "blank_image")
    assert decide(Scored(logits), [True], Policy(CLASSES, 0.0))[0].outcome is Outcome.SORTED


def test_top_is_ordered_and_as_long_as_asked() -> None:
    """The top classes come most probable first, with their probabilities."""
    logits = np.array([[0, 3, 1, 2, -1, -2]], np.float32)
    decision = decide(Scored(logits), [False], Policy(CLASSES, 0.0, top=3))[0]
    assert [name for name, _ in decision.top] == ["BreastMRI", "ChestCT", "CXR"]
    shares = [share for _, share in decision.top]
    assert shares == sorted(shares, reverse=True)
    assert decision.top[0] == (decision.label, decision.confidence)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_go_to_review(bad: float) -> None:
    """Logits of a damaged device are never filed and harm neither their neighbours nor, by a warning, the daemon."""
    logits = np.array([[bad] * 6, [9, 0, 0, 0, 0, 0]], np.float32)
    broken, fine = decide(Scored(logits), [False, False], Policy(CLASSES, 0.0))
    assert (broken.outcome, broken.label, broken.confidence) == (Outcome.REVIEW, None, 0.0)
    assert fine.outcome is Outcome.SORTED


def test_threshold_that_is_no_number_files_nothing() -> None:
    """A threshold lost to a damaged weights file sends images to review instead of filing all of them."""
    logits = np.array([[9, 0, 0, 0, 0, 0]], np.float32)
    assert decide(Scored(logits), [False], Policy(CLASSES, float("nan")))[0].outcome is Outcome.REVIEW


class TestWhatIsNoneOfTheClasses:
    """Networks with one logit more, and weights with a distance."""

    def test_goes_to_review_when_the_network_says_so(self) -> None:
        """If "none of them" is the most probable answer, no threshold is so low that the image is filed."""
        logits = np.array([[1, 0, 0, 0, 0, 0, 3]], np.float32)
        decision = decide(Scored(logits), [False], Policy(CLASSES, 0.0))[0]
        assert (decision.outcome, decision.reason) == (Outcome.REVIEW, "out_of_distribution")
        assert decision.label == "AbdomenCT", "the most probable class is told all the same"
        assert len(decision.top) == 3
        assert "none of the classes" in str(decision.detail)

    def test_takes_its_share_of_the_confidence(self) -> None:
        """Confidence is the class's probability among all answers, "none of them" included."""
        logits = np.array([[2, 0, 0, 0, 0, 0, 2]], np.float32)
        decision = decide(Scored(logits), [False], Policy(CLASSES, 0.0))[0]
        assert decision.confidence == pytest.approx(np.exp(2) / (2 * np.exp(2) + 5))

    def test_far_from_all_that_was_trained_on_goes_to_review(self) -> None:
        """An image beyond max_distance is not filed, however sure the network is; one at it is."""
        logits = np.array([[50, 0, 0, 0, 0, 0]] * 2, np.float32)
        scored = Scored(logits, np.array([9.5, 9.0], np.float32))
        far, near = decide(scored, [False, False], Policy(CLASSES, 0.5, max_distance=9.0))
        assert (far.outcome, far.reason, far.label) == (Outcome.REVIEW, "out_of_distribution", "AbdomenCT")
        assert near.outcome is Outcome.SORTED

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_distance_that_is_no_number_files_nothing(self, bad: float) -> None:
        """A distance that can not be computed is not taken for a small one."""
        scored = Scored(np.array([[50, 0, 0, 0, 0, 0]], np.float32), np.array([bad], np.float32))
        assert decide(scored, [False], Policy(CLASSES, 0.0))[0].outcome is Outcome.REVIEW

    def test_distance_threshold_that_is_no_number_files_nothing(self) -> None:
        """A distance threshold lost to a damaged weights file sends images to review instead of filing all."""
        scored = Scored(np.array([[50, 0, 0, 0, 0, 0]], np.float32), np.zeros(1, np.float32))
        policy = Policy(CLASSES, 0.0, max_distance=float("nan"))
        assert decide(scored, [False], policy)[0].outcome is Outcome.REVIEW
