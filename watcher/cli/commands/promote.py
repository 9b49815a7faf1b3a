"""``promote``: put new weights in force, if no class is worse by them. ``rollback`` undoes it."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from watcher.cli import judge_weights
from watcher.config import loader
from watcher.config.settings import Review
from watcher.core import atomic_write, shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, classifier, promotions, thresholds
from watcher.review import verdicts
from watcher.training.site import promotion_gate, rehearsal, site_images
from watcher.training.site.rehearsal import REHEARSAL


def run(args: argparse.Namespace) -> int:
    """Judge both on every reference set there is, write the report, and put the new weights in force if they pass.

    What is in force already is left so, and that is told.
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
    memory = rehearsal.load(args.rehearsal or shipped_files.weights(REHEARSAL))
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
    report = _put(settings.state.path, f"{new.digest}.md", page)
    print(page.split("\n\n## ")[0])
    print(f"report with both confusion matrices of each set: {report}")
    if refused:
        print("refused: the weights in force stay", flush=True)
        return Exit.FAILED
    _promote(settings.state.path, args.candidate, new.digest, before)
    print(f"in force from the next start or reload on: {new.digest}")
    print(f"rollback would put {present.digest} in force again")
    return Exit.OK


def _references(
    args: argparse.Namespace,
    review: Review,
    present: checkpoint.Checkpoint,
    new: checkpoint.Checkpoint,
    memory: rehearsal.Rehearsal | None,
) -> Iterator[promotion_gate.Reference]:
    """What both say as the daemon here would, at the operating point that the config asks for."""
    if memory is not None:
        both = [judge_weights.of_rehearsed(weights, memory, review) for weights in (present, new)]
        yield promotion_gate.Reference("base validation", memory.valid_labels, *both)
    if args.data is not None:
        _, held = site_images.split(site_images.load(args.data, present.classes))
        if len(held.labels):
            yield promotion_gate.Reference(
                "verdicts kept back", held.labels, *(judge_weights.of_images(w, held, review) for w in (present, new))
            )
    for root in args.reference:
        data = site_images.load(root, present.classes)
        yield promotion_gate.Reference(
            str(root), data.labels, *(judge_weights.of_images(w, data, review) for w in (present, new))
        )


def _put(state: Path, name: str, text: str) -> Path:
    try:
        place = promotions.make_directory(state) / name
        place.write_text(text, "utf-8")
    except OSError as error:
        raise Fatal(
            f"the report can not be written to {state / promotions.DIRECTORY}: {error.strerror}",
            "Run this as the daemon's user, or as root, and make room there.",
            Exit.DIRECTORY,
        ) from error
    return place


def _promote(state: Path, candidate: Path, digest: str, before: Path | None) -> None:
    """Put the weights in force in the place of those they were judged against."""
    place = promotions.weights_file(state, digest)
    with promotions.locked(state):
        if promotions.in_force(state) != before:
            told = "other weights were put in force meanwhile"
            raise Fatal(told, "Promote it anew, to be judged against those.", Exit.FAILED)
        if not _is_there(place, digest):
            _copy(candidate, place, digest)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        promotions.write(
            state,
            [*promotions.history(state), promotions.Promotion(digest, now, verdicts.current_reviewer(os.environ).user)],
        )


def _is_there(place: Path, digest: str) -> bool:
    """From an earlier promotion, and still whole."""
    try:
        return checkpoint.load(place).digest == digest
    except Fatal:
        return False


def _copy(candidate: Path, place: Path, digest: str) -> None:
    try:
        with atomic_write.replacing(place) as partial:
            shutil.copyfile(candidate, partial)
            if checkpoint.load(partial).digest != digest:
                raise Fatal(f"{candidate} is another file now than was judged", "Promote it anew.", Exit.FAILED)
    except OSError as error:
        raise Fatal(
            f"the weights can not be copied to {place}: {error.strerror}",
            "Give yourself the right to write in the state directory, and make room there.",
            Exit.DIRECTORY,
        ) from error
