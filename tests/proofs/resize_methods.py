"""``make fits POOL=DIR``: how many of real images are told right, by how they are made to fit 64 x 64.

DIR holds ``pool.csv`` (path, class, kind, rendering, split_suggestion) and the images that it names; rows with a kind
are none of the classes and left out. Hounsfield units (stored plus 1024) are seen through the window that a viewer
shows first: 400 wide about 40, heads 80 about 40. Each choice is made before the network of the daemon, as shipped.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from watcher.core import shipped_files
from watcher.images import raster, resize
from watcher.images.formats.detect import format_of
from watcher.images.resize import Levels
from watcher.model import checkpoint, classifier

WINDOWS = {"HeadCT": (0, 80)}
BODY = (-160, 240)
DARK = 0.06
"""Of the range of levels: a border is a row or column that nowhere is brighter."""


def as_is(levels: Levels) -> Levels:
    return levels


def squash(levels: Levels) -> Levels:
    """Both sides to 64, whatever they were."""
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(image.resize((resize.SIDE, resize.SIDE), resize.FILTER), levels.dtype)


def pad_with_black(levels: Levels) -> Levels:
    """To a square, filled up with the darkest level."""
    height, width = levels.shape[:2]
    side = max(height, width)
    down, right = side - height, side - width
    around = ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0))[: levels.ndim]
    return np.pad(levels, around, constant_values=levels.min())


def crop(levels: Levels) -> Levels:
    """The square in the middle."""
    height, width = levels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return levels[top : top + side, left : left + side]


def trim(levels: Levels) -> Levels:
    """Without the borders that are dark all along."""
    grey = levels.max(axis=2) if levels.ndim == 3 else levels
    bright = grey > grey.min() + DARK * float(grey.max() - grey.min())
    rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return levels
    return levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def inverted(levels: Levels) -> Levels:
    return np.asarray(levels.max() - (levels - levels.min()), levels.dtype)


FITS: dict[str, Callable[[Levels], Levels]] = {
    "pad with edge": as_is,  # which is what render.to_64 does
    "pad with black": pad_with_black,
    "squash": squash,
    "crop": crop,
    "trim, pad with edge": trim,
    "trim, squash": lambda levels: squash(trim(levels)),
    "inverted": inverted,
}
FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def read(root: Path, table: Path) -> dict[str, list[tuple[str, Levels]]]:
    """Class and levels of every image, by part."""
    found: defaultdict[str, list[tuple[str, Levels]]] = defaultdict(list)
    with table.open() as file:
        for row in csv.DictReader(file):
            if row["kind"]:
                continue
            data = (root / row["path"]).read_bytes()
            levels = raster.read(data, format_of(data) or "PNG", 64_000_000).levels
            if row["rendering"] == "hu":
                low, high = WINDOWS.get(row["class"], BODY)
                levels = np.clip(levels.astype(np.float32) - 1024, low, high)
            found[row["split_suggestion"]].append((row["class"], levels))
    return found


def main() -> None:
    """Print a table for each part."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("pool", type=Path)
    words.add_argument("--table", type=Path, help="pool.csv, if it is elsewhere")
    args = words.parse_args()
    weights = checkpoint.load(shipped_files.weights("mednet-improved.safetensors"))  # has seen none of the pool
    network = classifier.Classifier(classifier.build(weights), classifier.choose_device("cpu"))
    parts = read(args.pool, args.table or args.pool / "pool.csv")
    now = datetime.datetime.now(datetime.UTC)
    sys.stdout.write(f"{now:%Y-%m-%d}, {platform.machine()}, weights {weights.digest[:12]}: right, of all\n")
    for part, images in sorted(parts.items(), reverse=True):
        first: list[bool] = []
        total = Counter(label for label, _ in images)
        classes = [name for name in weights.classes if total[name]]
        head = "".join(f"{name:>11}" for name in classes)
        sys.stdout.write(f"\n{part:21}{'':10}{head}{'mean':>8}  than the first\n{'':31}")
        sys.stdout.write("".join(f"{f'of {total[name]}':>11}" for name in classes) + f"{'':8}{'more':>6}{'fewer':>6}\n")
        for fit, make in FITS.items():
            for how in FILTERS if make is as_is else FILTERS[:1]:
                small = np.stack([resize.to_64(np.ascontiguousarray(make(levels)), how) for _, levels in images])
                scores = np.concatenate([network(small[at : at + 64]).logits for at in range(0, len(small), 64)])
                told = [weights.classes[best] for best in scores.argmax(axis=1)]
                right = Counter(label for (label, _), best in zip(images, told, strict=True) if label == best)
                hits = [label == best for (label, _), best in zip(images, told, strict=True)]
                first = first or hits
                gained, lost = (
                    sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((hits, first), (first, hits))
                )
                mean = sum(right[name] / total[name] for name in classes) / len(classes)
                counts = "".join(f"{right[name]:>11}" for name in classes)
                sys.stdout.write(f"{fit:21}{how.name.lower():10}{counts}{mean:8.3f}{gained:6}{lost:6}\n")


if __name__ == "__main__":
    main()
