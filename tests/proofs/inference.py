"""Measure the shipped network against PyTorch and ONNX Runtime, on the full network and on the shipped one.

``make inference``. Without the extra ``onnx`` it measures PyTorch alone. Rounds
go through all ways by turns, so that a busy machine is busy for each; ratios
are of one round. Where labelled images are given (``--data DIR --split CSV``), it also counts on how many of the
validation images the shipped network decides alike in all its forms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from watcher.core import shipped_files
from watcher.images import decode
from watcher.model import backends, checkpoint, classifier, mednet, onednn_backend, onnx_backend
from watcher.training.data import labelled_images

BATCH, PASSES = 64, 12
OURS = "as shipped"

Way = Callable[[np.ndarray], np.ndarray]


def plain(net: mednet.MedNet) -> Way:
    """PyTorch in evaluation mode, and nothing else."""

    @torch.inference_mode()
    def way(images: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(images)).logits.numpy()  # type: ignore[no-any-return]

    return way


def shipped(net: mednet.MedNet, runtime: backends.Runtime, precision: backends.Precision = "float32") -> Way:
    """As the classifier station has it."""
    compute = backends.engine(net, torch.device("cpu"), runtime, precision).compute
    return lambda images: compute(images)[0]


def onnx(net: mednet.MedNet, threads: int) -> Way | None:
    """ONNX Runtime on the network as it is stored, with its own settings; None where it is not installed."""
    onnx_backend.disable_telemetry()
    try:
        import onnxruntime

        model = onnx_backend.to_onnx(net, decode.SIDE)
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]  # type: ignore[no-any-return]


def rate(way: Way, images: np.ndarray) -> float:
    """Images a second, the fastest of some passes."""
    spent = []
    for _ in range(PASSES):
        started = time.perf_counter()
        way(images)
        spent.append(time.perf_counter() - started)
    return len(images) / min(spent)


def main() -> None:
    """Print images a second of each way, and the ratios."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--threads", type=int, default=0)
    words.add_argument("--weights", type=Path, default=shipped_files.weights())
    words.add_argument("--data", type=Path)
    words.add_argument("--split", type=Path)
    args = words.parse_args()
    classifier.use_threads(args.threads)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    full = mednet.MedNet(mednet.IMPROVED).eval()  # speed does not depend on what was learnt
    small = classifier.build(checkpoint.load(args.weights))
    ways: dict[str, Way | None] = {
        "improved, full, PyTorch": plain(full),
        "improved, full, ONNX Runtime": onnx(full, threads),
        "as shipped, ONNX Runtime": onnx(small, threads),
        OURS: shipped(small, "auto"),
        "as shipped, by torch": shipped(small, "torch"),
        "as shipped, bfloat16": shipped(small, "auto", "bfloat16") if onednn_backend.fast_in_bfloat16() else None,
    }
    known = {name: way for name, way in ways.items() if way is not None}
    images = np.random.default_rng(0).normal(size=(BATCH, 1, decode.SIDE, decode.SIDE)).astype(np.float32)
    for way in known.values():
        way(images)
    rounds = [{name: rate(way, images) for name, way in known.items()} for _ in range(args.rounds)]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {args.weights.stem}, {threads} threads, torch {torch.__version__}, "
        f"batches of {BATCH}"
    )
    for name in known:
        rates = [each[name] for each in rounds]
        against = [each[OURS] / each[name] for each in rounds]
        print(
            f"{name:30} {statistics.median(rates):7,.0f} images/s   shipped is {statistics.median(against):5.2f} times "
            f"as fast ({min(against):.2f} .. {max(against):.2f})"
        )
    if args.data and args.split:
        _agreement(known, labelled_images.load(labelled_images.listing(args.data, args.split, "valid")))


def _agreement(ways: dict[str, Way], data: labelled_images.Examples) -> None:
    count = len(data.images)
    batches = [decode.standardise(data.images[start : start + BATCH]) for start in range(0, count, BATCH)]
    said = {name: np.concatenate([way(batch) for batch in batches]) for name, way in ways.items() if OURS in name}
    ours = said.pop(OURS)
    for name, theirs in said.items():
        named = [each[:, : len(data.classes)].argmax(axis=1) for each in (ours, theirs)]
        right = [int((each == data.labels).sum()) for each in named]
        print(
            f"{name}: decisions alike on {int((named[0] == named[1]).sum())} of {count} validation images "
            f"({right[0]} right, {name} {right[1]}), logits within {np.abs(ours - theirs).max():.2g}"
        )


if __name__ == "__main__":
    main()
