"""``doctor``: will it work here? Directories, events, weights, device, decoders. Safe beside a running daemon."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections import Counter
from dataclasses import asdict

from watcher.config import loader
from watcher.core.errors import Exit
from watcher.core.printable import printable
from watcher.service.doctor.directory_checks import Check
from watcher.service.doctor.program_checks import checks


def run(args: argparse.Namespace) -> int:
    """Print one line for each check, with advice where something is not well. Exit code 1 if something fails."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: probes removed
    seen: Counter[str] = Counter()
    for check in checks(settings):
        seen[check.state] += 1
        print(json.dumps(asdict(check)) if args.json else _text(check), flush=True)
    if not args.json:
        print(f"{seen['ok']} ok, {seen['warn']} to look at, {seen['fail']} will not work")
    return Exit.FAILED if seen["fail"] else Exit.OK


def _text(check: Check) -> str:
    line = f"{check.state:4}  {check.what:20}  {printable(check.told)}"
    return line if check.advice is None else f"{line}\n{'':28}{printable(check.advice)}"
