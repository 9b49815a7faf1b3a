"""``generalise``: train on several sources, judge on those left out, and make the weights that are shipped."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, classifier, mednet
from watcher.training.data import labelled_images, multi_source_pool
from watcher.training.fit import calibration, compression, result_rows, resume
from watcher.training.fit.training_loop import TrainingRun
from watcher.training.multi_source import (
    generalisation_chart,
    generalisation_report,
    left_out_folds,
    mixture_training,
    seed_spread,
    unseen_sources,
    verdict_benefit,
)
from watcher.training.site import rehearsal
from watcher.training.site.rehearsal import REHEARSAL

SHIPPED = seed_spread.SHIPPED

NAME = "mednet-general"


def run(args: argparse.Namespace) -> int:
    """Do one of its four steps."""
    steps = {"train": _train, "judge": _judge, "report": _report, "ship": _ship}
    return steps[args.step](args)


class _Data:
    """What all steps but the report work on."""

    def __init__(self, args: argparse.Namespace) -> None:
        if not (args.data and args.split and args.pool and args.runs):
            raise Fatal("train, judge and ship need the images", "Give --data, --split, --pool and --runs.", Exit.USAGE)
        torch.set_num_threads(args.threads)
        self.train, self.valid = (
            labelled_images.load(labelled_images.listing(args.data, args.split, part)) for part in ("train", "valid")
        )
        labelled_images.refuse_broken(self.train, self.valid)
        self.root: Path = args.pool_data or args.pool.parent
        self.pool = multi_source_pool.load(self.root, args.pool, self.train.classes)
        self.plan = left_out_folds.read(args.folds, self.pool)

    @property
    def seeds(self) -> dict[str, int]:
        """The runs, in their order, with the seed of each."""
        plan = self.plan
        more = {**{run: fold.more_seeds for run, fold in plan.folds.items()}, SHIPPED: plan.shipped.more_seeds}
        return {
            **dict.fromkeys(more, plan.seed),
            **{seed_spread.name(run, seed): seed for run, others in more.items() for seed in others},
        }

    def trained_on(self, name: str) -> npt.NDArray[np.bool_]:
        """Mask of the pool's images that a run is trained on."""
        run = seed_spread.origin(name)
        if run == SHIPPED:
            return ~np.isin(self.pool.grades, self.plan.shipped.without_grades)
        return left_out_folds.trained_on(self.plan.folds[run], self.pool)

    def judged_on(self, name: str) -> npt.NDArray[np.bool_]:
        """Mask of those that it is judged on."""
        run = seed_spread.origin(name)
        return ~self.trained_on(name) if run == SHIPPED else left_out_folds.left_out(self.plan.folds[run], self.pool)

    def steps(self, name: str) -> int:
        """How long a run is."""
        return self.plan.shipped.steps if seed_spread.origin(name) == SHIPPED else self.plan.steps

    def job(self, name: str, runs: Path) -> TrainingRun:
        """A run, where it ended."""
        recipe = replace(mixture_training.Mixture(), steps=self.steps(name))
        part = self.pool.chosen(self.trained_on(name))
        job = mixture_training.prepare(recipe, self.train, part, runs / name, self.seeds[name], f"{NAME}-{name}")
        job.resume()
        return job


def _train(args: argparse.Namespace) -> int:
    """Every run that is not finished; several processes share them."""
    data = _Data(args)
    for name in data.seeds:
        if _steps_done(_network(args.runs, name)) >= data.steps(name):
            continue
        with resume.claimed(args.runs / f"{name}.lock") as ours:
            if not ours:
                _say(f"{name}: in other hands")
                continue
            job = data.job(name, args.runs)
            steps = data.steps(name)
            while not job.finished():
                row = job.epoch()
                done = mixture_training.steps_done(row.epoch, steps)
                _say(f"{name}: step {done} of {steps}, loss {row.train_loss:.4f}, {row.seconds:.0f} s")
            _say(f"{name}: done")
    return Exit.OK


def _network(runs: Path, name: str) -> checkpoint.Checkpoint | None:
    """A run's network as it stands; None: the run has not begun."""
    path = runs / name / "net.safetensors"
    return checkpoint.load(path) if path.exists() else None


def _steps_done(found: checkpoint.Checkpoint | None) -> int:
    return 0 if found is None else int(found.training["steps"])


def _stored(runs: Path, name: str, steps: int) -> mednet.MedNet:
    """A run's network as it would be shipped: folded, its numbers halved.

    Raises:
        Fatal: exit code 5; the run is not there, or not finished.
    """
    found = _network(runs, name)
    if found is None or _steps_done(found) < steps:
        raise Fatal(
            f"{runs / name}: {_steps_done(found)} of {steps} steps are done",
            "Run the step train until it is finished.",
            Exit.DIRECTORY,
        )
    return compression.halved(mednet.fold_batch_norm(classifier.build(found)))


def _judge(args: argparse.Namespace) -> int:
    """Judge the folds that are finished, and keep the figures beside the folds; tell of the others."""
    data = _Data(args)
    pictures = unseen_sources.views(data.pool, data.root)
    results = _results(args)
    for name in data.seeds:
        if name == SHIPPED:  # judged as it is made, by `ship`
            continue
        try:
            net = _stored(args.runs, name, data.steps(name))
        except Fatal as error:
            _say(f"{name}: not judged: {error}")
            continue
        figures = _all_figures if seed_spread.is_fold(name) else _figures
        results[name], *_ = figures(data, name, net, pictures, args.accept_rate)
        _write(args, results)
        _say(f"{name}: {results[name]['valid']['errors']} validation errors")
    return Exit.OK


def _figures(
    data: _Data, name: str, net: mednet.MedNet, pictures: unseen_sources.Pictures, accept_rate: float
) -> tuple[dict[str, Any], unseen_sources.Reference]:
    seen, left = data.trained_on(name), data.judged_on(name)
    ref = unseen_sources.reference(net, data.train, data.valid, data.pool.chosen(seen), pictures[seen])
    found = unseen_sources.judge(net, ref, data.pool.chosen(left), pictures[left], accept_rate)
    about = {"steps": data.steps(name), "seed": data.seeds[name], "pool_images": int(seen.sum())}
    return {**about, "accept_rate": accept_rate, **found}, ref


def _all_figures(
    data: _Data, name: str, net: mednet.MedNet, pictures: unseen_sources.Pictures, accept_rate: float
) -> tuple[dict[str, Any], unseen_sources.Reference]:
    """With what verdicts of the sources left out change."""
    figures, ref = _figures(data, name, net, pictures, accept_rate)
    seen, left = data.trained_on(name), data.judged_on(name)
    memory = unseen_sources.rehearse(net, data.train, data.valid, data.pool.chosen(seen), pictures[seen])
    told = verdict_benefit.teach(net, ref, memory, data.pool.chosen(left), pictures[left], accept_rate)
    refused = verdict_benefit.spoil(net, ref, memory, data.train.classes, accept_rate)
    return {**figures, "taught": told, "spoilt_refused": refused}, ref


def _ship(args: argparse.Namespace) -> int:
    """Make the weights for use of the run ``shipped``, and judge them on what it left out."""
    if args.out is None:
        raise Fatal("ship writes weights", "Give --out FILE.", Exit.USAGE)
    data = _Data(args)
    net = _stored(args.runs, SHIPPED, data.steps(SHIPPED))
    pictures = unseen_sources.views(data.pool, data.root)
    figures, ref = _figures(data, SHIPPED, net, pictures, args.accept_rate)
    results = _results(args)
    classes = data.train.classes
    measured = _folds(results)
    made = checkpoint.Checkpoint(
        name=NAME,
        architecture=net.config.to_dict(),
        classes=classes,
        tensors={**{key: value.half().numpy() for key, value in net.state_dict().items()}, **ref.known.tensors()},
        thresholds={**figures["limits"], "temperature": ref.temperature},
        operating=_points(ref, measured, len(classes)),
        training={
            "recipe": replace(mixture_training.Mixture(), steps=data.plan.shipped.steps).plain(),
            "seed": data.plan.seed,
            "train_images": len(data.train.labels),
            "pool_images": figures["pool_images"],
            "without_grades": list(data.plan.shipped.without_grades),
            "valid_errors": figures["valid"]["errors"],
            "validation": _usual(ref, figures["limits"], classes),
        },
    )
    saved = checkpoint.save(made, args.out)
    seen = data.trained_on(SHIPPED)
    memory = unseen_sources.rehearse(net, data.train, data.valid, data.pool.chosen(seen), pictures[seen])
    rehearsal.save(memory, args.out.with_name(REHEARSAL))
    results[SHIPPED] = {**figures, "digest": saved.digest}
    _write(args, results)
    _say(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, digest {saved.digest}")
    _say(f"validation: {figures['valid']}")
    return Exit.OK


def _points(ref: unseen_sources.Reference, measured: dict[str, Any], classes: int) -> tuple[dict[str, float], ...]:
    """Thresholds for each share of the base data that is to be filed, and what that costs on unseen sources."""
    if not measured:
        return ()
    return tuple(
        {
            "accept_rate": point["accept_rate"],
            "wrong_rate": point["filed_wrong"] / max(point["filed_right"] + point["filed_wrong"], 1),
            **asdict(ref.limits(point["accept_rate"], classes)),
        }
        for point in generalisation_report.operating(measured)
    )


def _usual(ref: unseen_sources.Reference, limits: dict[str, float], classes: tuple[str, ...]) -> dict[str, Any]:
    """What the daemon's figures would be on the validation images: what drift is measured against."""
    shares = calibration.probabilities(ref.logits, ref.temperature)
    filed = calibration.Thresholds(**limits).accept(shares, ref.known.distance(ref.features), len(classes))
    said, sure = shares[:, : len(classes)].argmax(axis=1), shares[:, : len(classes)].max(axis=1)
    mix = np.bincount(said, minlength=len(classes)) / len(said)
    return {
        "review_rate": round(1 - float(filed.mean()), 5),
        "confidence_mean": round(float(sure.mean()), 5),
        "class_mix": {name: round(float(share), 5) for name, share in zip(classes, mix, strict=True)},
    }


def _report(args: argparse.Namespace) -> int:
    """Write the page and its figure from what was judged."""
    results = _results(args)
    measured = _folds(results)
    if not measured:
        raise Fatal(f"nothing is judged yet beside {args.folds}", "Run the step judge first.", Exit.DIRECTORY)
    home: Path = args.folds.parent
    generalisation_chart.draw(measured, home / "general.svg")
    improved = [row for row in result_rows.read(home.parent / "full" / "runs.jsonl") if row["variant"] == "improved"]
    beside = seed_spread.small(results) + seed_spread.beside(
        results, sorted(improved, key=lambda row: int(row["seed"]))
    )
    (home / "report.md").write_text(generalisation_report.page(measured, results.get(SHIPPED), beside), "utf-8")
    _say(f"{home / 'report.md'}: {len(measured)} folds")
    return Exit.OK


def _place(args: argparse.Namespace) -> Path:
    return Path(args.folds).parent / "judged.json"


def _results(args: argparse.Namespace) -> dict[str, Any]:
    place = _place(args)
    try:
        return dict(json.loads(place.read_text("utf-8"))) if place.exists() else {}
    except ValueError as error:
        raise Fatal(
            f"{place} is damaged, so nothing that was judged can be told: {error}",
            "Take it from version control, or remove it and run the steps judge and ship again.",
            Exit.DIRECTORY,
        ) from error


def _folds(results: dict[str, Any]) -> dict[str, Any]:
    return {name: judged for name, judged in results.items() if seed_spread.is_fold(name)}


def _write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    place = _place(args)
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results))
    with atomic_write.replacing(place) as partial:
        partial.write_text("{\n" + lines + "\n}\n", "utf-8")


def _say(line: str) -> None:
    print(line, flush=True)
