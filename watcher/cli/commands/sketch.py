"""``sketch``: fit the sampler of synthetic images to training images."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from watcher.core.errors import Exit, Fatal
from watcher.training.data import labelled_images, synthetic_images


def run(args: argparse.Namespace) -> int:
    """Fit a sketch, write it, and print how large it is and how many images its views have."""
    if args.components < 1:
        raise Fatal(f"{args.components} components say nothing", "Give --components at least 1.", Exit.USAGE)
    print(f"reading {args.data} ...", flush=True)
    images = labelled_images.images_by_class(args.data, args.split, args.train_part)
    fitted = synthetic_images.fit(images, args.components, rng=np.random.default_rng(args.seed))
    out: Path = args.out
    fitted.save(out)
    for label, statistics in fitted.by_class.items():
        smallest = round(float(statistics.shares.min()) * len(images[label]))
        print(
            f"  {label:12} {len(images[label]):6} images, {len(statistics.shares)} views of at least "
            f"{smallest} images, {len(statistics.components)} components"
        )
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB of statistics, no images")
    return Exit.OK
