"""``adapt``: teach the network what people decided at this site. Puts nothing in force, see ``promote``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace

import numpy as np

from watcher import assets, checkpoint, classify, layout, log
from watcher.commands import said
from watcher.errors import Exit, Fatal
from watcher.training import adapt, rehearsal, site
from watcher.training.dataset import Examples

LEAST = 10
"""Images to learn from, at least: from fewer, chance is learnt."""

REHEARSAL = "rehearsal.safetensors"


def run(args: argparse.Namespace) -> int:
    """Tune the last layers, set the thresholds anew, and write the new weights."""
    path = layout.weights_path(args.weights, layout.optional_config(args.config))
    present = checkpoint.load(path)
    classify.use_threads(args.threads)
    net = classify.build(present)
    memory = rehearsal.load(args.rehearsal or assets.weights(REHEARSAL))
    if memory.trunk != rehearsal.trunk(net):
        raise Fatal(
            f"the rehearsal belongs to other weights than {path}",
            "Give --rehearsal the file that came with these weights.",
            Exit.MODEL,
        )
    data = site.load(args.data, present.classes)
    for name, _, why in data.broken:
        print(f"left out: {log.printable(name)}: {why}", file=sys.stderr)
    learn, held = site.split(data)
    if len(learn.labels) < LEAST:
        raise Fatal(
            f"{args.data} has {len(learn.labels)} images to learn from: so few teach nothing but chance",
            f"Collect at least {LEAST} verdicts, better 50 of each class that is told wrong.",
            Exit.DIRECTORY,
        )
    found = adapt.adapt(
        net,
        memory,
        learn.images,
        learn.labels,
        present.classes,
        args.accept_rate,
        said.of_rehearsed(present, memory),
    )
    saved = checkpoint.save(_checkpoint(present, found, learn, held), args.out)
    print(f"learnt from {len(learn.labels)} images ({_counts(learn)}), {len(held.labels)} kept back for promote")
    print(f"{args.out}: digest {saved.digest}")
    print(f"next: mednet-watcher promote {args.out} --data {args.data}")
    return Exit.OK


def _counts(data: Examples) -> str:
    counts = np.bincount(data.labels, minlength=len(data.classes) + 1).tolist()
    return ", ".join(f"{name} {n}" for name, n in zip((*data.classes, site.STRANGERS), counts, strict=True) if n)


def _checkpoint(
    present: checkpoint.Checkpoint, found: adapt.Adapted, learn: Examples, held: Examples
) -> checkpoint.Checkpoint:
    tensors = {name: value.half().numpy() for name, value in found.net.state_dict().items()}
    about = {"from": present.digest, "learnt": len(learn.labels), "kept_back": len(held.labels)}
    return replace(
        present,
        tensors={**tensors, **found.known.tensors()},
        thresholds={**asdict(found.limits), "temperature": found.temperature},
        # What was measured to be wrong at them was measured on the weights of before.
        operating=tuple({**point, **asdict(found.limits_at(point["accept_rate"]))} for point in present.operating),
        training={**present.training, "adapted": [*present.training.get("adapted", []), about]},
        digest="",
    )
