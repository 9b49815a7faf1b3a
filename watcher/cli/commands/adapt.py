"""``adapt``: adapt the network to the verdicts of this site. It puts nothing in force, see ``promote``."""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from watcher.cli import judge_weights
from watcher.config import loader
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.core.printable import printable
from watcher.model import checkpoint, classifier, promotions
from watcher.training.data.labelled_images import Examples
from watcher.training.site import adapted_weights, fine_tuning, rehearsal, site_images

LEAST = 10
"""The fewest different images to learn from. From fewer the network would learn chance."""

ENOUGH = math.ceil(LEAST / (1 - site_images.HELD_BACK))
"""The fewest verdicts that leave so many images to learn from, whatever their classes."""


def run(args: argparse.Namespace) -> int:
    """Tune the last layers, set the thresholds anew, and write the new weights."""
    settings = loader.load_or_default(args.config)
    path = promotions.weights_path(args.weights, settings)
    _refuse_in_use(args.out, (path, shipped_files.weights()), settings.state.path / promotions.DIRECTORY)
    present = checkpoint.load(path)
    classifier.use_threads(args.threads)
    net = classifier.build(present)
    memory = rehearsal.load(args.rehearsal or shipped_files.weights(rehearsal.FILENAME))
    if memory.trunk != rehearsal.trunk(net):
        raise Fatal(
            f"the rehearsal belongs to other weights than {path}",
            "Give --rehearsal the file that came with these weights.",
            Exit.MODEL,
        )
    data = site_images.load(args.data, present.classes)
    for name, _, why in data.broken:
        print(f"left out: {printable(name)}: {why}", file=sys.stderr)
    learn, held = site_images.split(data)
    different = len({image.tobytes() for image in learn.images})
    if different < LEAST:
        raise Fatal(
            f"{args.data} has {different} different images to learn from: so few teach nothing but chance",
            f"Of each class {site_images.HELD_BACK:.0%} are kept back for promote. Collect at least {ENOUGH} verdicts "
            "in all, better 50 of each class that the network gets wrong.",
            Exit.DIRECTORY,
        )
    found = fine_tuning.adapt(
        net,
        memory,
        learn.images,
        learn.labels,
        present.classes,
        args.accept_rate,
        judge_weights.predict_rehearsed(present, memory),
    )
    saved = checkpoint.save(adapted_weights.make(present, found, learn, held), args.out)
    print(f"learnt from {len(learn.labels)} images ({_counts(learn)}), {len(held.labels)} kept back for promote")
    print(f"{args.out}: digest {saved.digest}")
    print(f"next: mednet-watcher promote {args.out} --data {args.data}")
    return Exit.OK


def _refuse_in_use(out: Path, weights: Iterable[Path], promoted: Path) -> None:
    """Refuse to overwrite weights in use, or a file that cannot be written, before the work is done."""
    place = Path(os.path.realpath(out))
    if place in map(Path, map(os.path.realpath, weights)) or place.is_relative_to(os.path.realpath(promoted)):
        raise Fatal(
            f"--out {out} would put the new weights in the place of those in use, and nobody had judged them",
            "Name another file, and promote it.",
            Exit.USAGE,
        )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        why = None if os.access(place.parent, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        why = error.strerror
    if os.path.lexists(place) and not place.is_file():
        why = "it is no regular file"
    if why is not None:
        raise Fatal(
            f"--out {out} can not be written: {why}",
            "Name a file in a directory that you may write to.",
            Exit.DIRECTORY,
        )


def _counts(data: Examples) -> str:
    counts = np.bincount(data.labels, minlength=len(data.classes) + 1).tolist()
    return ", ".join(
        f"{name} {n}" for name, n in zip((*data.classes, site_images.OUTLIER_DIRECTORY), counts, strict=True) if n
    )
