"""The command line: arguments in, exit code out. Imports a command only when it is called."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from watcher import __version__
from watcher.errors import Exit, Fatal

_Commands = argparse._SubParsersAction

EXTRAS = {"matplotlib": "train", "rich": "train", "flask": "web", "waitress": "web"}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Every :class:`Fatal` ends here, as a message and an exit code."""
    _open_closed()
    args = parser().parse_args(argv)
    try:
        command = importlib.import_module(f"watcher.commands.{args.module}")
        code = int(command.run(args))
        sys.stdout.flush()
        return code
    except Fatal as error:
        told = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(error))
        print(f"mednet-watcher: {told}", file=sys.stderr)
        return error.code
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(f"mednet-watcher: this needs {error.name}: install mednet-watcher[{EXTRAS[error.name]}]", file=sys.stderr)
        return Exit.FAILED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`).
        _forget_output()
        return Exit.OK
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        print(f"mednet-watcher: the output can not be written: {error.strerror}", file=sys.stderr)
        _forget_output()
        return Exit.FAILED
    except KeyboardInterrupt:
        print("mednet-watcher: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED


def _open_closed() -> None:
    """Put /dev/null where a standard stream was closed (``>&-``), for our children as well.

    Else a file that is opened later would get its number.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _forget_output() -> None:
    """Let nothing more be said of what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The whole command line, without importing any command."""
    top = argparse.ArgumentParser(
        prog="mednet-watcher",
        description="Sorts radiographs that arrive in an inbox. It takes no medical decision.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 config, 4 weights or device, 5 directory or "
        "ledger, 6 already running, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    daily = (_run, _classify, _check_config, _doctor, _status, _tail, _review, _retry, _undo, _audit, _explain, _web)
    teaching = (_adapt, _promote, _rollback)
    rarely = (_install_service, _demo, _evaluate, _train, _compress, _ablate, _report, _audit_data)
    laboratory = (_generalise, _sketch, _bench)
    for add in (*daily, *teaching, *rarely, *laboratory):
        add(_adder(commands))
    return top


_Add = Callable[[str, str], argparse.ArgumentParser]


def _adder(commands: _Commands[argparse.ArgumentParser]) -> _Add:
    def add(name: str, told: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
        command.set_defaults(module=name.replace("-", "_"))
        return command

    return add


def _config(
    command: argparse.ArgumentParser, default: str = "./config.yaml, else /etc/mednet-watcher/config.yaml"
) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {default}")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return value


def _weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", type=Path, metavar="FILE", help="default: those shipped with the product")


def _json(command: argparse.ArgumentParser, told: str) -> None:
    command.add_argument("--json", action="store_true", help=told)


def _data(command: argparse.ArgumentParser, *, split_required: bool) -> None:
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="a directory of class directories")
    told = "which files to use: a CSV with the columns path, class, split"
    command.add_argument("--split", type=Path, required=split_required, metavar="CSV", help=told)


def _run(add: _Add) -> None:
    command = add("run", "watch the inbox and sort what arrives, until SIGTERM")
    command.add_argument(
        "--directories-replaced",
        action="store_true",
        help="after a crash: inbox or outputs are other directories than then, for good, and not a missing mount",
    )
    _config(command, "./config.yaml")


def _classify(add: _Add) -> None:
    command = add("classify", "say what the daemon would do with files")
    command.add_argument("paths", nargs="+", metavar="PATH", help="files, or directories with files below")
    command.add_argument("--sort-into", type=Path, metavar="DIR", help="copy each into its class's directory below DIR")
    _json(command, "one JSON object a line, for every file")
    _config(command)
    _weights(command)


def _check_config(add: _Add) -> None:
    command = add("check-config", "check a config file without starting anything")
    _config(command)
    _json(command, "print the values in force as JSON")


def _doctor(add: _Add) -> None:
    command = add("doctor", "look at directories, events, weights, device and decoders, and say what will work")
    _config(command)
    _json(command, "one JSON object a line, for every check")


def _status(add: _Add) -> None:
    command = add("status", "say whether the daemon runs, and what it has done")
    _config(command)
    _json(command, "one JSON object")


def _tail(add: _Add) -> None:
    command = add("tail", "show the JSON log to people")
    command.add_argument("file", nargs="?", metavar="FILE", help="default: log.file of the config; - is standard input")
    command.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="the last N that pass (default: 20)")
    command.add_argument("-f", "--follow", action="store_true", help="go on with those that come, also over a rotation")
    command.add_argument("--event", action="append", metavar="PATTERN", help="only these, e.g. 'inbox.*'")
    levels = ("debug", "info", "warning", "error", "critical")
    command.add_argument("--level", choices=levels, default="debug", help="only this level or above")
    command.add_argument("--class", dest="label", metavar="CLASS", help="only files of this class")
    command.add_argument("--reason", metavar="REASON", help="only files in review or quarantine for this reason")
    command.add_argument("--name", metavar="PATTERN", help="only files of such names")
    _json(command, "the lines as they are")
    _config(command)


def _review(add: _Add) -> None:
    command = add("review", "what waits for a person, and what people say of images")
    doings = command.add_subparsers(dest="doing", metavar="WHAT", required=True)

    def doing(name: str, told: str) -> argparse.ArgumentParser:
        each = doings.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
        _json(each, "one JSON object a line, for every file" if name != "export" else "one JSON object")
        _config(each)
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


def _retry(add: _Add) -> None:
    command = add("retry", "put quarantined files back into the inbox")
    command.add_argument("files", nargs="*", metavar="FILE", help="default: all that the ledger knows of")
    command.add_argument("--reason", metavar="REASON", help="only those quarantined for this reason, e.g. truncated")
    _put_back(command)


def _undo(add: _Add) -> None:
    command = add("undo", "put files that were filed back into the inbox, but for those that people judged")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--since", metavar="TIME", help="those filed since: 30m, 2h or 1d ago, or 2026-03-01T14:30")
    which.add_argument("--batch", type=int, metavar="N", help="those decided in one transaction, see explain")
    which.add_argument("--id", type=int, metavar="N", help="the one of this decision, also if a person judged it")
    told = "those that people judged as well: what was said of them is withdrawn, and no longer exported"
    command.add_argument("--verdicts", action="store_true", help=told)
    command.add_argument("--to", type=Path, metavar="DIR", help="put them there instead, made if missing")
    _put_back(command)


def _put_back(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    _json(command, "one JSON object a line, for every file")
    _config(command)


def _audit(add: _Add) -> None:
    command = add("audit", "compare ledger and disk, and say what does not match")
    command.add_argument(
        "--quick", action="store_true", help="by names and sizes; read no file that is where it should be"
    )
    _json(command, "one JSON object")
    _config(command)


def _explain(add: _Add) -> None:
    command = add("explain", "say what was decided about a file, when, why, and where it lies now")
    command.add_argument(
        "what", nargs="*", metavar="FILE", help="a path, a name, a decision's number, or 8 or more digits of a SHA-256"
    )
    command.add_argument(
        "--id", type=int, action="append", default=[], metavar="N", help="a decision's number, also as N or '#N'"
    )
    _json(command, "one JSON object a line, for every decision")
    _config(command)


def _web(add: _Add) -> None:
    command = add("web", "a page in the browser: what was decided, with pictures, and forms to judge and to upload")
    command.add_argument("--port", type=_port, default=8090)
    command.add_argument("--address", default="127.0.0.1", help="default: this host alone; there is no encryption")
    command.add_argument(
        "--host", action="append", default=[], metavar="NAME[:PORT]", help="another name it is asked for by, of a proxy"
    )
    command.add_argument(
        "--user-header", metavar="NAME", help="the header by which a proxy, and nobody else, says who judges"
    )
    _config(command)


def _install_service(add: _Add) -> None:
    command = add("install-service", "put the files of the systemd service in place")
    command.add_argument(
        "--prefix", type=Path, default=Path("/"), metavar="DIR", help="below this directory (default: /)"
    )
    command.add_argument("--gpu", action="store_true", help="with the drop-in for an NVIDIA GPU")
    command.add_argument("--metrics", action="store_true", help="with the drop-in that opens the loopback interface")
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _demo(add: _Add) -> None:
    command = add("demo", "run the daemon on synthetic images, with no data set at hand")
    command.add_argument("--images", type=int, default=60, metavar="N")
    command.add_argument("--dir", type=Path, default=Path(".demo"), metavar="DIR")


def _evaluate(add: _Add) -> None:
    command = add("evaluate", "judge weights on labelled images")
    _data(command, split_required=False)
    command.add_argument("--part", metavar="NAME", help="the rows of the split to judge on, e.g. valid or test")
    command.add_argument("--picture", type=Path, metavar="PNG", help="draw the confusion matrix")
    _json(command, "one JSON object")
    _weights(command)


def _train(add: _Add) -> None:
    command = add("train", "train a network by a recipe")
    command.add_argument("--recipe", choices=("improved", "baseline"), default="improved")
    _data(command, split_required=True)
    command.add_argument("--train-part", default="train", metavar="NAME", help="default: train")
    command.add_argument("--part", default="valid", metavar="NAME", help="the part to validate on (default: valid)")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: runs/RECIPE-seedN; holds a run to resume")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--threads", type=_count, default=0, help="CPU threads (default: all cores)")


def _compress(add: _Add) -> None:
    command = add("compress", "make trained weights small and fast: fold, factor, fine-tune, halve")
    _data(command, split_required=True)
    command.add_argument("--weights", type=Path, required=True, metavar="FILE", help="weights made by train")
    command.add_argument("--rank", type=int, default=64, help="rank of the first linear layer")
    command.add_argument("--epochs", type=int, default=2, help="of fine-tuning the linear layers")
    command.add_argument("--learning-rate", type=float, default=0.005)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--train-part", default="train", metavar="NAME")
    command.add_argument("--part", default="valid", metavar="NAME", help="the part to choose and to set thresholds on")
    command.add_argument("--out", type=Path, required=True, metavar="FILE")


def _ablate(add: _Add) -> None:
    command = add("ablate", "train the variants of a study, resuming what was begun")
    command.add_argument("--study", type=Path, default=Path("docs/study/study.yaml"), metavar="YAML")
    _data(command, split_required=True)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="for what is under way, and new rows")
    command.add_argument("--runs", type=Path, metavar="JSONL", help="rows known (default: runs.jsonl by the study)")
    command.add_argument("--threads", type=_count, default=1, help="CPU threads; better, start it once a core")
    command.add_argument("--collect", action="store_true", help="only copy finished rows from --out to --runs")


def _report(add: _Add) -> None:
    command = add("report", "write the page on a study, with its figures, from the rows of its runs")
    command.add_argument("--study", type=Path, default=Path("docs/study/study.yaml"), metavar="YAML")
    command.add_argument("--runs", type=Path, nargs="+", metavar="JSONL", help="default: runs.jsonl by the study")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: where the study is")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="also show the images that --weights takes for others"
    )
    command.add_argument("--split", type=Path, metavar="CSV", help="which of --data: columns path, class, split")
    command.add_argument("--part", default="valid", metavar="NAME", help="the rows of the split (default: valid)")
    _weights(command)


def _audit_data(add: _Add) -> None:
    command = add("audit-data", "find copies and near twins across a split, and labels in doubt")
    _data(command, split_required=True)
    command.add_argument("--train-part", default="train", metavar="NAME", help="default: train")
    command.add_argument("--part", default="valid", metavar="NAME", help="the part to validate on (default: valid)")
    command.add_argument("--weights", type=Path, nargs="+", metavar="FILE", help="default: those shipped")
    command.add_argument("--study", type=Path, default=Path("docs/study/study.yaml"), metavar="YAML")
    command.add_argument("--runs", type=Path, nargs="+", metavar="JSONL", help="default: runs.jsonl by the study")
    command.add_argument("--out", type=Path, metavar="DIR", help="for audit.md (default: where the study is)")


def _generalise(add: _Add) -> None:
    command = add("generalise", "train on several sources, judge on those left out, make the weights that are shipped")
    command.add_argument("step", choices=("train", "judge", "ship", "report"))
    command.add_argument("--folds", type=Path, default=Path("docs/study/general/folds.yaml"), metavar="YAML")
    command.add_argument("--data", type=Path, metavar="DIR", help="the base data: a directory of class directories")
    command.add_argument("--split", type=Path, metavar="CSV", help="its parts train and valid: path, class, split")
    command.add_argument("--pool", type=Path, metavar="CSV", help="what else is trained and judged on: a row an image")
    command.add_argument("--pool-data", type=Path, metavar="DIR", help="where its paths start (default: beside it)")
    command.add_argument("--runs", type=Path, metavar="DIR", help="holds the trainings; several processes share them")
    command.add_argument("--accept-rate", type=_share, default=0.996, metavar="SHARE", help="of the base data, filed")
    command.add_argument("--threads", type=_count, default=1, help="CPU threads; better, start it once a core")
    command.add_argument("--out", type=Path, metavar="FILE", help="for the weights that ship makes")


def _adapt(add: _Add) -> None:
    command = add("adapt", "teach the network what people decided here; puts nothing in force")
    told = "verdicts: a directory for each class, and outlier for none of them, as review export makes it"
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help=told)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="for the new weights")
    command.add_argument("--rehearsal", type=Path, metavar="FILE", help="default: the one shipped with the weights")
    command.add_argument("--accept-rate", type=_share, default=0.996, metavar="SHARE", help="of the base data, filed")
    command.add_argument("--threads", type=_count, default=0, help="CPU threads (default: all cores)")
    _weights(command)
    _config(command)


def _promote(add: _Add) -> None:
    command = add("promote", "put new weights in force, if no class is worse by them than by the present ones")
    command.add_argument("candidate", type=Path, metavar="FILE", help="weights, made by adapt say")
    command.add_argument("--data", type=Path, metavar="DIR", help="the verdicts that adapt had: those kept back judge")
    told = "labelled images that judge as well, a directory for each class; may be given several times"
    command.add_argument("--reference", type=Path, action="append", default=[], metavar="DIR", help=told)
    command.add_argument("--rehearsal", type=Path, metavar="FILE", help="default: the one shipped with the weights")
    _config(command)


def _rollback(add: _Add) -> None:
    told = "take the last promotion back: the weights in force just before it are again, one step each time"
    command = add("rollback", told)
    told = "say what was promoted and taken back, when and by whom, and do nothing"
    command.add_argument("--list", action="store_true", help=told)
    _config(command)


def _sketch(add: _Add) -> None:
    command = add("sketch", "fit the synthetic-image sampler of the demo to training images")
    _data(command, split_required=False)
    command.add_argument("--train-part", default="train", metavar="NAME")
    command.add_argument("--components", type=int, default=40)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, default=Path("weights/sketch.safetensors"), metavar="FILE")


def _bench(add: _Add) -> None:
    command = add("bench", "measure throughput and latency against a simple loop and the bare limit")
    command.add_argument("--data", type=Path, metavar="DIR", help="images to use (default: sampled ones)")
    command.add_argument("--images", type=int, default=5833, metavar="N")
    command.add_argument("--runs", type=int, default=3, metavar="N")
    _weights(command)
    command.add_argument(
        "--split", type=Path, metavar="CSV", help="which files of --data to use: columns path, class, split"
    )
    command.add_argument("--part", metavar="NAME", help="the rows of the split to use, e.g. valid")
    command.add_argument("--soak", type=int, default=0, metavar="N", help="also watch memory over N files, e.g. 50000")
    command.add_argument("--dir", type=Path, metavar="DIR", help="where to work (default: the temporary directory)")
    _json(command, "one JSON object")
