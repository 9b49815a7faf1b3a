"""``check-config``: what a config file amounts to. Starts nothing and touches no directory."""

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
    """Say that the file is fine, and every value in effect, environment and defaults included.

    Raises:
        ConfigError: it is not fine.
    """
    path: Path = args.config or loader.default_path()
    effective: Effective = loader.load(path, os.environ).model_dump(mode="json")
    if args.json:
        print(json.dumps(effective))
    else:
        print(f"{path} is fine. The values in effect:\n\n{_lines(effective)}")
    return Exit.OK


def _lines(effective: Effective) -> str:
    """As YAML, so that it can be kept as a config file; long paths stay on one line."""
    sections = (yaml.safe_dump({name: keys}, sort_keys=False, width=2**31) for name, keys in effective.items())
    return "\n".join(sections).rstrip()
