"""Commands of every day: the daemon, what it did, and what people say of that."""

from __future__ import annotations

import argparse
from pathlib import Path

from watcher.cli.arguments import shared_options


def _run(add: shared_options.Add) -> None:
    command = add("run", "watch the inbox and sort what arrives, until SIGTERM")
    command.add_argument(
        "--directories-replaced",
        action="store_true",
        help="inbox or outputs were replaced for good since files were last moved: it is no mount that is missing",
    )
    shared_options.config(command, "./config.yaml")


def _classify(add: shared_options.Add) -> None:
    command = add("classify", "say what the daemon would do with files")
    command.add_argument("paths", nargs="+", metavar="PATH", help="files, or directories with files below")
    command.add_argument("--sort-into", type=Path, metavar="DIR", help="copy each into its class's directory below DIR")
    shared_options.json(command, "one JSON object a line, for every file")
    shared_options.config(command)
    shared_options.weights(command, shared_options.IN_FORCE)


def _check_config(add: shared_options.Add) -> None:
    command = add("check-config", "check a config file without starting anything")
    shared_options.config(command)
    shared_options.json(command, "print the values in force as JSON")


def _doctor(add: shared_options.Add) -> None:
    command = add("doctor", "look at directories, events, weights, device and decoders, and say what will work")
    shared_options.config(command)
    shared_options.json(command, "one JSON object a line, for every check")


def _status(add: shared_options.Add) -> None:
    command = add("status", "say whether the daemon runs, and what it has done")
    shared_options.config(command)
    shared_options.json(command, "one JSON object")


def _tail(add: shared_options.Add) -> None:
    command = add("tail", "show the JSON log to people")
    told = "default: log.file of the config; - is standard input, shown whole"
    command.add_argument("file", nargs="?", metavar="FILE", help=told)
    command.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="the last N that pass (default: 20)")
    command.add_argument("-f", "--follow", action="store_true", help="go on with those that come, also over a rotation")
    command.add_argument("--event", action="append", metavar="PATTERN", help="only these, e.g. 'inbox.*'")
    levels = ("debug", "info", "warning", "error", "critical")
    command.add_argument("--level", choices=levels, default="debug", help="only this level or above")
    command.add_argument("--class", dest="label", metavar="CLASS", help="only files of this class")
    command.add_argument("--reason", metavar="REASON", help="only files in review or quarantine for this reason")
    command.add_argument("--name", metavar="PATTERN", help="only files of such names")
    shared_options.json(command, "the lines as they are")
    shared_options.config(command)


def _review(add: shared_options.Add) -> None:
    command = add("review", "what waits for a person, and what people say of images")
    doings = command.add_subparsers(dest="doing", metavar="WHAT", required=True)

    def doing(name: str, told: str) -> argparse.ArgumentParser:
        each = doings.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
        shared_options.json(each, "one JSON object a line, for every file" if name != "export" else "one JSON object")
        shared_options.config(each)
        return each

    doing("list", "what waits, why, and for how long")
    doing("show", "everything known of files").add_argument("files", nargs="+", metavar="FILE", help=_FILE)
    accept = doing("accept", "say which class files are of, in review or sorted wrongly: they are filed there")
    accept.add_argument("files", nargs="+", metavar="FILE", help=_FILE)
    accept.add_argument("label", metavar="CLASS")
    reject = doing("reject", "say that files are of none of the classes: they go to output.rejected")
    reject.add_argument("files", nargs="+", metavar="FILE", help=_FILE)
    for each in (accept, reject):
        each.add_argument("--note", metavar="TEXT", help="why; kept in the ledger, never in the log")
    told = "copy the images that people judged to DIR/CLASS (rejected ones: DIR/outlier), with manifest.jsonl"
    doing("export", told).add_argument("to", metavar="DIR")


_FILE = "a path, a name in review, or a decision's number"


def _retry(add: shared_options.Add) -> None:
    command = add("retry", "put quarantined files back into the inbox")
    command.add_argument("files", nargs="*", metavar="FILE", help="default: all that the ledger knows of")
    command.add_argument("--reason", metavar="REASON", help="only those quarantined for this reason, e.g. truncated")
    _put_back(command)


def _undo(add: shared_options.Add) -> None:
    command = add("undo", "put files that were filed back into the inbox, but for those that people judged")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--since", metavar="TIME", help="those filed since: 30m, 2h or 1d ago, or 2026-03-01T14:30")
    which.add_argument(
        "--batch", type=shared_options.number, metavar="N", help="those decided in one transaction, see explain"
    )
    told = "the one of this decision, also if a person judged it; may be given several times"
    which.add_argument("--id", type=shared_options.number, action="append", metavar="N", help=told)
    told = "those that people judged as well: what was said of them is withdrawn, and no longer exported"
    command.add_argument("--verdicts", action="store_true", help=told)
    command.add_argument("--to", type=Path, metavar="DIR", help="put them there instead, made if missing")
    _put_back(command)


def _put_back(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    shared_options.json(command, "one JSON object a line, for every file")
    shared_options.config(command)


def _audit(add: shared_options.Add) -> None:
    command = add("audit", "compare ledger and disk, and say what does not match")
    command.add_argument(
        "--quick", action="store_true", help="by names and sizes; read no file that is where it should be"
    )
    shared_options.json(command, "one JSON object")
    shared_options.config(command)


def _explain(add: shared_options.Add) -> None:
    command = add("explain", "say what was decided about a file, when, why, and where it lies now")
    command.add_argument(
        "what", nargs="*", metavar="FILE", help="a path, a name, a decision's number, or 8 or more digits of a SHA-256"
    )
    command.add_argument(
        "--id",
        type=shared_options.number,
        action="append",
        default=[],
        metavar="N",
        help="a decision's number, also as N or '#N'",
    )
    shared_options.json(command, "one JSON object a line, for every decision")
    shared_options.config(command)


def _web(add: shared_options.Add) -> None:
    command = add("web", "a page in the browser: what was decided, with pictures, and forms to judge and to upload")
    command.add_argument("--port", type=shared_options.port, default=8090)
    command.add_argument("--address", default="127.0.0.1", help="default: this host alone; there is no encryption")
    command.add_argument(
        "--host", action="append", default=[], metavar="NAME[:PORT]", help="another name it is asked for by, of a proxy"
    )
    command.add_argument(
        "--user-header", metavar="NAME", help="the header by which a proxy, and nobody else, says who judges"
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
"""In the order of the help."""
