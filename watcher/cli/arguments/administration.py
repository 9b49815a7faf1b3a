"""Commands of now and then: to install, to try out, and to teach the network what people decided."""

from __future__ import annotations

from pathlib import Path

from watcher.cli.arguments import shared_options


def _adapt(add: shared_options.Add) -> None:
    command = add("adapt", "teach the network what people decided here; puts nothing in force")
    told = "verdicts: a directory for each class, and outlier for none of them, as review export makes it"
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help=told)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="for the new weights")
    command.add_argument("--rehearsal", type=Path, metavar="FILE", help="default: the one shipped with the weights")
    command.add_argument(
        "--accept-rate",
        type=shared_options.share,
        default=shared_options.ACCEPT_RATE,
        metavar="SHARE",
        help="of the base data, filed",
    )
    command.add_argument("--threads", type=shared_options.count, default=0, help="CPU threads (default: all cores)")
    shared_options.weights(command, shared_options.IN_FORCE)
    shared_options.config(command)


def _promote(add: shared_options.Add) -> None:
    command = add("promote", "put new weights in force, if no class is worse by them than by the present ones")
    command.add_argument("candidate", type=Path, metavar="FILE", help="weights, made by adapt say")
    command.add_argument("--data", type=Path, metavar="DIR", help="the verdicts that adapt had: those kept back judge")
    told = "labelled images that judge as well, a directory for each class; may be given several times"
    command.add_argument("--reference", type=Path, action="append", default=[], metavar="DIR", help=told)
    command.add_argument("--rehearsal", type=Path, metavar="FILE", help="default: the one shipped with the weights")
    shared_options.config(command)


def _rollback(add: shared_options.Add) -> None:
    told = "take the last promotion back: the weights in force just before it are again, one step each time"
    command = add("rollback", told)
    told = "say what was promoted and taken back, when and by whom, and do nothing"
    command.add_argument("--list", action="store_true", help=told)
    shared_options.config(command)


def _install_service(add: shared_options.Add) -> None:
    command = add("install-service", "put the files of the systemd service in place")
    command.add_argument(
        "--prefix", type=Path, default=Path("/"), metavar="DIR", help="below this directory (default: /)"
    )
    command.add_argument("--gpu", action="store_true", help="with the drop-in for an NVIDIA GPU")
    command.add_argument("--metrics", action="store_true", help="with the drop-in that opens the loopback interface")
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _demo(add: shared_options.Add) -> None:
    command = add("demo", "run the daemon on synthetic images, with no data set at hand")
    command.add_argument("--images", type=int, default=60, metavar="N")
    command.add_argument("--dir", type=Path, default=Path(".demo"), metavar="DIR")


COMMANDS: tuple[shared_options.Command, ...] = (_adapt, _promote, _rollback, _install_service, _demo)
"""In the order of the help."""
