"""``run``: run the daemon."""

from __future__ import annotations

import argparse

from watcher.config import loader
from watcher.service import load_model
from watcher.service.start import serve


def run(args: argparse.Namespace) -> int:
    """Watch the inbox, sort files and log, until SIGTERM or SIGINT."""
    return serve(args.config or loader.DEFAULT_PATH, load_model.load, replaced=args.directories_replaced)
