"""Put files back for ``retry`` and ``undo``, and print the result of each."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit
from watcher.core.printable import printable
from watcher.core.records import Ending
from watcher.filing import put_back, recovery
from watcher.filing.put_back import PutBackResult
from watcher.filing.put_back_requests import NameOf, PutBackRequest, name_in_inbox
from watcher.service import stations


def run(
    requests: Callable[[], Iterable[PutBackRequest]],
    why: put_back.Command,
    to: Path,
    settings: loader.Config,
    *,
    dry_run: bool,
    as_json: bool,
    nothing: str,
) -> int:
    """Put back the files of ``requests``, which is called when no other process moves files.

    ``nothing`` is the message if there are no requests. Return exit code 1 if a file was left where it is.
    """
    path = paths_and_limits.ledger_path(settings)
    work = contextlib.nullcontext() if dry_run else put_back.open_executor(path, settings.inbox.path, print_reconciled)
    counts: Counter[str] = Counter()
    with work as executor:
        chosen = requests()
        if executor is not None:
            if to == settings.inbox.path:  # if its mount is gone, files must not go below the mount point
                stations.usable_inbox(settings)
                recovery.refuse_lost_mounts(executor.ledger, [to])
            executor.mover.expect(put_back.prepare_landing(to, settings.inbox.path))
        for result in put_back.put_back(chosen, why, to, executor):
            counts[result.state] += 1
            with contextlib.suppress(BrokenPipeError):  # the work goes on if nobody reads the output
                print(_json_line(result) if as_json else _text_line(result))
    prefix = "" if counts else f"{nothing}: "
    done = f"{counts['planned']} would be put back" if dry_run else f"{counts['restored']} put back"
    print(f"mednet-watcher: {prefix}{done}, {counts['left']} left alone{_kept(counts['kept'])}", file=sys.stderr)
    return Exit.FAILED if counts["left"] else Exit.OK


def _kept(count: int) -> str:
    if not count:
        return ""
    files, them = ("file that people judged stays", "it") if count == 1 else ("files that people judged stay", "them")
    return f"; {count} {files} (--verdicts puts {them} back, too)"


def naming(settings: loader.Config) -> NameOf:
    """Return the function that names files that are put back."""
    return name_in_inbox(settings.inbox.path, recursive=settings.inbox.recursive)


def print_reconciled(ending: Ending) -> None:
    """Print how a decision ended that a killed command had left without an ending."""
    message = f"decision {ending.decision}, left by a killed command: {ending.state}"
    print(f"mednet-watcher: {message}, {printable(ending.note or '')}", file=sys.stderr)


def _json_line(result: PutBackResult) -> str:
    fields = {
        "id": result.id,
        "restores": result.request.entry.id if result.request.entry else None,
        "name": result.request.name,
        "path": result.request.path,
        "state": result.state,
        "destination": result.destination,
        "why": result.why,
    }
    return json.dumps(fields)


def _text_line(result: PutBackResult) -> str:
    end = f" -> {printable(result.destination)}" if result.destination else ""
    why = f": {printable(result.why)}" if result.why else ""
    return f"{result.state:8}  {printable(result.request.path)}{end}{why}"
