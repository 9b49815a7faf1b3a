"""Declare the options that several commands have in common, and the types of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from watcher.core import shipped_files

Add = Callable[[str, str], argparse.ArgumentParser]
"""A function that adds a command, given its name and its purpose."""

Command = Callable[[Add], None]
"""A function that declares the arguments of one command."""

ACCEPT_RATE = 0.995
"""Default share of the base data's validation images that is filed without a person."""


def config(
    command: argparse.ArgumentParser, default: str = "./config.yaml, else /etc/mednet-watcher/config.yaml"
) -> None:
    """Add the option for the config file."""
    command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {default}")


def share(text: str) -> float:
    """Parse a number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def count(text: str) -> int:
    """Parse a whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be less than 0")
    return value


def number(text: str) -> int:
    """Parse the number of a decision or batch, which the ledger holds in 64 bits with a sign."""
    value = count(text)
    if value >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text} is more than the ledger can hold")
    return value


def port(text: str) -> int:
    """Parse the number of a port."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port from 0 to 65535")
    return value


def weights_file(text: str) -> Path:
    """Parse a path. If there is no such file, it may be the name of shipped weights, such as ``mednet-plus``."""
    path, shipped = Path(text), shipped_files.weights(f"{text}.safetensors")
    return shipped if path.name == text and not path.exists() and shipped.exists() else path


def weights(command: argparse.ArgumentParser, default: str = "those shipped with the product") -> None:
    """Add the option for the weights."""
    text = f"a file, or the name of shipped weights such as mednet-plus (default: {default})"
    command.add_argument("--weights", type=weights_file, metavar="FILE", help=text)


IN_FORCE = "those in force: set in the config, else promoted, else shipped"


def json(command: argparse.ArgumentParser, text: str) -> None:
    """Add the switch to JSON. ``text`` is its help."""
    command.add_argument("--json", action="store_true", help=text)


def data(command: argparse.ArgumentParser, *, split_required: bool) -> None:
    """Add the options for labelled images."""
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="a directory of class directories")
    text = "the files to use: a CSV with the columns path, class, split"
    command.add_argument("--split", type=Path, required=split_required, metavar="CSV", help=text)
