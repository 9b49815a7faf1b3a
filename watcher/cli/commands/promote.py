"""``promote``: put new weights in force, if no class is worse by them. ``rollback`` undoes it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from watcher.cli import judge_weights
from watcher.config import loader
from watcher.config.settings import Review
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, classifier, promotions, thresholds, weights_in_force
from watcher.review import verdicts
from watcher.training.site import promotion_gate, rehearsal, site_images


def run(args: argparse.Namespace) -> int:
    """Judge both weights on every reference set, write the report, and put the new ones in force if they pass.

    Weights that are in force already stay so, and a line says it.
    """
    settings = loader.load_or_default(args.config)
    promotions.refuse_named_weights(settings)
    before = promotions.in_force(settings.state.path)
    present = checkpoint.load(promotions.weights_path(None, settings))
    new = checkpoint.load(args.candidate)
    if new.classes != present.classes:
        raise Fatal(
            f"{args.candidate} has other classes than the weights in force",
            "Name it in model.weights and restart.",
            Exit.MODEL,
        )
    if new.digest == present.digest:
        print(f"{args.candidate} is in force already: nothing to do ({new.digest})")
        return Exit.OK
    thresholds.policy(settings.review, new)  # refused here rather than at the next start
    classifier.use_threads(0)
    memory = rehearsal.load(args.rehearsal or shipped_files.weights(rehearsal.FILENAME))
    rehearsed = {rehearsal.trunk(classifier.build(weights)) for weights in (present, new)} == {memory.trunk}
    if not rehearsed and args.data is not None and not args.reference:
        raise Fatal(
            "the base data's validation images can not be judged: the rehearsal belongs to other weights",
            "A site's verdicts alone are too few. Give --reference with labelled images of every class, "
            "or --rehearsal the file that came with both weights.",
            Exit.USAGE,
        )
    references = list(_references(args, settings.review, present, new, memory if rehearsed else None))
    if not references:
        raise Fatal(
            "there is nothing that both could be judged on",
            "Give --data with a site's verdicts, --reference with labelled images, or --rehearsal.",
            Exit.USAGE,
        )
    lines = promotion_gate.compare(references, present.classes)
    about = {"present": present.digest, "new": new.digest}
    if not rehearsed:
        about["base validation"] = "not judged, the rehearsal belongs to other weights"
    page = promotion_gate.page(references, lines, present.classes, about)
    refused = [line for line in lines if line.worse]
    report = weights_in_force.write_report(settings.state.path, new.digest, page)
    print(page.split("\n\n## ")[0])
    print(f"report with both confusion matrices of each set: {report}")
    if refused:
        print("refused: the weights in force stay", flush=True)
        return Exit.FAILED
    who = verdicts.current_reviewer(os.environ).user
    weights_in_force.put_in_force(settings.state.path, args.candidate, new.digest, before, who)
    print(f"in force from the next start or reload on: {new.digest}")
    print(f"rollback would put {present.digest} in force again")
    return Exit.OK


def _references(
    args: argparse.Namespace,
    review: Review,
    present: checkpoint.Checkpoint,
    new: checkpoint.Checkpoint,
    memory: rehearsal.Rehearsal | None,
) -> Iterator[promotion_gate.ReferenceSet]:
    """Yield the reference sets with the predictions of both weights, at the operating point of the config."""
    if memory is not None:
        both = [judge_weights.predict_rehearsed(weights, memory, review) for weights in (present, new)]
        yield promotion_gate.ReferenceSet("base validation", memory.valid_labels, *both)
    if args.data is not None:
        _, held = site_images.split(site_images.load(args.data, present.classes))
        if len(held.labels):
            both = [judge_weights.predict_images(weights, held, review) for weights in (present, new)]
            yield promotion_gate.ReferenceSet("verdicts kept back", held.labels, *both)
    for root in args.reference:
        data = site_images.load(root, present.classes)
        both = [judge_weights.predict_images(weights, data, review) for weights in (present, new)]
        yield promotion_gate.ReferenceSet(str(root), data.labels, *both)
