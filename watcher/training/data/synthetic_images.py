"""Fit a generative model of each class, the sketch, and sample synthetic images where no data set may go.

A class is a few views, its typical pictures, which k-means finds. Each view has a mean, standard deviations along
principal components that the views of a class share, the remaining deviation of each pixel, and its usual grey levels
from the darkest pixel to the brightest. A sample is a view plus Gaussian noise, whose pixels keep their order and take
the view's grey levels. The sketch stores statistics over many images, not images, and a sample shows no patient. This
module does not import torch.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal
from watcher.images.decode import SIDE

FORMAT = "mednet-watcher-sketch/1"

PROVENANCE = {
    "content": "statistics (means, principal components, standard deviations), not images",
    "source": "MedNIST, gathered from TCIA, the RSNA Bone Age Challenge and the NIH ChestX-ray data set "
    "by Dr. Bradley J. Erickson M.D., Ph.D. (Department of Radiology, Mayo Clinic)",
    "licence": "CC BY-SA 4.0",
}
"""The origin of the shipped sketch, which is stored in the file."""

REACH = 2.0
"""Standard deviations to which noise is clipped, so that no sample is far-fetched."""

SMALLEST_VIEW = 200
"""Images of a view, at least. In a class of fewer than 800 images it is a quarter of them."""

BREADTH = 0.5
"""The share of the deviations along the components that samples have."""

GRAIN = 0.3
"""The share of the remaining deviation that samples have, as independent noise of each pixel.

This share and :data:`BREADTH` were chosen by the predictions of the shipped network. Without grain it takes CTs of the
chest for the abdomen. With more of either it takes most samples for outliers, which they are. Samples are therefore no
test of the network.
"""

# Ranks of pixels whose grey levels are stored. They are closer together towards the brightest, where a few bright
# pixels tell a CT of the chest from an empty grey.
_RANKS = np.unique(np.rint((SIDE * SIDE - 1) * (1 - np.linspace(1, 0, 65) ** 2)).astype(int))

Floats = npt.NDArray[np.float32]
Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClassStatistics:
    """The statistics of one class: v views and k principal components of p = 64 * 64 pixels."""

    shares: Floats  # (v,), share of each view, sum 1
    means: Floats = field(repr=False)  # (v, p), grey levels
    components: Floats = field(repr=False)  # (k, p), orthonormal
    deviations: Floats = field(repr=False)  # (v, k), grey levels along each component, within the view
    grain: Floats = field(repr=False)  # (v, p), grey levels, the deviation that the components do not explain
    tones: Floats = field(repr=False)  # (v, t), grey levels at t ranks from the darkest pixel to the brightest


@dataclass(frozen=True)
class Sketch:
    """The statistics of each class by its name, and their origin."""

    by_class: Mapping[str, ClassStatistics]
    provenance: Mapping[str, str] = field(default_factory=lambda: dict(PROVENANCE))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of training."""
        return tuple(self.by_class)

    def sample(self, label: str, rng: np.random.Generator) -> Grey:
        """Sample a synthetic image, (64, 64) uint8. The same state of the generator gives the same image.

        Raises:
            KeyError: The sketch has no such class.
        """
        statistics = self.by_class[label]
        shares = statistics.shares.astype(np.float64)
        view = rng.choice(len(shares), p=shares / shares.sum())
        noise = rng.standard_normal(len(statistics.components)).clip(-REACH, REACH)
        drawn = statistics.means[view] + (noise * BREADTH * statistics.deviations[view]) @ statistics.components
        drawn += rng.standard_normal(drawn.shape).clip(-REACH, REACH) * statistics.grain[view] * GRAIN
        levels = np.empty(SIDE * SIDE)
        levels[drawn.argsort(kind="stable")] = np.interp(np.arange(SIDE * SIDE), _RANKS, statistics.tones[view])
        return np.rint(levels).clip(0, 255).astype(np.uint8).reshape(SIDE, SIDE)

    def save(self, path: Path) -> None:
        """Write the file as 16-bit floats, completely or not at all.

        Raises:
            OSError: It cannot be written. A file that was there stays.
        """
        tensors = {
            f"{number}.{name}": np.ascontiguousarray(value, dtype=np.float16)
            for number, statistics in enumerate(self.by_class.values())
            for name, value in vars(statistics).items()
        }
        header = {"format": FORMAT, "classes": list(self.classes), **self.provenance}
        with atomic_write.replacing(path) as partial:
            try:
                save_file(tensors, partial, metadata={"sketch": json.dumps(header)})
            except SafetensorError as error:
                raise OSError(errno.EIO, str(error), str(path)) from error

    @classmethod
    def load(cls, path: Path) -> Sketch:
        """Read what :meth:`save` wrote.

        Raises:
            Fatal: The file is missing, damaged or no sketch (exit code 4).
        """
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {})["sketch"])
                tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118 - not a dict
            return _checked(header, tensors)
        except FileNotFoundError as error:
            raise _fatal(f"the sketch {path} does not exist") from error
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise _fatal(f"the sketch {path} can not be read: {error!r}") from error


def fit(
    images_by_class: Mapping[str, Grey], components: int = 40, views: int = 16, rng: np.random.Generator | None = None
) -> Sketch:
    """Fit a sketch to the images of each class, (n, 64, 64) uint8, n at least 2.

    ``components`` and ``views`` are upper bounds. A small class gets fewer, so that no view is the mean of a handful of
    images. ``rng`` (default: seed 0) places the first views. The same one gives the same sketch.
    """
    rng = rng or np.random.default_rng(0)
    return Sketch({label: _describe_class(images, components, views, rng) for label, images in images_by_class.items()})


def _describe_class(images: Grey, components: int, views: int, rng: np.random.Generator) -> ClassStatistics:
    """Cluster a class into views along its main components, and measure what varies within views."""
    pixels = images.reshape(len(images), -1).astype(np.float32)  # (n, p)
    centred = pixels - pixels.mean(axis=0)
    scores = centred @ _principal(centred, 16, rng).T  # (n, 16)
    view_of = _views(scores, views, min(SMALLEST_VIEW, -(-len(images) // 4)), rng)  # (n,)
    count = int(view_of.max()) + 1
    means = np.stack([pixels[view_of == view].mean(axis=0) for view in range(count)])
    within = pixels - means[view_of]
    basis = _principal(within, min(components, len(images) - 1), rng)
    along = within @ basis.T  # (n, k)
    deviations = np.stack([along[view_of == view].std(axis=0) for view in range(count)])
    shares = np.bincount(view_of, minlength=count) / len(images)
    left = within - along @ basis
    grain = np.stack([left[view_of == view].std(axis=0) for view in range(count)])
    ranked = np.sort(pixels, axis=1)[:, _RANKS]  # (n, t)
    tones = np.stack([ranked[view_of == view].mean(axis=0) for view in range(count)])
    return ClassStatistics(shares.astype(np.float32), means, basis, deviations, grain, tones)


def _principal(centred: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return the ``count`` directions of largest variance, (count, p), orthonormal rows, largest first.

    Source: randomised subspace iteration, Halko, Martinsson and Tropp 2011, algorithm 4.4. It is thirty times faster
    here than the eigenvectors of a 4096 x 4096 matrix.
    """
    width = min(count + 10, *centred.shape)
    basis, _ = np.linalg.qr(centred.T @ rng.standard_normal((len(centred), width), dtype=np.float32))
    for _ in range(4):
        basis, _ = np.linalg.qr(centred.T @ (centred @ basis))  # (p, width)
    _, _, rotation = np.linalg.svd(centred @ basis, full_matrices=False)
    return np.ascontiguousarray((basis @ rotation.T).T[:count])


def _views(scores: Floats, views: int, smallest: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Cluster ``scores`` by k-means into views of at least ``smallest`` images, and return their numbers (n,)."""
    centres = scores[rng.choice(len(scores), size=min(views, len(scores)), replace=False)]
    view_of = _nearest(scores, centres)
    for _ in range(30):
        sizes = np.bincount(view_of, minlength=len(centres))
        centres = np.stack([scores[view_of == view].mean(axis=0) for view in np.flatnonzero(sizes)])
        view_of = _nearest(scores, centres)
    while len(centres) > 1 and (sizes := np.bincount(view_of, minlength=len(centres))).min() < smallest:
        centres = np.delete(centres, sizes.argmin(), axis=0)
        view_of = _nearest(scores, centres)
    return view_of


def _nearest(scores: Floats, centres: Floats) -> npt.NDArray[np.intp]:
    distances = (centres**2).sum(axis=1) - 2.0 * scores @ centres.T  # (n, v), less a constant per row
    return np.asarray(np.argmin(distances, axis=1), np.intp)


def _checked(header: dict[str, Any], tensors: Mapping[str, Floats]) -> Sketch:
    if header.pop("format") != FORMAT:
        raise ValueError(f"not in the format {FORMAT}")
    by_class: dict[str, ClassStatistics] = {}
    for number, label in enumerate(header.pop("classes")):
        found = ClassStatistics(**{part.name: tensors[f"{number}.{part.name}"] for part in fields(ClassStatistics)})
        views, count, pixels = len(found.shares), len(found.components), SIDE * SIDE
        expected = ((views,), (views, pixels), (count, pixels), (views, count), (views, pixels), (views, len(_RANKS)))
        if tuple(value.shape for value in vars(found).values()) != expected:
            raise ValueError(f"the shapes of {label} do not fit together")
        by_class[label] = found
    return Sketch(by_class, header)


def _fatal(problem: str) -> Fatal:
    return Fatal(problem, "It is shipped as weights/sketch.safetensors; `mednet-watcher sketch` makes one.", Exit.MODEL)
