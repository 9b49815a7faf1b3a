"""Pictures of nothing that there is: what the network must learn to leave alone, made without a data set.

Near ones are made of images of the classes (shuffled, cut together, seen far
too close), far ones of numbers: noise, bones drawn as tubes, pages of text.
All are batches of floats in [0, 1], (n, 64, 64).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from watcher.training.data.hospital_renderings import SIDE, RandomDraws, resampled, scaled


def from_images(images: Tensor, labels: Tensor, tomograms: Tensor, dice: RandomDraws) -> Tensor:
    """One of the near kinds for each image of a class; ``tomograms`` (classes,) are those whose bones are bright."""
    partners = torch.roll(torch.arange(dice.n), 1)
    shuffled = _shuffled(images, dice)
    unlike = (labels != labels[partners]).view(-1, 1, 1)  # two halves of a class may well be one of it
    cut = torch.where(unlike, _cut_together(images, images[partners], dice), shuffled)
    made = _one_of(torch.stack([shuffled, cut, _too_close(images, dice)]), dice)
    return torch.where(tomograms[labels].view(-1, 1, 1) & dice.chance(0.5), _like_mri(images, dice), made)


def from_nothing(dice: RandomDraws) -> Tensor:
    """One of the far kinds for each image."""
    return _one_of(torch.stack([_noise(dice), _bones(dice), _text(dice), _shapes(dice)]), dice)


def _one_of(kinds: Tensor, dice: RandomDraws) -> Tensor:
    return kinds[dice.integers(len(kinds))[:, 0, 0], torch.arange(dice.n)]


def _shuffled(images: Tensor, dice: RandomDraws) -> Tensor:
    """Cut into 4 or 16 tiles, which lie in another order."""
    n, result = len(images), images
    for tiles in (2, 4):
        side = SIDE // tiles
        cut = images.reshape(n, tiles, side, tiles, side).permute(0, 1, 3, 2, 4).reshape(n, tiles**2, side, side)
        order = torch.argsort(torch.rand(n, tiles**2, generator=dice.generator), 1)
        in_place = (order == torch.arange(tiles**2)).all(1, keepdim=True)
        order = torch.where(in_place, order.flip(1), order)  # never as it was
        mixed = cut[torch.arange(n)[:, None], order]
        back = mixed.reshape(n, tiles, tiles, side, side).permute(0, 1, 3, 2, 4).reshape(n, SIDE, SIDE)
        result = back if tiles == 2 else torch.where(dice.chance(0.5), back, result)
    return result


def _cut_together(images: Tensor, others: Tensor, dice: RandomDraws) -> Tensor:
    """Half of one and half of another, or both through each other."""
    where = torch.arange(SIDE)
    edge = dice.uniform(0.35, 0.65) * SIDE
    below = where[None, :, None] < edge
    beside = where[None, None, :] < edge
    half = torch.where(torch.where(dice.chance(0.5), below, beside), images, others)
    through = dice.uniform(0.4, 0.6)
    return torch.where(dice.chance(0.6), half, through * images + (1 - through) * others)


def _too_close(images: Tensor, dice: RandomDraws) -> Tensor:
    """A quarter to a third of its side, from anywhere."""
    share = dice.uniform(0.18, 0.34)
    angle = dice.uniform(-math.pi, math.pi)
    cos, sin = share * torch.cos(angle), share * torch.sin(angle)
    across, along = dice.uniform(-0.6, 0.6), dice.uniform(-0.6, 0.6)
    theta = torch.cat([torch.cat([cos, -sin, across], 2), torch.cat([sin, cos, along], 2)], 1)
    return scaled(resampled(images, theta, dice))


def _like_mri(images: Tensor, dice: RandomDraws) -> Tensor:
    """The anatomy of a CT in grey levels that none has: bone dark, what lies between in any order."""
    between = [dice.uniform(0.1, 1), dice.uniform(0.2, 1), dice.uniform(0.2, 1), dice.uniform(0.0, 0.5)]
    knots = torch.cat([torch.zeros(dice.n, 1, 1), *between, dice.uniform(0, 0.25)], 2)[:, 0]  # (n, 6)
    place = scaled(images).flatten(1) * 5
    low = place.long().clamp_max(4)
    share = place - low
    mapped = knots.gather(1, low) * (1 - share) + knots.gather(1, low + 1) * share
    return scaled(mapped.view_as(images))


def _noise(dice: RandomDraws) -> Tensor:
    """White to very smooth noise, of one grain or with few bright spots."""
    white = torch.randn(dice.n, SIDE, SIDE, generator=dice.generator)
    rows = torch.fft.fftfreq(SIDE)[None, :, None]
    columns = torch.fft.rfftfreq(SIDE)[None, None, :]
    fall = (rows**2 + columns**2 + 1 / SIDE**2).sqrt() ** -dice.uniform(0, 2.5)
    grains = scaled(torch.fft.irfft2(torch.fft.rfft2(white) * fall, s=(SIDE, SIDE)))
    return torch.where(dice.chance(0.3), grains ** dice.uniform(1, 6), grains)


def _bones(dice: RandomDraws) -> Tensor:
    """One to three bright tubes with a joint in soft tissue: as much as a knee, a foot or a spine has of a hand."""
    rows = torch.linspace(-1, 1, SIDE)[None, :, None]
    columns = torch.linspace(-1, 1, SIDE)[None, None, :]
    angle = torch.where(dice.chance(0.6), 0.25 * dice.normal(), dice.uniform(-math.pi, math.pi))
    along = rows * torch.cos(angle) + columns * torch.sin(angle)
    across = columns * torch.cos(angle) - rows * torch.sin(angle) + 0.2 * dice.normal()
    across = across + dice.uniform(-0.5, 0.5) * along**2
    flesh = dice.uniform(0.3, 0.9) * (1 + 0.3 * torch.sin(along * dice.uniform(1, 4) + dice.uniform(0, 6)))
    image = 0.35 * torch.sigmoid((flesh - across.abs()) * dice.uniform(15, 60))
    count = dice.integers(3)
    for number in range(3):
        middle = (number - count / 2) * dice.uniform(0.25, 0.5)
        thick = dice.uniform(0.06, 0.24) * (1 + dice.uniform(0, 0.8) * torch.exp(-((along / 0.2) ** 2)))
        inside = torch.sigmoid((thick - (across - middle).abs()) * 40)
        shell = torch.exp(-((((across - middle).abs() - thick) / 0.04) ** 2))
        gap = 1 - torch.exp(-(((along - dice.uniform(-0.3, 0.3)) / 0.05) ** 2)) * dice.chance(0.7)
        segments = 1 - 0.6 * dice.chance(0.3) * (torch.sin(along * dice.uniform(8, 25)) > 0.6)
        image = image + (number <= count) * (0.35 * inside + 0.25 * shell) * gap * segments
    return scaled(image)


def _text(dice: RandomDraws) -> Tensor:
    """A page: lines of words, dark on light or light on dark."""
    fine = torch.rand(dice.n, SIDE, SIDE, generator=dice.generator) < 0.55
    pitch = dice.integers(6) + 3
    rows, columns = torch.arange(SIDE)[None, :, None], torch.arange(SIDE)[None, None, :]
    line = (rows % pitch) < (pitch + 1) // 2
    words = functional.interpolate(torch.rand(dice.n, 1, SIDE, 12, generator=dice.generator), (SIDE, SIDE))[:, 0] < 0.75
    margin = (dice.uniform(0, 14) < columns) & (columns < dice.uniform(44, 64)) & (rows > dice.uniform(0, 20))
    ink = (fine & line & words & margin).float() * dice.uniform(0.5, 1)
    return torch.where(dice.chance(0.7), 1 - ink, ink)


def _shapes(dice: RandomDraws) -> Tensor:
    """Discs and bars on a slope of grey."""
    rows, columns = torch.linspace(-1, 1, SIDE)[None, :, None], torch.linspace(-1, 1, SIDE)[None, None, :]
    image = dice.uniform(-0.5, 0.5) * rows + dice.uniform(-0.5, 0.5) * columns
    for _ in range(4):
        down, right = rows - dice.uniform(-1, 1), columns - dice.uniform(-1, 1)
        round_ = (down / dice.uniform(0.1, 0.8)) ** 2 + (right / dice.uniform(0.1, 0.8)) ** 2 < 1
        straight = (down.abs() < dice.uniform(0.05, 0.6)) & (right.abs() < dice.uniform(0.05, 0.6))
        shape = torch.where(dice.chance(0.6), round_, straight)
        image = torch.where(shape & dice.chance(0.8), dice.uniform(), image)
    return scaled(image)
