"""Declare the commands to train, judge and measure networks."""

from __future__ import annotations

from pathlib import Path

from watcher.cli.arguments import shared_options


def _evaluate(add: shared_options.Add) -> None:
    command = add("evaluate", "judge weights on labelled images")
    shared_options.data(command, split_required=False)
    command.add_argument("--part", metavar="NAME", help="the part of the split to judge on, e.g. valid or test")
    command.add_argument("--picture", type=Path, metavar="PNG", help="draw the confusion matrix")
    shared_options.json(command, "print one JSON object")
    shared_options.weights(command)


def _train(add: shared_options.Add) -> None:
    command = add("train", "train a network by a recipe")
    command.add_argument("--recipe", choices=("improved", "baseline", "plus"), default="improved")
    shared_options.data(command, split_required=True)
    command.add_argument("--train-part", default="train", metavar="NAME", help="default: train")
    command.add_argument("--part", default="valid", metavar="NAME", help="the part to validate on (default: valid)")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/RECIPE-seedN; a run that was begun there is resumed"
    )
    command.add_argument("--seed", type=shared_options.count, default=0)
    command.add_argument("--threads", type=shared_options.count, default=0, help="CPU threads (default: all cores)")


def _compress(add: shared_options.Add) -> None:
    command = add("compress", "make trained weights small and fast: fold, factor, fine-tune, halve")
    shared_options.data(command, split_required=True)
    command.add_argument("--weights", type=Path, required=True, metavar="FILE", help="weights made by train")
    command.add_argument("--rank", type=shared_options.count, default=64, help="rank of the first linear layer")
    command.add_argument(
        "--epochs", type=shared_options.count, default=2, help="epochs of fine-tuning the linear layers"
    )
    command.add_argument("--learning-rate", type=float, default=0.005)
    command.add_argument("--seed", type=shared_options.count, default=0)
    command.add_argument("--train-part", default="train", metavar="NAME")
    command.add_argument(
        "--part", default="valid", metavar="NAME", help="the part to choose the best epoch and set thresholds on"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE")


def _ablate(add: shared_options.Add) -> None:
    command = add("ablate", "train the variants of a study; runs that were begun are resumed")
    command.add_argument("--study", type=Path, default=Path("docs/study/study.yaml"), metavar="YAML")
    shared_options.data(command, split_required=True)
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for runs under way, and for new rows"
    )
    command.add_argument(
        "--runs", type=Path, metavar="JSONL", help="rows of finished runs (default: runs.jsonl beside the study)"
    )
    command.add_argument(
        "--threads",
        type=shared_options.count,
        default=1,
        help="CPU threads; it is better to start this once for each core",
    )
    command.add_argument(
        "--collect", action="store_true", help="only copy the rows of finished runs from --out to --runs"
    )


def _report(add: shared_options.Add) -> None:
    command = add("report", "write the report on a study, with its figures, from the rows of its runs")
    command.add_argument("--study", type=Path, default=Path("docs/study/study.yaml"), metavar="YAML")
    command.add_argument("--runs", type=Path, nargs="+", metavar="JSONL", help="default: runs.jsonl beside the study")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: the directory of the study")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="also judge --weights, and show the images that they get wrong"
    )
    command.add_argument(
        "--split",
        type=Path,
        metavar="CSV",
        help="the files of --data to use: a CSV with the columns path, class, split",
    )
    command.add_argument("--part", default="valid", metavar="NAME", help="the part of the split (default: valid)")
    command.add_argument(
        "--weights", type=shared_options.weights_file, nargs="+", metavar="FILE", help="default: the shipped ones"
    )


def _audit_data(add: shared_options.Add) -> None:
    command = add("audit-data", "find duplicates and near-duplicates across a split, and doubtful labels")
    shared_options.data(command, split_required=True)
    command.add_argument("--train-part", default="train", metavar="NAME", help="default: train")
    command.add_argument("--part", default="valid", metavar="NAME", help="the part to validate on (default: valid)")
    command.add_argument(
        "--weights", type=shared_options.weights_file, nargs="+", metavar="FILE", help="default: the shipped ones"
    )
    studies = [Path("docs/study/study.yaml"), Path("docs/study/full/study.yaml")]
    command.add_argument(
        "--study", type=Path, nargs="+", default=studies, metavar="YAML", help="studies whose runs show doubtful labels"
    )
    command.add_argument("--runs", type=Path, nargs="+", metavar="JSONL", help="default: runs.jsonl beside the study")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory for audit.md (default: that of the first study, if there is one)",
    )


def _generalise(add: shared_options.Add) -> None:
    command = add("generalise", "train on several sources, judge on the sources left out, and make the shipped weights")
    command.add_argument("step", choices=("train", "judge", "ship", "report"))
    command.add_argument("--folds", type=Path, default=Path("docs/study/general/folds.yaml"), metavar="YAML")
    command.add_argument("--data", type=Path, metavar="DIR", help="the base data: a directory of class directories")
    command.add_argument(
        "--split", type=Path, metavar="CSV", help="its parts train and valid: a CSV with the columns path, class, split"
    )
    command.add_argument("--pool", type=Path, metavar="CSV", help="further images to train and judge on, one a row")
    command.add_argument(
        "--pool-data",
        type=Path,
        metavar="DIR",
        help="the directory that its paths start from (default: that of --pool)",
    )
    command.add_argument(
        "--runs", type=Path, metavar="DIR", help="directory of the trainings; several processes may share it"
    )
    command.add_argument(
        "--accept-rate",
        type=shared_options.share,
        default=shared_options.ACCEPT_RATE,
        metavar="SHARE",
        help="share of the base data that is filed without a person",
    )
    command.add_argument(
        "--threads",
        type=shared_options.count,
        default=1,
        help="CPU threads; it is better to start this once for each core",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="the file for the weights that ship makes")


def _sketch(add: shared_options.Add) -> None:
    command = add("sketch", "fit the synthetic-image sampler of the demo to training images")
    shared_options.data(command, split_required=False)
    command.add_argument("--train-part", default="train", metavar="NAME")
    command.add_argument("--components", type=int, default=40)
    command.add_argument("--seed", type=shared_options.count, default=0)
    command.add_argument("--out", type=Path, default=Path("weights/sketch.safetensors"), metavar="FILE")


def _bench(add: shared_options.Add) -> None:
    command = add("bench", "measure throughput and latency against a simple loop and the bare limit")
    command.add_argument("--data", type=Path, metavar="DIR", help="images to use (default: synthetic ones)")
    command.add_argument("--images", type=int, default=5833, metavar="N")
    command.add_argument("--runs", type=int, default=3, metavar="N")
    shared_options.weights(command)
    command.add_argument(
        "--split",
        type=Path,
        metavar="CSV",
        help="the files of --data to use: a CSV with the columns path, class, split",
    )
    command.add_argument("--part", metavar="NAME", help="the part of the split to use, e.g. valid")
    command.add_argument(
        "--soak", type=int, default=0, metavar="N", help="also watch the memory over N files, e.g. 50000"
    )
    command.add_argument(
        "--dir", type=Path, metavar="DIR", help="directory to work in (default: the temporary directory)"
    )
    shared_options.json(command, "print one JSON object")


COMMANDS: tuple[shared_options.Command, ...] = (
    _evaluate,
    _train,
    _compress,
    _ablate,
    _report,
    _audit_data,
    _generalise,
    _sketch,
    _bench,
)
"""Commands in the order of the help."""
