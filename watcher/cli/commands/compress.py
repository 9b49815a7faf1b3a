"""``compress``: make trained weights small and fast, and print the figures of both side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from watcher.cli import judge_weights
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, classifier, mednet
from watcher.training.data import labelled_images
from watcher.training.fit import calibration, compression, evaluation

GIVE_UP = 0.0002
"""The share of right predictions on validation images that the threshold may send to review: 1 in 5,000."""


def run(args: argparse.Namespace) -> int:
    """Compress weights, fit temperature and threshold, save, and compare."""
    classifier.use_threads(0)
    full = checkpoint.load(args.weights)
    net = classifier.build(full)
    _refuse(args, net.config, full.classes)
    data, valid = (
        labelled_images.load(labelled_images.listing(args.data, args.split, part))
        for part in (args.train_part, args.part)
    )
    labelled_images.refuse_broken(data, valid)
    data, valid = judge_weights.relabelled(data, full.classes), judge_weights.relabelled(valid, full.classes)
    tuning = compression.Tuning(args.rank, args.epochs, args.learning_rate, seed=args.seed)
    torch.manual_seed(args.seed)
    slim, steps = compression.compress(
        net, data, valid, tuning, lambda s: print(f"epoch {s.epoch}: {s.valid_errors} wrong, loss {s.valid_loss:.6f}")
    )
    heat = calibration.temperature(
        calibration.predict(slim, valid.images)[0], valid.labels, calibration.platt_smoothing(valid.labels)
    )
    shipped = compression.to_checkpoint(full, slim, heat)
    before, after = judge_weights.evaluate(full, valid), judge_weights.evaluate(shipped, valid)
    min_confidence = evaluation.fit_min_confidence(after, GIVE_UP)
    errors = len(before.errors), len(after.errors)
    shipped = checkpoint.save(compression.with_results(shipped, full, min_confidence, tuning, steps, errors), args.out)
    print(f"full     {args.weights}: {before.correct} of {before.total} right, {_size(args.weights)}")
    print(f"shipped  {args.out}: {after.correct} of {after.total} right, {_size(args.out)}")
    changed = int((before.right != after.right).sum())
    print(f"decisions that changed between right and wrong: {changed}")
    print(_apart(calibration.predict(net, valid.images)[0], calibration.predict(slim, valid.images)[0]))
    print(f"temperature {heat:.4f}, threshold {shipped.thresholds['min_confidence']:.4f}, digest {shipped.digest}")
    return Exit.OK


def _refuse(args: argparse.Namespace, config: mednet.MedNetConfig, classes: Sequence[str]) -> None:
    """Refuse weights and ranks that cannot be compressed.

    Raises:
        Fatal: The weights are compressed, or have an answer for none of the classes (exit code 4); there is no such
            rank (exit code 2).
    """
    if config.rank is not None or config.classes != len(classes):
        what = (
            "compressed already" if config.rank is not None else "of a network with an answer for none of the classes"
        )
        raise Fatal(f"{args.weights} is {what}", "Give --weights the best.safetensors that train wrote.", Exit.MODEL)
    most = min(config.features, config.hidden[0])
    if not 1 <= args.rank <= most:
        raise Fatal(f"there is no rank {args.rank} of a layer of rank {most}", f"Give --rank 1 to {most}.", Exit.USAGE)


def _apart(full: calibration.Logits, slim: calibration.Logits) -> str:
    """Say how far the logits (n, classes) of both networks differ."""
    gaps = np.abs(full - slim)
    other = int((full.argmax(axis=1) != slim.argmax(axis=1)).sum())
    return (
        f"of {len(full)} decisions {other} are others; logits differ by at most {gaps.max():.2f}, "
        f"99 % of them by at most {np.quantile(gaps, 0.99):.2f}, of {np.ptp(full):.1f} that they span"
    )


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
