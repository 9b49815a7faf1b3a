"""Declare the commands to install and try out the product, and to train the network on people's verdicts."""

from __future__ import annotations

from pathlib import Path

from watcher.cli.arguments import shared_options


def _adapt(add: shared_options.Add) -> None:
    command = add("adapt", "train the network on the verdicts of people here; the result is not put in force")
    data_help = "verdicts: a directory for each class, and outlier for none of them, as review export makes it"
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help=data_help)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file for the new weights")
    command.add_argument("--rehearsal", type=Path, metavar="FILE", help="default: the one shipped with the weights")
    command.add_argument(
        "--accept-rate",
        type=shared_options.share,
        default=shared_options.ACCEPT_RATE,
        metavar="SHARE",
        help="share of the base data that is filed without a person",
    )
    command.add_argument("--threads", type=shared_options.count, default=0, help="CPU threads (default: all cores)")
    shared_options.weights(command, shared_options.IN_FORCE)
    shared_options.config(command)


def _promote(add: shared_options.Add) -> None:
    command = add("promote", "put new weights in force, if no class is worse with them than with the present ones")
    command.add_argument("candidate", type=Path, metavar="FILE", help="weights, for example made by adapt")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="the verdicts that adapt used; those that it held out are judged on"
    )
    reference_help = "labelled images to judge on as well, a directory for each class; may be given several times"
    command.add_argument("--reference", type=Path, action="append", default=[], metavar="DIR", help=reference_help)
    command.add_argument("--rehearsal", type=Path, metavar="FILE", help="default: the one shipped with the weights")
    shared_options.config(command)


def _rollback(add: shared_options.Add) -> None:
    purpose = "take back the last promotion: the weights before it are in force again, one step each time"
    command = add("rollback", purpose)
    list_help = "show what was promoted and taken back, when and by whom, and do nothing"
    command.add_argument("--list", action="store_true", help=list_help)
    shared_options.config(command)


def _install_service(add: shared_options.Add) -> None:
    command = add("install-service", "install the files of the systemd service")
    command.add_argument(
        "--prefix", type=Path, default=Path("/"), metavar="DIR", help="install below this directory (default: /)"
    )
    command.add_argument("--gpu", action="store_true", help="also install the drop-in for an NVIDIA GPU")
    command.add_argument(
        "--metrics", action="store_true", help="also install the drop-in that opens the loopback interface"
    )
    command.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")


def _demo(add: shared_options.Add) -> None:
    command = add("demo", "run the daemon on synthetic images; needs no data set")
    command.add_argument("--images", type=int, default=60, metavar="N")
    command.add_argument("--dir", type=Path, default=Path(".demo"), metavar="DIR")


COMMANDS: tuple[shared_options.Command, ...] = (_adapt, _promote, _rollback, _install_service, _demo)
"""Commands in the order of the help."""
