"""``doctor``: check directories, events, weights, device and decoders. It may run beside a daemon."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections import Counter

from watcher.config import loader
from watcher.core.errors import Exit
from watcher.core.printable import printable
from watcher.service.doctor.directory_checks import Check
from watcher.service.doctor.program_checks import checks


def run(args: argparse.Namespace) -> int:
    """Print each check, with advice where something is wrong. Return exit code 1 if a check fails."""
    settings = loader.load(args.config or loader.default_path(), os.environ)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the probe's files are removed
    states: Counter[str] = Counter()
    for check in checks(settings):
        states[check.state] += 1
        print(_json_line(check) if args.json else _text(check), flush=True)
    if not args.json:
        print(f"{states['ok']} ok, {states['warn']} to look at, {states['fail']} will not work")
    return Exit.FAILED if states["fail"] else Exit.OK


def _json_line(check: Check) -> str:
    return json.dumps(
        {"state": check.state, "what": check.subject, "told": check.result, "advice": check.advice},
    )


def _text(check: Check) -> str:
    line = f"{check.state:4}  {check.subject:20}  {printable(check.result)}"
    return line if check.advice is None else f"{line}\n{'':28}{printable(check.advice)}"
