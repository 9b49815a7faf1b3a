"""Change images as hospitals do before they arrive: windows, films hung askew, markers, inversion, artefacts.

All functions take a batch of float tensors (n, h, w) and draw from one ``torch.Generator``. :data:`VARIATIONS` says how
far a class is changed: a hand may lie at any angle, a body on a CT may be on its side or upside down, and a chest film
hangs upright.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from watcher.training.data.multi_source_pool import HU_OFFSET

SIDE = 64


@dataclass(frozen=True)
class Variation:
    """The range in which images of a class are changed. Angles are in degrees, the others are shares or factors."""

    tilt: float = 10.0
    """Standard deviation of the angle."""
    any_angle: float = 0.0
    """Share of images at an angle drawn from all angles."""
    quarter_turn: float = 0.1
    """Share of images turned by 90, 180 or 270 degrees."""
    mirrored: float = 0.5
    upside_down: float = 0.0
    inverted: float = 0.03
    half_shown: float = 0.0
    """Share of images that show only one side of the body."""
    gamma: float = 0.4
    """Natural logarithm of the largest gamma."""


VARIATIONS = {
    "ChestCT": Variation(quarter_turn=0.12, upside_down=0.2, gamma=0.3),
    "AbdomenCT": Variation(quarter_turn=0.12, upside_down=0.2, gamma=0.3),
    "HeadCT": Variation(quarter_turn=0.12, upside_down=0.2),
    "BreastMRI": Variation(quarter_turn=0.4, upside_down=0.2, half_shown=0.5),
    "CXR": Variation(tilt=6.0, quarter_turn=0.04, inverted=0.12),
    "Hand": Variation(tilt=20.0, any_angle=0.5, inverted=0.12),
    "outlier": Variation(upside_down=0.15, inverted=0.08),
}

# Level and width in HU of the windows that viewers offer. The last one is MedNIST's: below water all is black.
WINDOWS = (
    (-600.0, 1500.0),
    (-500.0, 1400.0),
    (40.0, 400.0),
    (50.0, 350.0),
    (60.0, 160.0),
    (40.0, 80.0),
    (300.0, 1500.0),
    (500.0, 2000.0),
    (0.0, 2000.0),
)


class RandomDraws:
    """Random numbers for a batch of ``n`` images, in the shape (n, 1, 1) to go with (n, h, w)."""

    def __init__(self, generator: torch.Generator, n: int) -> None:
        self.generator, self.n = generator, n

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw numbers between ``low`` and ``high``."""
        return low + (high - low) * torch.rand(self.n, 1, 1, generator=self.generator)

    def normal(self) -> Tensor:
        """Draw from the standard normal distribution."""
        return torch.randn(self.n, 1, 1, generator=self.generator)

    def chance(self, share: float | Tensor) -> Tensor:
        """Draw booleans, True with this probability."""
        return torch.rand(self.n, 1, 1, generator=self.generator) < share

    def integers(self, below: int) -> Tensor:
        """Draw whole numbers in [0, below)."""
        return torch.randint(0, below, (self.n, 1, 1), generator=self.generator)


def scaled(images: Tensor) -> Tensor:
    """Scale each image to [0, 1] by its own minimum and maximum. An image of a single level becomes 0."""
    low = images.amin((1, 2), keepdim=True)
    span = images.amax((1, 2), keepdim=True) - low
    return (images - low) / span.clamp_min(1e-6)


def standardised(images: Tensor) -> Tensor:
    """Standardise as ``decode.standardise`` does, from floats in [0, 1] rounded to 8 bits, to (n, 1, h, w)."""
    bytes_ = (images * 255).round()
    low = bytes_.amin((1, 2), keepdim=True)
    span = (bytes_.amax((1, 2), keepdim=True) - low).clamp_min(1)
    flat = (bytes_ - low) / span
    return (flat - flat.mean((1, 2), keepdim=True))[:, None]


def windowed(hounsfield: Tensor, level: Tensor | float, width: Tensor | float) -> Tensor:
    """Scale Hounsfield units to [0, 1] across a window, and clip them beyond it."""
    return ((hounsfield - level) / width + 0.5).clamp(0, 1)


def from_hounsfield(levels: Tensor, draws: RandomDraws) -> Tensor:
    """Show CT levels (HU + 1024) in a window drawn at random."""
    hu = levels - HU_OFFSET
    presets = torch.tensor(WINDOWS)[draws.integers(len(WINDOWS))[:, 0, 0]]  # (n, 2)
    level = presets[:, 0].view(-1, 1, 1) + 40 * draws.normal()
    width = presets[:, 1].view(-1, 1, 1) * torch.exp(0.25 * draws.normal())
    image = windowed(hu, level, width)
    free = windowed(hu, draws.uniform(-500, 300), torch.exp(draws.uniform(math.log(150), math.log(3000))))
    image = torch.where(draws.chance(0.25), free, image)
    top = hu.amax((1, 2), keepdim=True)
    floor = draws.uniform(-60, 60)
    mednist = (hu - floor).clamp_min(0) / (top * draws.uniform(0.3, 1.0) - floor).clamp_min(100)
    image = torch.where(draws.chance(0.2), mednist.clamp(0, 1), image)
    return torch.where(draws.chance(0.1), scaled(hu), image)  # all levels, as where a file names no window


def from_raw(levels: Tensor, draws: RandomDraws) -> Tensor:
    """Show levels without a unit, cut off at the top as viewers do."""
    low, top = levels.amin((1, 2), keepdim=True), levels.amax((1, 2), keepdim=True)
    some = levels.flatten(1)[:, ::37].sort(1).values  # (n, 443), enough to estimate a quantile
    high = some[:, int(0.985 * some.shape[1])].view(-1, 1, 1)
    high = high + (top - high) * draws.uniform(-0.2, 1.0)
    image = ((levels - low) / (high - low).clamp_min(1)).clamp(0, 1)
    return torch.where(draws.chance(0.3), scaled(levels), image)


def repositioned(images: Tensor, variations: list[Variation], draws: RandomDraws) -> Tensor:
    """Turn, mirror, scale and shift images, and resample them to 64 x 64."""
    angle = _for_each(variations, lambda b: b.tilt) * draws.normal() * (math.pi / 180)
    angle = torch.where(
        draws.chance(_for_each(variations, lambda b: b.any_angle)), draws.uniform(-math.pi, math.pi), angle
    )
    quarter = draws.chance(_for_each(variations, lambda b: b.quarter_turn))
    angle = angle + torch.where(quarter, (draws.integers(3) + 1) * (math.pi / 2), torch.zeros(()))
    zoom = torch.exp(draws.uniform(-0.3, 0.3))  # above 1: less of the image is seen
    half = draws.chance(_for_each(variations, lambda b: b.half_shown))
    zoom = torch.where(half, 1.2 + 0.5 * draws.uniform(), zoom)
    stretch = torch.where(draws.chance(0.4), torch.exp(draws.uniform(-0.22, 0.22)), torch.ones(()))
    left = torch.where(draws.chance(_for_each(variations, lambda b: b.mirrored)), -1.0, 1.0)
    down = torch.where(draws.chance(_for_each(variations, lambda b: b.upside_down)), -1.0, 1.0)
    across, along = draws.uniform(-0.15, 0.15), draws.uniform(-0.15, 0.15)
    across = torch.where(half, 0.45 * torch.where(draws.chance(0.5), -1.0, 1.0) * draws.uniform(0.6, 1.0), across)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    theta = torch.cat(
        [
            torch.cat([left * stretch * cos, -sin * down, across], 2),
            torch.cat([left * sin, down * cos / stretch, along], 2),
        ],
        1,
    )  # (n, 2, 3)
    return resampled(images, theta, draws)


def resampled(images: Tensor, theta: Tensor, draws: RandomDraws) -> Tensor:
    """Resample images by affine maps (n, 2, 3) to (n, 64, 64). Beyond the edge its pixels are repeated, or black."""
    grid = functional.affine_grid(theta, [len(images), 1, SIDE, SIDE], align_corners=False)
    edge = functional.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    black = functional.grid_sample(images[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]
    return torch.where(draws.chance(0.25), black, edge)


def with_other_tones(images: Tensor, variations: list[Variation], draws: RandomDraws) -> Tensor:
    """Change the grey levels in [0, 1]: gamma, curves, clipping, inversion, uneven light."""
    strength = _for_each(variations, lambda b: b.gamma)
    gamma = torch.exp(strength * draws.uniform(-1, 1))
    x = torch.where(draws.chance(0.5), images.clamp_min(1e-4) ** gamma, images)
    x = torch.where(draws.chance(0.15), torch.maximum(x, draws.uniform(0, 0.3)), x)
    x = torch.where(draws.chance(0.25), torch.minimum(x, draws.uniform(0.6, 1)), x)
    x = scaled(x)
    bend = draws.uniform(-0.35, 0.35)
    x = torch.where(draws.chance(0.25), x + bend * torch.sin(math.pi * x) * x * (1 - x) * 2, x)
    rows = torch.linspace(-1, 1, x.shape[1])[None, :, None]
    columns = torch.linspace(-1, 1, x.shape[2])[None, None, :]
    light = 1 + draws.uniform(-0.3, 0.3) * rows + draws.uniform(-0.3, 0.3) * columns
    x = torch.where(draws.chance(0.15), x * light, x).clamp(0, 1)
    return torch.where(draws.chance(_for_each(variations, lambda b: b.inverted)), 1 - x, x)


FRAMED_SHARE = 0.08
"""Share of images that become small on a larger canvas."""


def degraded(images: Tensor, draws: RandomDraws, framed: float = FRAMED_SHARE) -> Tensor:
    """Degrade images: noise, blur, sharpening, lost resolution, JPEG, collimation, markers, and a larger canvas.

    ``framed`` is the share of images on a larger canvas.
    """
    soft = _blurred(images)
    sharpness = torch.where(draws.chance(0.3), -draws.uniform(0.3, 1.0), torch.zeros(()))
    sharpness = torch.where(draws.chance(0.12), draws.uniform(0.3, 1.2), sharpness)
    x = images + sharpness * (images - soft)
    coarse = functional.interpolate(functional.avg_pool2d(x[:, None], 2), scale_factor=2, mode="nearest")[:, 0]
    x = torch.where(draws.chance(0.08), coarse, x)
    grain = torch.rand(x.shape, generator=draws.generator) - 0.5
    x = x + grain * torch.where(draws.chance(0.25), draws.uniform(0, 0.25), torch.zeros(()))
    x = _collimated(x, draws)
    x = _with_marker(x, grain, draws)
    if framed:
        x = _framed(x, draws, framed)
    return _jpeg_compressed(x.clamp(0, 1), draws)


def _blurred(x: Tensor) -> Tensor:
    """Average each pixel with its neighbours by 1, 2, 1 along both sides."""
    rows = functional.pad(x[:, None], (0, 0, 1, 1), mode="replicate")[:, 0]
    x = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    columns = functional.pad(x[:, None], (1, 1, 0, 0), mode="replicate")[:, 0]
    return (columns[:, :, :-2] + 2 * columns[:, :, 1:-1] + columns[:, :, 2:]) / 4


def _box(draws: RandomDraws, low: float, high: float) -> Tensor:
    """Draw masks (n, 64, 64) of boxes at random places; their sides are shares in [low, high] of the image's."""
    rows = torch.arange(SIDE)[None, :, None]
    columns = torch.arange(SIDE)[None, None, :]
    height, width = draws.uniform(low, high) * SIDE, draws.uniform(low, high) * SIDE
    top, left = draws.uniform() * (SIDE - height), draws.uniform() * (SIDE - width)
    return ((rows >= top) & (rows < top + height)) & ((columns >= left) & (columns < left + width))


def _collimated(x: Tensor, draws: RandomDraws) -> Tensor:
    inside = _box(draws, 0.75, 0.97)
    level = torch.where(draws.chance(0.75), torch.zeros(()), draws.uniform())
    return torch.where(draws.chance(0.12) & ~inside, level, x)


def _with_marker(x: Tensor, grain: Tensor, draws: RandomDraws) -> Tensor:
    inside = _box(draws, 0.04, 0.2)
    strokes = grain + 0.5 < draws.uniform(0.3, 1.0)
    level = torch.where(draws.chance(0.8), draws.uniform(0.8, 1.0), draws.uniform(0.0, 0.2))
    return torch.where(draws.chance(0.2) & inside & strokes, level, x)


def _framed(x: Tensor, draws: RandomDraws, framed: float) -> Tensor:
    """Put some images small on a larger canvas, as films that were scanned or exported with what lay around them."""
    share = draws.uniform(0.4, 0.85)
    across, along = ((1 / share - 1) * draws.uniform(-1, 1) for _ in range(2))
    canvas = torch.where(draws.chance(0.5), torch.zeros(()), draws.uniform() ** 2)
    chosen = draws.chance(framed)[:, 0, 0]
    if not chosen.any():
        return x
    still = torch.zeros_like(share)
    theta = torch.cat([torch.cat([1 / share, still, across], 2), torch.cat([still, 1 / share, along], 2)], 1)[chosen]
    grid = functional.affine_grid(theta, [len(theta), 1, SIDE, SIDE], align_corners=False)
    film = functional.grid_sample(_blurred(x[chosen])[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    result = x.clone()
    result[chosen] = torch.where((grid.abs() <= 1).all(3), film, canvas[chosen])
    return result


def _cosines() -> Tensor:
    n, k = torch.arange(8)[None, :], torch.arange(8)[:, None]
    basis = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


_DCT = _cosines()
# Table K.1 of ITU-T T.81 (JPEG), luminance.
_QUANTA = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def _jpeg_compressed(x: Tensor, draws: RandomDraws) -> Tensor:
    """Quantise some images as JPEG does, at a quality from fair to poor."""
    chosen = draws.chance(0.3)
    blocks = x.reshape(-1, 8, 8, 8, 8).transpose(2, 3) * 255 - 128  # (n, down, across, 8, 8)
    quanta = (_QUANTA * draws.uniform(0.1, 1.5))[:, None, None].clamp_min(1)
    spectrum = _DCT @ blocks @ _DCT.T
    back = _DCT.T @ ((spectrum / quanta).round() * quanta) @ _DCT
    image = ((back + 128) / 255).clamp(0, 1).transpose(2, 3).reshape(x.shape)
    return torch.where(chosen, image, x)


def _for_each(variations: list[Variation], of: Callable[[Variation], float]) -> Tensor:
    return torch.tensor([of(each) for each in variations]).view(-1, 1, 1)
