"""Verdicts: what is called help or harm is more than a seed's whim."""

from __future__ import annotations

import numpy as np
import pytest

from watcher.training.study import significance


def test_chance_is_seldom_called_a_difference() -> None:
    """Of changes that do nothing, with three seeds and thirty variants, under one in a hundred is called a change."""
    rng = np.random.default_rng(0)
    wrong = total = 0
    for _ in range(60):
        groups = np.maximum(rng.normal(7, 0.8, (30, 3)), 0) ** 2
        counts = [[round(value) for value in group] for group in groups]
        spread = significance.noise(counts)
        told = [significance.compare(group, counts[0], spread).word for group in counts[1:]]
        wrong += sum(word != "no difference" for word in told)
        total += len(told)
    assert wrong / total < 0.01


def test_a_run_that_fails_is_no_verdict_on_the_change() -> None:
    """One run in twenty ends in a bad epoch: still under one idle change in a hundred is called help or harm."""
    rng = np.random.default_rng(2)
    wrong = unstable = total = 0
    for _ in range(200):
        middles = np.maximum(rng.normal(7, 0.8, (40, 3)), 0) ** 2
        failed = rng.random(middles.shape) < 0.05
        counts = [[round(value) for value in group] for group in np.where(failed, 6 * middles, middles)]
        control = [round(value) for value in np.maximum(rng.normal(7, 0.8, 9), 0) ** 2]
        spread = significance.noise([control, *counts])
        told = [significance.compare(group, control, spread).word for group in counts]
        unstable += told.count("unstable")
        wrong += sum(word in ("helped", "hurt") for word in told)
        total += len(told)
    assert wrong / total < 0.01
    assert unstable / total > 0.1, "else the test has no failed runs"


def test_noise_is_found_whatever_the_counts() -> None:
    """The spread of the square root is found again, and one variant that fails now and then does not spoil it."""
    rng = np.random.default_rng(1)
    groups = [[round(value**2) for value in rng.normal(middle, 0.5, 3)] for middle in np.linspace(5, 20, 400)]
    assert significance.noise(groups) == pytest.approx(0.5, rel=0.1)
    assert significance.noise([*groups, [40, 50, 9000]]) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("errors", "word"),
    [
        ([20, 22, 24], "helped"),
        ([48, 50, 55], "no difference"),
        ([90, 95, 99], "hurt"),
        ([41, 46, 282], "unstable"),
        ([41, 282, 46], "unstable"),
        ([86, 90, 700], "hurt"),
        ([41, 300, 282], "hurt"),
    ],
)
def test_words(errors: list[int], word: str) -> None:
    """Fewer errors than chance explains are help, more are harm; the interval says what could not be told apart."""
    told = significance.compare(errors, [49, 50, 51], 0.4)
    assert told.word == word
    assert told.difference == pytest.approx(sum(errors) / 3 - 50)
    assert told.low < 50 < told.high
    assert (told.low <= sum(errors) / 3 <= told.high) == (word == "no difference")


@pytest.mark.parametrize(("errors", "control"), [([5], [5, 6]), ([5, 6], [5])])
def test_one_seed_says_nothing(errors: list[int], control: list[int]) -> None:
    """With a single seed on either side no verdict is given."""
    assert significance.compare(errors, control, 0.4).word == "too few seeds"
    assert significance.noise([[5], [6]]) is None
