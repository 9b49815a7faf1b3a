"""``report``: the page on a study, and beside it what only those with the data may see."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from watcher import assets, checkpoint, contact_sheet, decode, whole
from watcher.commands import evaluate as judging
from watcher.errors import Exit, Fatal
from watcher.training import dataset, evaluate, figures, report, rows, study

SHEET = "misclassified.png"
"""Holds images of the data set: the repository ignores it, and the page does not show it."""

AUDIT = "audit.md"


def run(args: argparse.Namespace) -> int:
    """Write ``report.md`` and its figures; with ``--data`` also a sheet of misclassified images."""
    if args.data and not args.split:
        raise Fatal("--data needs to know which images to judge", "Give --split CSV too.", Exit.USAGE)
    plan = study.read(args.study)
    home: Path = args.study.parent
    out: Path = args.out or home
    runs = rows.named(args.runs, home / "runs.jsonl")
    table = report.lines(plan, runs)
    audit = out / AUDIT
    text = report.page(plan, table, _draw(table, out), audit.read_text("utf-8") if audit.exists() else "")
    with whole.written(out / "report.md") as partial:
        partial.write_text(text, "utf-8")
    print(f"{out / 'report.md'}: {len(table)} of {len(plan.variants)} variants, {_counted(table, runs)}")
    if args.data:
        print(_sheet(args, out))
    return Exit.OK


def _counted(table: Sequence[report.Line], runs: Sequence[rows.Row]) -> str:
    left = len({run["digest"] for run in runs} - {run["digest"] for line in table for run in line.runs})
    also = f", {left} of them of other studies, variants, budgets or seeds, which do not count" if left else ""
    return f"{len(runs)} rows read{also}"


def _draw(table: Sequence[report.Line], out: Path) -> list[tuple[str, str]]:
    """The figures of the recipes themselves, unchanged; titles and file names."""
    controls: Mapping[str, Sequence[rows.Row]] = {
        line.variant.name: line.runs for line in table if not line.variant.change
    }
    if not controls:
        return []
    figures.confusions(controls, out / "confusion.svg")
    figures.reliability(controls, out / "reliability.svg")
    figures.curves(controls, out / "curves.svg")
    return [
        ("Confusion of the recipes", "confusion.svg"),
        ("Is confidence worth its name?", "reliability.svg"),
        ("Losses while training", "curves.svg"),
    ]


def _sheet(args: argparse.Namespace, out: Path) -> str:
    weights = checkpoint.load(args.weights or assets.weights())
    data = dataset.load(dataset.listing(args.data, args.split, args.part))
    judged = judging.judge(weights, data)
    heading = f"{weights.name} {weights.digest[:12]}: {len(judged.errors)} of {judged.total} wrong"
    contact_sheet.draw([_tile(args.data, error) for error in judged.errors], heading).save(out / SHEET)
    return f"{out / SHEET}: {heading} (images of the data set: not for the repository)"


def _tile(root: Path, error: evaluate.Error) -> contact_sheet.Tile:
    image = Image.fromarray(decode.grey64((root / error.path).read_bytes())) if error.predicted else None
    caption = (error.path, f"taken for {error.predicted}" if error.predicted else "broken", f"{error.confidence:.4f}")
    return contact_sheet.Tile(image, caption, error.true)
