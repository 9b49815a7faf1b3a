"""``evaluate``: judge weights on labelled images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from watcher.cli.judge_weights import evaluate
from watcher.config.settings import Review
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, thresholds
from watcher.training.data import labelled_images
from watcher.training.fit import evaluation


def run(args: argparse.Namespace) -> int:
    """Print how many predictions are right, the confusion matrix and each error."""
    if args.part and not args.split:
        raise Fatal("--part chooses rows of a split", "Give --split CSV too.", Exit.USAGE)
    if args.picture and args.picture.suffix.lower() != ".png":
        raise Fatal(f"{args.picture} would be no PNG", "Give --picture a name that ends in .png.", Exit.USAGE)
    path = args.weights or shipped_files.weights()
    weights = checkpoint.load(path)
    data = labelled_images.load(labelled_images.listing(args.data, args.split, args.part))
    judged = evaluate(weights, data)
    if args.picture:
        evaluation.draw_confusion(
            judged, args.picture, f"{weights.name} {weights.digest[:12]}, {args.part or args.data}"
        )
    print(json.dumps(judged.to_dict()) if args.json else _text(path, weights, judged))
    return Exit.OK


def _thresholds(weights: checkpoint.Checkpoint) -> str:
    policy = thresholds.policy(Review(), weights)
    return f"{policy.min_confidence:.4f}" + (f", distance {policy.max_distance:.4f}" if policy.max_distance < 3 else "")


def _text(path: Path, weights: checkpoint.Checkpoint, judged: evaluation.Evaluation) -> str:
    filed = judged.filed
    assert filed is not None
    lines = [
        f"weights    {path} ({weights.name}, digest {weights.digest[:12]})",
        f"right      {judged.correct} of {judged.total} ({len(judged.errors)} wrong)",
        f"thresholds {_thresholds(weights)}: {int((filed & judged.right).sum())} filed right, "
        f"{int((filed & ~judged.right).sum())} filed wrong, {int((~filed).sum())} to review",
        f"confidence expected calibration error {judged.reliability.error:.2%} ({evaluation.BINS} bins); "
        f"{judged.sure_errors} wrong of those given {evaluation.HIGH_CONFIDENCE:.0%} or more",
        "",
        evaluation.confusion_table(judged),
    ]
    if judged.errors:
        lines += ["", "wrong:"]
    lines += [
        f"  {e.path}: {e.true} taken for {e.predicted} ({e.confidence:.4f})"
        if e.predicted
        else f"  {e.path}: {e.true}, could not be decoded"
        for e in judged.errors
    ]
    return "\n".join(lines)
