"""``audit-data``: find near-duplicates across the split, the errors without them, and doubtful labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from watcher.cli import judge_weights
from watcher.core import atomic_write, shipped_files
from watcher.core.errors import Exit
from watcher.model import checkpoint
from watcher.training.data import labelled_images
from watcher.training.data.labelled_images import Examples
from watcher.training.study import data_quality, study_audit


def run(args: argparse.Namespace) -> int:
    """Print the audit, and write it where ``report`` finds it; without a study it is only printed."""
    train, valid = (
        labelled_images.load(labelled_images.listing(args.data, args.split, part))
        for part in (args.train_part, args.part)
    )
    labelled_images.refuse_broken(train, valid)
    near = data_quality.find_near_duplicates(valid, train)
    judged = [_judged(path, valid) for path in args.weights or [shipped_files.weights()]]
    parts = {args.train_part: train, args.part: valid}
    studies = [
        study_audit.lines(plan, args.data, args.split, args.runs, parts, near.max_distance)
        for plan in args.study
        if plan.exists()
    ]
    page = data_quality.page(
        (train, valid),
        data_quality.count_exact_copies(train, valid),
        near,
        judged,
        [lines for lines in studies if lines],
        study_audit.count_other_parts(args.split, parts),
    )
    out: Path | None = args.out or (args.study[0].parent if args.study[0].exists() else None)
    if out is not None:
        with atomic_write.replacing(out / "audit.md") as partial:
            partial.write_text(page, "utf-8")
    print(page)
    return Exit.OK


def _judged(path: Path, valid: Examples) -> tuple[str, str, list[str]]:
    """Return name and digest of weights, and the paths of the images that they get wrong."""
    weights = checkpoint.load(path)
    return weights.name, weights.digest[:12], [error.path for error in judge_weights.evaluate(weights, valid).errors]
