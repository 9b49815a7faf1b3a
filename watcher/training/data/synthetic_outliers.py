"""Make images of none of the classes, so that the network learns to leave outliers alone.

Near outliers are made from images of the classes: shuffled, cut together, or seen from too close. Far outliers are
drawn: noise, bones as tubes, pages of text. All are batches of floats in [0, 1], (n, 64, 64).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from watcher.training.data.hospital_renderings import SIDE, RandomDraws, resampled, scaled


def near_outliers(images: Tensor, labels: Tensor, tomograms: Tensor, draws: RandomDraws) -> Tensor:
    """Make a near outlier from each image. ``tomograms`` (classes,) marks the CTs, whose bones are bright."""
    partners = torch.roll(torch.arange(draws.n), 1)
    shuffled = _shuffled(images, draws)
    unlike = (labels != labels[partners]).view(-1, 1, 1)  # two halves of one class may look like an image of it
    cut = torch.where(unlike, _cut_together(images, images[partners], draws), shuffled)
    made = _one_of(torch.stack([shuffled, cut, _too_close(images, draws)]), draws)
    return torch.where(tomograms[labels].view(-1, 1, 1) & draws.chance(0.5), _like_mri(images, draws), made)


def far_outliers(draws: RandomDraws) -> Tensor:
    """Draw a far outlier for each image of the batch."""
    return _one_of(torch.stack([_noise(draws), _bones(draws), _text(draws), _shapes(draws)]), draws)


def _one_of(kinds: Tensor, draws: RandomDraws) -> Tensor:
    return kinds[draws.integers(len(kinds))[:, 0, 0], torch.arange(draws.n)]


def _shuffled(images: Tensor, draws: RandomDraws) -> Tensor:
    """Cut images into 4 or 16 tiles, and put the tiles in another order."""
    n, result = len(images), images
    for tiles in (2, 4):
        side = SIDE // tiles
        cut = images.reshape(n, tiles, side, tiles, side).permute(0, 1, 3, 2, 4).reshape(n, tiles**2, side, side)
        order = torch.argsort(torch.rand(n, tiles**2, generator=draws.generator), 1)
        in_place = (order == torch.arange(tiles**2)).all(1, keepdim=True)
        order = torch.where(in_place, order.flip(1), order)  # so that no image stays as it was
        mixed = cut[torch.arange(n)[:, None], order]
        back = mixed.reshape(n, tiles, tiles, side, side).permute(0, 1, 3, 2, 4).reshape(n, SIDE, SIDE)
        result = back if tiles == 2 else torch.where(draws.chance(0.5), back, result)
    return result


def _cut_together(images: Tensor, others: Tensor, draws: RandomDraws) -> Tensor:
    """Join a half of one image and a half of another, or blend both."""
    where = torch.arange(SIDE)
    edge = draws.uniform(0.35, 0.65) * SIDE
    below = where[None, :, None] < edge
    beside = where[None, None, :] < edge
    half = torch.where(torch.where(draws.chance(0.5), below, beside), images, others)
    through = draws.uniform(0.4, 0.6)
    return torch.where(draws.chance(0.6), half, through * images + (1 - through) * others)


def _too_close(images: Tensor, draws: RandomDraws) -> Tensor:
    """Enlarge a part of each image, from 0.18 to 0.34 of its side."""
    share = draws.uniform(0.18, 0.34)
    angle = draws.uniform(-math.pi, math.pi)
    cos, sin = share * torch.cos(angle), share * torch.sin(angle)
    across, along = draws.uniform(-0.6, 0.6), draws.uniform(-0.6, 0.6)
    theta = torch.cat([torch.cat([cos, -sin, across], 2), torch.cat([sin, cos, along], 2)], 1)
    return scaled(resampled(images, theta, draws))


def _like_mri(images: Tensor, draws: RandomDraws) -> Tensor:
    """Show a CT in grey levels that no CT has: bone dark, and the tissues between in any order."""
    between = [draws.uniform(0.1, 1), draws.uniform(0.2, 1), draws.uniform(0.2, 1), draws.uniform(0.0, 0.5)]
    knots = torch.cat([torch.zeros(draws.n, 1, 1), *between, draws.uniform(0, 0.25)], 2)[:, 0]  # (n, 6)
    place = scaled(images).flatten(1) * 5
    low = place.long().clamp_max(4)
    share = place - low
    mapped = knots.gather(1, low) * (1 - share) + knots.gather(1, low + 1) * share
    return scaled(mapped.view_as(images))


def _noise(draws: RandomDraws) -> Tensor:
    """Draw noise, from white to very smooth, some of it with few bright spots."""
    white = torch.randn(draws.n, SIDE, SIDE, generator=draws.generator)
    rows = torch.fft.fftfreq(SIDE)[None, :, None]
    columns = torch.fft.rfftfreq(SIDE)[None, None, :]
    fall = (rows**2 + columns**2 + 1 / SIDE**2).sqrt() ** -draws.uniform(0, 2.5)
    grains = scaled(torch.fft.irfft2(torch.fft.rfft2(white) * fall, s=(SIDE, SIDE)))
    return torch.where(draws.chance(0.3), grains ** draws.uniform(1, 6), grains)


def _bones(draws: RandomDraws) -> Tensor:
    """Draw one to three bright tubes with a joint in soft tissue, which a knee, foot or spine shares with a hand."""
    rows = torch.linspace(-1, 1, SIDE)[None, :, None]
    columns = torch.linspace(-1, 1, SIDE)[None, None, :]
    angle = torch.where(draws.chance(0.6), 0.25 * draws.normal(), draws.uniform(-math.pi, math.pi))
    along = rows * torch.cos(angle) + columns * torch.sin(angle)
    across = columns * torch.cos(angle) - rows * torch.sin(angle) + 0.2 * draws.normal()
    across = across + draws.uniform(-0.5, 0.5) * along**2
    flesh = draws.uniform(0.3, 0.9) * (1 + 0.3 * torch.sin(along * draws.uniform(1, 4) + draws.uniform(0, 6)))
    image = 0.35 * torch.sigmoid((flesh - across.abs()) * draws.uniform(15, 60))
    count = draws.integers(3)
    for number in range(3):
        middle = (number - count / 2) * draws.uniform(0.25, 0.5)
        thick = draws.uniform(0.06, 0.24) * (1 + draws.uniform(0, 0.8) * torch.exp(-((along / 0.2) ** 2)))
        inside = torch.sigmoid((thick - (across - middle).abs()) * 40)
        shell = torch.exp(-((((across - middle).abs() - thick) / 0.04) ** 2))
        gap = 1 - torch.exp(-(((along - draws.uniform(-0.3, 0.3)) / 0.05) ** 2)) * draws.chance(0.7)
        segments = 1 - 0.6 * draws.chance(0.3) * (torch.sin(along * draws.uniform(8, 25)) > 0.6)
        image = image + (number <= count) * (0.35 * inside + 0.25 * shell) * gap * segments
    return scaled(image)


def _text(draws: RandomDraws) -> Tensor:
    """Draw pages with lines of words, dark on light or light on dark."""
    fine = torch.rand(draws.n, SIDE, SIDE, generator=draws.generator) < 0.55
    pitch = draws.integers(6) + 3
    rows, columns = torch.arange(SIDE)[None, :, None], torch.arange(SIDE)[None, None, :]
    line = (rows % pitch) < (pitch + 1) // 2
    words = (
        functional.interpolate(torch.rand(draws.n, 1, SIDE, 12, generator=draws.generator), (SIDE, SIDE))[:, 0] < 0.75
    )
    margin = (draws.uniform(0, 14) < columns) & (columns < draws.uniform(44, 64)) & (rows > draws.uniform(0, 20))
    ink = (fine & line & words & margin).float() * draws.uniform(0.5, 1)
    return torch.where(draws.chance(0.7), 1 - ink, ink)


def _shapes(draws: RandomDraws) -> Tensor:
    """Draw discs and bars on a gradient of grey."""
    rows, columns = torch.linspace(-1, 1, SIDE)[None, :, None], torch.linspace(-1, 1, SIDE)[None, None, :]
    image = draws.uniform(-0.5, 0.5) * rows + draws.uniform(-0.5, 0.5) * columns
    for _ in range(4):
        down, right = rows - draws.uniform(-1, 1), columns - draws.uniform(-1, 1)
        round_ = (down / draws.uniform(0.1, 0.8)) ** 2 + (right / draws.uniform(0.1, 0.8)) ** 2 < 1
        straight = (down.abs() < draws.uniform(0.05, 0.6)) & (right.abs() < draws.uniform(0.05, 0.6))
        shape = torch.where(draws.chance(0.6), round_, straight)
        image = torch.where(shape & draws.chance(0.8), draws.uniform(), image)
    return scaled(image)
