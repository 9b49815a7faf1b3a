"""Declare the commands of every day: the daemon, what it did, and people's verdicts."""

from __future__ import annotations

import argparse
from pathlib import Path

from watcher.cli.arguments import shared_options

_FILE = "a path, a name in review, or a decision's number"


def _run(add: shared_options.Add) -> None:
    command = add("run", "watch the inbox and sort the files that arrive, until SIGTERM")
    command.add_argument(
        "--directories-replaced",
        action="store_true",
        help="the inbox or output directories were replaced for good since files were last moved; no mount is missing",
    )
    shared_options.config(command, "./config.yaml")


def _classify(add: shared_options.Add) -> None:
    command = add("classify", "show what the daemon would do with files")
    command.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a directory with files below it")
    command.add_argument(
        "--sort-into", type=Path, metavar="DIR", help="copy each file into its class's directory in DIR"
    )
    shared_options.json(command, "print one JSON object a line, for every file")
    shared_options.config(command)
    shared_options.weights(command, shared_options.IN_FORCE)


def _check_config(add: shared_options.Add) -> None:
    command = add("check-config", "check a config file without starting anything")
    shared_options.config(command)
    shared_options.json(command, "print the values in force as JSON")


def _doctor(add: shared_options.Add) -> None:
    command = add("doctor", "check directories, events, weights, device and decoders, and say what will work")
    shared_options.config(command)
    shared_options.json(command, "print one JSON object a line, for every check")


def _status(add: shared_options.Add) -> None:
    command = add("status", "say if the daemon runs, and what it has done")
    shared_options.config(command)
    shared_options.json(command, "print one JSON object")


def _tail(add: shared_options.Add) -> None:
    command = add("tail", "show the JSON log in a form for people")
    file_help = "the log file (default: log.file of the config); - is standard input, shown from its beginning"
    command.add_argument("file", nargs="?", metavar="FILE", help=file_help)
    command.add_argument(
        "-n", "--lines", type=int, default=20, metavar="N", help="show the last N lines that match (default: 20)"
    )
    command.add_argument(
        "-f", "--follow", action="store_true", help="show new lines as they come, also after a rotation"
    )
    command.add_argument("--event", action="append", metavar="PATTERN", help="show only these events, e.g. 'inbox.*'")
    levels = ("debug", "info", "warning", "error", "critical")
    command.add_argument("--level", choices=levels, default="debug", help="show only this level or above")
    command.add_argument("--class", dest="label", metavar="CLASS", help="show only files of this class")
    command.add_argument("--reason", metavar="REASON", help="show only files in review or quarantine for this reason")
    command.add_argument("--name", metavar="PATTERN", help="show only files with such names")
    shared_options.json(command, "print the lines as they are in the log")
    shared_options.config(command)


def _review(add: shared_options.Add) -> None:
    command = add("review", "list the images that wait for a person, and record people's verdicts")
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add_action(name: str, purpose: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        lines = "print one JSON object" if name == "export" else "print one JSON object a line, for every file"
        shared_options.json(action, lines)
        shared_options.config(action)
        return action

    add_action("list", "list the files that wait, with the reason and the time")
    add_action("show", "show all that is known of files").add_argument("files", nargs="+", metavar="FILE", help=_FILE)
    accept = add_action("accept", "say which class files in review, or sorted wrongly, are of: they are filed there")
    accept.add_argument("files", nargs="+", metavar="FILE", help=_FILE)
    accept.add_argument("label", metavar="CLASS")
    reject = add_action("reject", "say that files are of none of the classes: they go to output.rejected")
    reject.add_argument("files", nargs="+", metavar="FILE", help=_FILE)
    for action in (accept, reject):
        action.add_argument("--note", metavar="TEXT", help="the reason; kept in the ledger, never in the log")
    purpose = "copy the images that people judged to DIR/CLASS (rejected ones: DIR/outlier), with manifest.jsonl"
    add_action("export", purpose).add_argument("to", metavar="DIR")


def _retry(add: shared_options.Add) -> None:
    command = add("retry", "put quarantined files back into the inbox")
    command.add_argument("files", nargs="*", metavar="FILE", help="default: all that the ledger knows of")
    command.add_argument(
        "--reason", metavar="REASON", help="only the files that were quarantined for this reason, e.g. truncated"
    )
    _put_back(command)


def _undo(add: shared_options.Add) -> None:
    command = add("undo", "put filed files back into the inbox, except those that people judged")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--since", metavar="TIME", help="files that were filed since: 30m, 2h or 1d ago, or 2026-03-01T14:30"
    )
    which.add_argument(
        "--batch",
        type=shared_options.number,
        metavar="N",
        help="files that were decided in this transaction, see explain",
    )
    id_help = "the file of this decision, even if a person judged it; may be given several times"
    which.add_argument("--id", type=shared_options.number, action="append", metavar="N", help=id_help)
    verdicts_help = "also files that people judged: their verdicts are withdrawn, and no longer exported"
    command.add_argument("--verdicts", action="store_true", help=verdicts_help)
    command.add_argument(
        "--to", type=Path, metavar="DIR", help="put the files into DIR instead, which is made if it is missing"
    )
    _put_back(command)


def _put_back(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    shared_options.json(command, "print one JSON object a line, for every file")
    shared_options.config(command)


def _audit(add: shared_options.Add) -> None:
    command = add("audit", "compare the ledger with the disk, and show what does not match")
    command.add_argument(
        "--quick",
        action="store_true",
        help="compare names and sizes only; read no file that lies where it should",
    )
    shared_options.json(command, "print one JSON object")
    shared_options.config(command)


def _explain(add: shared_options.Add) -> None:
    command = add("explain", "show what was decided about a file, when and why, and where the file lies now")
    command.add_argument(
        "what", nargs="*", metavar="FILE", help="a path, a name, a decision's number, or 8 or more digits of a SHA-256"
    )
    command.add_argument(
        "--id",
        type=shared_options.number,
        action="append",
        default=[],
        metavar="N",
        help="a decision's number; N or '#N' as FILE does the same",
    )
    shared_options.json(command, "print one JSON object a line, for every decision")
    shared_options.config(command)


def _web(add: shared_options.Add) -> None:
    command = add("web", "serve a page with all decisions, with pictures, and forms to judge and to upload images")
    command.add_argument("--port", type=shared_options.port, default=8090)
    command.add_argument(
        "--address", default="127.0.0.1", help="default: for this host only, because there is no encryption"
    )
    command.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="another host name of the page, for example that of a proxy",
    )
    command.add_argument(
        "--user-header",
        metavar="NAME",
        help="the header in which a proxy names the user; make sure that nobody else can set it",
    )
    shared_options.config(command)


COMMANDS: tuple[shared_options.Command, ...] = (
    _run,
    _classify,
    _check_config,
    _doctor,
    _status,
    _tail,
    _review,
    _retry,
    _undo,
    _audit,
    _explain,
    _web,
)
"""Commands in the order of the help."""
