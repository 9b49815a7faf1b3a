"""``generalise``: train on several sources, judge on those left out, and make the weights that are shipped."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint
from watcher.training.data import labelled_images, multi_source_pool
from watcher.training.fit import result_rows, resume
from watcher.training.multi_source import (
    fold_figures,
    generalisation_chart,
    generalisation_report,
    left_out_folds,
    mixture_training,
    seed_spread,
    shipped_weights,
    unseen_sources,
)
from watcher.training.multi_source.fold_runs import FoldRuns
from watcher.training.multi_source.seed_spread import SHIPPED
from watcher.training.multi_source.unseen_sources import Pictures
from watcher.training.site import rehearsal


def run(args: argparse.Namespace) -> int:
    """Do one of the four steps."""
    steps = {"train": _train, "judge": _judge, "report": _report, "ship": _ship}
    return steps[args.step](args)


def _read(args: argparse.Namespace) -> FoldRuns:
    """Read the images and the folds, which every step but the report needs."""
    if not (args.data and args.split and args.pool and args.runs):
        raise Fatal("train, judge and ship need the images", "Give --data, --split, --pool and --runs.", Exit.USAGE)
    torch.set_num_threads(args.threads)
    train, valid = (
        labelled_images.load(labelled_images.listing(args.data, args.split, part)) for part in ("train", "valid")
    )
    labelled_images.refuse_broken(train, valid)
    pool = multi_source_pool.load(_pool_root(args), args.pool, train.classes)
    return FoldRuns(left_out_folds.read(args.folds, pool), train, valid, pool, args.runs)


def _pool_root(args: argparse.Namespace) -> Path:
    return Path(args.pool_data or args.pool.parent)


def _pictures(args: argparse.Namespace, runs: FoldRuns) -> Pictures:
    return unseen_sources.rendered(runs.pool, _pool_root(args))


def _train(args: argparse.Namespace) -> int:
    """Train every run that is not finished; several processes share them."""
    runs = _read(args)
    for name in runs.seeds:
        steps = runs.steps(name)
        if runs.steps_done(name) >= steps:
            continue
        with resume.claimed(args.runs / f"{name}.lock") as ours:
            if not ours:
                _say(f"{name}: another process trains it")
                continue
            training = runs.training(name)
            while not training.finished():
                row = training.epoch()
                done = mixture_training.steps_done(row.epoch, steps)
                _say(f"{name}: step {done} of {steps}, loss {row.train_loss:.4f}, {row.seconds:.0f} s")
            _say(f"{name}: done")
    return Exit.OK


def _judge(args: argparse.Namespace) -> int:
    """Judge the folds that are finished, and write the figures beside the folds; say which are not."""
    runs = _read(args)
    pictures = _pictures(args, runs)
    results = fold_figures.read(_results(args))
    for name in runs.seeds:
        if name == SHIPPED:  # judged as it is made, by `ship`
            continue
        try:
            net = runs.finished(name)
        except Fatal as error:
            _say(f"{name}: not judged: {error}")
            continue
        if seed_spread.is_fold(name):
            results[name] = fold_figures.judge_fold(runs, name, net, pictures, args.accept_rate)
        else:
            results[name], _ = fold_figures.judge(runs, name, net, pictures, args.accept_rate)
        fold_figures.write(_results(args), results)
        _say(f"{name}: {results[name]['valid']['errors']} validation errors")
    return Exit.OK


def _ship(args: argparse.Namespace) -> int:
    """Make the weights for use from the run ``shipped``, and judge them on what it left out."""
    if args.out is None:
        raise Fatal("ship writes weights", "Give --out FILE.", Exit.USAGE)
    runs = _read(args)
    net = runs.finished(SHIPPED)
    pictures = _pictures(args, runs)
    results = fold_figures.read(_results(args))
    figures, profile = fold_figures.judge(runs, SHIPPED, net, pictures, args.accept_rate)
    made = shipped_weights.make(runs, net, profile, figures, fold_figures.of_folds(results))
    saved = checkpoint.save(made, args.out)
    rehearsal.save(fold_figures.make_rehearsal(runs, SHIPPED, net, pictures), args.out.with_name(rehearsal.FILENAME))
    results[SHIPPED] = {**figures, "digest": saved.digest}
    fold_figures.write(_results(args), results)
    _say(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, digest {saved.digest}")
    _say(f"validation: {figures['valid']}")
    return Exit.OK


def _report(args: argparse.Namespace) -> int:
    """Write the page and its figure from what was judged."""
    results = fold_figures.read(_results(args))
    measured = fold_figures.of_folds(results)
    if not measured:
        raise Fatal(f"nothing is judged yet beside {args.folds}", "Run the step judge first.", Exit.DIRECTORY)
    home: Path = args.folds.parent
    generalisation_chart.draw(measured, home / "general.svg")
    improved = [row for row in result_rows.read(home.parent / "full" / "runs.jsonl") if row["variant"] == "improved"]
    improved.sort(key=lambda row: int(row["seed"]))
    seeds = seed_spread.small_sources(results) + seed_spread.shipped_recipe(results, improved)
    (home / "report.md").write_text(generalisation_report.page(measured, results.get(SHIPPED), seeds), "utf-8")
    _say(f"{home / 'report.md'}: {len(measured)} folds")
    return Exit.OK


def _results(args: argparse.Namespace) -> Path:
    return Path(args.folds).parent / "judged.json"


def _say(line: str) -> None:
    print(line, flush=True)
