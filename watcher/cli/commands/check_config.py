"""``check-config``: show the settings that a config file results in. Starts nothing and touches no directory."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import yaml

from watcher.config import loader
from watcher.core.errors import Exit

Effective = dict[str, dict[str, object]]


def run(args: argparse.Namespace) -> int:
    """Check a config file, and print every value in effect, including those of the environment and the defaults.

    Raises:
        ConfigError: the file has an error.
    """
    path: Path = args.config or loader.default_path()
    effective: Effective = loader.load(path, os.environ).model_dump(mode="json")
    if args.json:
        print(json.dumps(effective))
    else:
        print(f"{path} is fine. The values in effect:\n\n{_lines(effective)}")
    return Exit.OK


def _lines(effective: Effective) -> str:
    """Return the values as YAML, which is a valid config file. Long paths stay on one line."""
    sections = (yaml.safe_dump({name: keys}, sort_keys=False, width=2**31) for name, keys in effective.items())
    return "\n".join(sections).rstrip()
