"""``classify``: show what the daemon would do with files. With ``--sort-into`` their copies are sorted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from watcher.cli import classified_files
from watcher.cli.classified_files import Result
from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Retry, Vanished
from watcher.core.printable import printable
from watcher.core.records import Decision
from watcher.filing import mover
from watcher.filing.destinations import Destinations
from watcher.images.decoder_pool import DecoderPool
from watcher.model import checkpoint, promotions, thresholds
from watcher.monitoring import log
from watcher.service import load_model, stations


def run(args: argparse.Namespace) -> int:
    """Print one line for each file, in the given order. Return exit code 1 if a file is missing or was not copied."""
    settings = loader.load_or_default(args.config)
    logger = log.configure("console", "warning", sys.stderr)
    pool = DecoderPool(None, paths_and_limits.decoder_limits(settings), settings.decode.timeout_s)
    pool.start()
    try:
        weights = checkpoint.load(promotions.weights_path(args.weights, settings))
        policy = thresholds.policy(settings.review, weights)
        network, _ = load_model.load(settings, weights, logger)
        line = _json_line(weights.digest) if args.json else _text_line
        sort = _Sorter(args.sort_into, weights.classes) if args.sort_into else None
        if not args.json:
            print(f"{'outcome':10} {'class':10} {'conf.':>7}  {'file':40} top three")
        failed = False
        files = classified_files.files_below(args.paths)
        rules = stations.review_rules(settings)
        for path, result, decision in classified_files.classify(
            files, pool, network, policy, settings.batch.size, rules
        ):
            destination = sort(path, result, decision) if sort else None
            print(line(path, decision, destination), flush=args.json)
            failed |= decision.reason == "not_found" or bool(sort and destination is None)
    finally:
        pool.close()
    return Exit.FAILED if failed else Exit.OK


class _Sorter:
    """Copies files into class directories, which it makes. Returns the copy's path, or None after an error."""

    def __init__(self, root: Path, classes: Iterable[str]) -> None:
        self._places = Destinations(root, root / "review", root / "quarantine", root / "rejected")
        for name in (*classes, "review", "quarantine"):
            mover.prepare(root / name)

    def __call__(self, path: str, result: Result, decision: Decision) -> Path | None:
        try:
            return mover.copy(Path(path), result.identity, result.digest, self._places.of(decision))
        except (Retry, Vanished) as error:
            print(f"mednet-watcher: not copied: {printable(str(error))}", file=sys.stderr)
            return None


def _json_line(model: str) -> Callable[[str, Decision, Path | None], str]:
    def line(path: str, decision: Decision, destination: Path | None) -> str:
        fields = {
            "path": path,
            "outcome": decision.outcome.value,
            "class": decision.label,
            "confidence": decision.confidence,
            "reason": decision.reason,
            "top": decision.top,
            "model": model,
        }
        if decision.detail is not None:
            fields["detail"] = decision.detail
        if destination is not None:
            fields["destination"] = str(destination)
        return json.dumps(fields)

    return line


def _text_line(path: str, decision: Decision, destination: Path | None) -> str:
    top = "  ".join(f"{name} {probability:.4f}" for name, probability in decision.top)
    end = top or printable(f"{decision.reason}: {decision.detail}")
    if decision.reason and decision.top:
        end += f"  ({decision.reason})"
    if destination:
        end += f" -> {printable(str(destination))}"
    confidence = f"{decision.confidence:7.4f}" if decision.top else " " * 7
    return f"{decision.outcome.value:10} {decision.label or '-':10} {confidence}  {printable(path):40} {end}"
