"""Changes to training images keep ranges and shapes, and can be reproduced."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from watcher.images import decode
from watcher.training.data import hospital_renderings, synthetic_outliers
from watcher.training.data.hospital_renderings import VARIATIONS, RandomDraws, Variation

N = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small are faster so, on a busy machine most of all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draws(seed: int = 0, n: int = N) -> RandomDraws:
    return RandomDraws(torch.Generator().manual_seed(seed), n)


@pytest.fixture
def images() -> torch.Tensor:
    """An L in a corner: no turn and no mirroring leaves it as it is."""
    drawn = torch.zeros(N, 64, 64)
    drawn[:, 10:50, 12:20] = 0.6
    drawn[:, 42:50, 12:40] = 1.0
    grain = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(9))
    return (drawn + 0.1 * grain).clamp(0, 1)


def test_standardised_is_what_the_daemon_does() -> None:
    """Training's own standardisation of floats gives what decode.standardise makes of the same bytes."""
    grey = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    grey[4] = 7
    found = hospital_renderings.standardised(torch.from_numpy(grey).float() / 255)
    np.testing.assert_allclose(found.numpy(), decode.standardise(grey), atol=1e-6)


def test_window_is_linear_and_clips() -> None:
    """Half at the level, 0 and 1 at the window's ends and beyond."""
    hu = torch.tensor([[[-1000.0, -160, 40, 240, 3000]]])
    assert hospital_renderings.windowed(hu, 40, 400).flatten().tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda x, d: hospital_renderings.repositioned(x, [Variation(any_angle=1, quarter_turn=1)] * N, d),
        lambda x, d: hospital_renderings.with_other_tones(x, [Variation(inverted=0.5, gamma=1)] * N, d),
        lambda x, d: hospital_renderings.degraded(x, d),
        lambda x, d: synthetic_outliers.near_outliers(x, torch.arange(N), torch.ones(N, dtype=torch.bool), d),
        lambda x, d: synthetic_outliers.far_outliers(d),
        lambda x, d: hospital_renderings.from_hounsfield(x * 3000, d),
        lambda x, d: hospital_renderings.from_raw(x.cumsum(1) ** 4, d),
    ],
    ids=["placed", "shaded", "worn", "near", "far", "hounsfield", "raw"],
)
def test_gives_pictures_and_the_same_for_the_same_dice(images: torch.Tensor, change) -> None:  # type: ignore[no-untyped-def]
    """Every change gives finite grey levels in [0, 1] of 64 x 64; equal draws give equal ones, others do not."""
    made = change(images, draws())
    assert made.shape == (N, 64, 64)
    assert torch.isfinite(made).all()
    assert made.min() >= -1e-6
    assert made.max() <= 1 + 1e-6
    assert torch.equal(made, change(images, draws()))
    assert not torch.equal(made, change(images, draws(seed=1)))


def test_what_a_class_does_not_bear_is_not_done(images: torch.Tensor) -> None:
    """A class that is never inverted, turned or mirrored keeps dark dark and up up."""
    upright = Variation(tilt=0, quarter_turn=0, mirrored=0, inverted=0)
    placed = hospital_renderings.repositioned(images, [upright] * N, draws())
    tall = (placed > 0.3).any(dim=2).sum(dim=1)
    wide = (placed[:, :16] > 0.3).any(dim=1).sum(dim=1)
    assert (tall > wide).all(), "the upright of the L stands"
    shaded = hospital_renderings.with_other_tones(images, [upright] * N, draws())
    assert (shaded[:, 60, 60] < shaded[:, 46, 15]).all()


def test_quarter_turn_turns(images: torch.Tensor) -> None:
    """A class mounted on its side at every turn does not stay upright."""
    turned = Variation(tilt=0, quarter_turn=1, mirrored=0)
    placed = hospital_renderings.repositioned(images, [turned] * N, draws())
    straight = hospital_renderings.repositioned(images, [Variation(tilt=0, quarter_turn=0, mirrored=0)] * N, draws())
    assert (placed - straight).abs().amax((1, 2)).min() > 0.3


def test_framed_film_is_whole_and_smaller() -> None:
    """On a larger canvas of one level a film is there from corner to corner, upright, two fifths as wide or more."""
    films = 0.5 + torch.zeros(N, 64, 64)
    films[:, :12, :12] = 0.9
    found = hospital_renderings._framed(films, draws(), framed=1.0)
    for canvas in found:
        film, corner = (canvas - 0.5).abs() < 0.01, (canvas - 0.9).abs() < 0.01
        rows, columns = ((film | corner).any(axis).nonzero()[:, 0] for axis in (1, 0))
        assert 0.35 * 64 <= len(rows) <= 0.9 * 64
        assert abs(len(rows) - len(columns)) <= 2
        assert corner[rows[0] + 1, columns[0] + 1]
        assert film[rows[-1] - 1, columns[-1] - 1]
        around = torch.ones_like(film)
        around[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2] = False
        assert len(canvas[around].unique()) == 1


def test_nothing_framed_is_nothing_changed(images: torch.Tensor) -> None:
    """If no film is framed all come back level for level; by default most do."""
    assert hospital_renderings._framed(images, draws(), framed=0.0).equal(images)
    same = (hospital_renderings._framed(images, draws(), hospital_renderings.FRAMED_SHARE) == images).all(2).all(1)
    assert N // 2 < int(same.sum()) < N


def test_every_class_of_mednist_has_its_own() -> None:
    """None of the six is changed by what was meant for another; what is no class has its own as well."""
    assert set(VARIATIONS) == {"ChestCT", "AbdomenCT", "HeadCT", "BreastMRI", "CXR", "Hand", "outlier"}


def test_near_outliers_are_not_what_they_are_made_of(images: torch.Tensor) -> None:
    """None is left as it was: an image of a class must not be taught as none of them."""
    for seed in range(20):
        made = synthetic_outliers.near_outliers(
            images, torch.arange(N) % 3, torch.tensor([True, False, False]), draws(seed)
        )
        assert (made - images).abs().mean((1, 2)).min() > 0.003
