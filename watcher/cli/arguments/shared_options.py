"""What several commands are told alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from watcher.core import shipped_files

Add = Callable[[str, str], argparse.ArgumentParser]
"""Adds a command, by its name and by what it does."""

Command = Callable[[Add], None]
"""Says all that one command is told."""

ACCEPT_RATE = 0.995
"""Share of the base data's validation images that is filed, where nothing else is asked for."""


def config(
    command: argparse.ArgumentParser, default: str = "./config.yaml, else /etc/mednet-watcher/config.yaml"
) -> None:
    """The option for the config file."""
    command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {default}")


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return value


def count(text: str) -> int:
    """A whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def number(text: str) -> int:
    """The number of a decision or batch; the ledger's end at 64 bits with a sign."""
    value = count(text)
    if value >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text} is more than the ledger can hold")
    return value


def port(text: str) -> int:
    """A number that a port may have."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return value


def weights_file(text: str) -> Path:
    """A path, or where nothing is there the name of weights that come with the product, such as ``mednet-plus``."""
    path, shipped = Path(text), shipped_files.weights(f"{text}.safetensors")
    return shipped if path.name == text and not path.exists() and shipped.exists() else path


def weights(command: argparse.ArgumentParser, default: str = "those shipped with the product") -> None:
    """The option for the weights."""
    told = f"a file, or the name of shipped ones such as mednet-plus (default: {default})"
    command.add_argument("--weights", type=weights_file, metavar="FILE", help=told)


IN_FORCE = "those in force here: of the config, else promoted, else shipped"


def json(command: argparse.ArgumentParser, told: str) -> None:
    """The switch to JSON."""
    command.add_argument("--json", action="store_true", help=told)


def data(command: argparse.ArgumentParser, *, split_required: bool) -> None:
    """The options for labelled images."""
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="a directory of class directories")
    told = "which files to use: a CSV with the columns path, class, split"
    command.add_argument("--split", type=Path, required=split_required, metavar="CSV", help=told)
