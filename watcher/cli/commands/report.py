"""``report``: write the page on a study, and a sheet of images for those who have the data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from watcher.cli import contact_sheet, judge_weights
from watcher.core import atomic_write, shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.images import decode
from watcher.model import checkpoint
from watcher.training.data import labelled_images
from watcher.training.fit import evaluation, result_rows
from watcher.training.study import study_charts, study_plan, study_report

SHEET = "misclassified-{}.png"
"""The sheet of some weights. It has images of the data set: the repository ignores it, and no page shows it."""

SHIPPED = "shipped.svg"
SHIPPED_CAPTION = """\
Judged on validation images, at the temperature stored with the weights. Nearly all images have a confidence near 1, as
the lower panel shows. A bin of one or two images shows chance."""

AUDIT = "audit.md"


def run(args: argparse.Namespace) -> int:
    """Write ``report.md`` and its figures; with ``--data`` also judge weights, and show the images they get wrong."""
    if args.data and not args.split:
        raise Fatal("--data needs to know which images to judge", "Give --split CSV too.", Exit.USAGE)
    plan = study_plan.read(args.study)
    home: Path = args.study.parent
    out: Path = args.out or home
    runs = result_rows.read_named(args.runs, home / "runs.jsonl")
    table = study_report.results(plan, runs)
    if args.data:
        _shipped(args, out)
    audit, pictures = out / AUDIT, study_charts.draw(_controls(table), out)
    if (out / SHIPPED).exists():
        pictures.append(("Confidence of finished weights", SHIPPED, SHIPPED_CAPTION))
    text = study_report.page(plan, table, pictures, audit.read_text("utf-8") if audit.exists() else "")
    with atomic_write.replacing(out / "report.md") as partial:
        partial.write_text(text, "utf-8")
    print(f"{out / 'report.md'}: {len(table)} of {len(plan.variants)} variants, {_counted(table, runs)}")
    return Exit.OK


def _counted(table: Sequence[study_report.VariantResult], runs: Sequence[result_rows.Row]) -> str:
    left = len({run["digest"] for run in runs} - {run["digest"] for line in table for run in line.runs})
    also = f", {left} of them of other studies, variants, budgets or seeds, which do not count" if left else ""
    return f"{len(runs)} rows read{also}"


def _controls(table: Sequence[study_report.VariantResult]) -> Mapping[str, Sequence[result_rows.Row]]:
    """Return the runs of the recipes themselves, unchanged."""
    return {line.variant.name: line.runs for line in table if not line.variant.change}


def _shipped(args: argparse.Namespace, out: Path) -> None:
    """Judge weights on images, and write a diagram for the page and a sheet of the images that each gets wrong."""
    data = labelled_images.load(labelled_images.listing(args.data, args.split, args.part))
    reliability = {}
    for path in args.weights or [shipped_files.weights()]:
        weights = checkpoint.load(path)
        judged = judge_weights.evaluate(weights, data)
        bins = [list(column) for column in zip(*judged.reliability.bins, strict=True)]
        reliability[weights.name] = [{"bins": bins, "ece": judged.reliability.error}]
        print(_sheet(args, weights, judged, out))
    study_charts.reliability(reliability, out / SHIPPED)


def _sheet(args: argparse.Namespace, weights: checkpoint.Checkpoint, judged: evaluation.Evaluation, out: Path) -> str:
    path = out / SHEET.format(weights.name)
    heading = f"{weights.name} {weights.digest[:12]}: {len(judged.errors)} of {judged.total} wrong"
    tiles = [_tile(args.data, error) for error in judged.errors]
    contact_sheet.draw(tiles, heading, per_group=max(1, len(tiles))).save(path)
    return f"{path}: {heading} (images of the data set: not for the repository)"


def _tile(root: Path, error: evaluation.Error) -> contact_sheet.Tile:
    image = Image.fromarray(decode.grey64((root / error.path).read_bytes())) if error.predicted else None
    taken_for = f"as {error.predicted}" if error.predicted else "broken"
    return contact_sheet.Tile(image, (Path(error.path).name, taken_for, f"{error.confidence:.4f}"), error.true)
