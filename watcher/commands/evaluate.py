"""``evaluate``: weights against labelled images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from watcher import assets, checkpoint, classify, decide, operating
from watcher.errors import Exit, Fatal
from watcher.records import Outcome
from watcher.settings import Review
from watcher.training import dataset, evaluate

BATCH = 64


def run(args: argparse.Namespace) -> int:
    """Print how many are right, the confusion matrix and each error."""
    if args.part and not args.split:
        raise Fatal("--part chooses rows of a split", "Give --split CSV too.", Exit.USAGE)
    if args.picture and args.picture.suffix.lower() != ".png":
        raise Fatal(f"{args.picture} would be no PNG", "Give --picture a name that ends in .png.", Exit.USAGE)
    path = args.weights or assets.weights()
    weights = checkpoint.load(path)
    data = dataset.load(dataset.listing(args.data, args.split, args.part))
    judged = judge(weights, data)
    if args.picture:
        evaluate.picture(judged, args.picture, f"{weights.name} {weights.digest[:12]}, {args.part or args.data}")
    print(json.dumps(judged.to_dict()) if args.json else _text(path, weights, judged))
    return Exit.OK


def judge(weights: checkpoint.Checkpoint, data: dataset.Examples) -> evaluate.Report:
    """Classify every image as the daemon would, on the device there is.

    Raises:
        Fatal: exit code 5; the data has classes that the weights do not know.
    """
    data = relabelled(data, weights.classes)
    classify.use_threads(0)
    station = classify.Classifier(classify.build(weights), classify.choose_device("auto"))
    network, policy = classify.scoring(station, weights), operating.policy(Review(), weights)
    shares, filed = [np.zeros((0, len(weights.classes)))], [np.zeros(0, np.bool_)]
    for start in range(0, len(data.images), BATCH):
        scored = network(data.images[start : start + BATCH])
        shares.append(decide.probabilities(scored.logits, policy.temperature)[:, : len(weights.classes)])
        decisions = decide.decide(scored, [False] * len(scored.logits), policy)
        filed.append(np.array([decision.outcome is Outcome.SORTED for decision in decisions]))
    return evaluate.report(data, np.concatenate(shares), np.concatenate(filed))


def relabelled(data: dataset.Examples, classes: Sequence[str]) -> dataset.Examples:
    """The same images with labels in the weights' own class order.

    Raises:
        Fatal: exit code 5; the data has classes that are none of these.
    """
    advice = f"They know {', '.join(classes)}: name the class directories so."
    return dataset.relabelled(data, classes, "the weights do not know the classes", advice)


def _thresholds(weights: checkpoint.Checkpoint) -> str:
    policy = operating.policy(Review(), weights)
    return f"{policy.min_confidence:.4f}" + (f", distance {policy.max_distance:.4f}" if policy.max_distance < 3 else "")


def _text(path: Path, weights: checkpoint.Checkpoint, judged: evaluate.Report) -> str:
    filed = judged.filed
    assert filed is not None
    lines = [
        f"weights    {path} ({weights.name}, digest {weights.digest[:12]})",
        f"right      {judged.correct} of {judged.total} ({len(judged.errors)} wrong)",
        f"thresholds {_thresholds(weights)}: {int((filed & judged.right).sum())} filed right, "
        f"{int((filed & ~judged.right).sum())} filed wrong, {int((~filed).sum())} to review",
        f"confidence expected calibration error {evaluate.calibration(judged).error:.2%} ({evaluate.BINS} bins); "
        f"{judged.sure_errors} wrong of those given {evaluate.SURE:.0%} or more",
        "",
        evaluate.table(judged),
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
