"""Parse the command line and run one command. A command is imported only when it is called."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys

from watcher import __version__
from watcher.cli.arguments import administration, operation, research, shared_options
from watcher.core.errors import Exit, Fatal

_Commands = argparse._SubParsersAction

EXTRAS = {"matplotlib": "train", "rich": "train", "flask": "web", "waitress": "web"}
"""Extra of the product that installs a module."""


def main(argv: list[str] | None = None) -> int:
    """Run one command, and return its exit code. A :class:`Fatal` becomes a message and an exit code here."""
    _reopen_closed_streams()
    args = parser().parse_args(argv)
    try:
        command = importlib.import_module(f"watcher.cli.commands.{args.module}")
        code = int(command.run(args))
        sys.stdout.flush()
        return code
    except Fatal as error:
        message = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(error))
        print(f"mednet-watcher: {message}", file=sys.stderr)
        return error.code
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = f"mednet-watcher[{EXTRAS[error.name]}]"
        print(f"mednet-watcher: this command needs {error.name}: install {extra}", file=sys.stderr)
        return Exit.FAILED
    except BrokenPipeError:
        # The reader of our output has ended (`| head`).
        _discard_output()
        return Exit.OK
    except OSError as error:
        if error.filename is not None and args.module != "run":  # the daemon's traceback is needed to repair it
            print(
                f"mednet-watcher: {error.filename} can not be read or written: {error.strerror}\n"
                "  Check that it exists, its access rights and the space on its disk, then run the command again.",
                file=sys.stderr,
            )
            return Exit.DIRECTORY
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        print(f"mednet-watcher: the output can not be written: {error.strerror}", file=sys.stderr)
        _discard_output()
        return Exit.FAILED
    except KeyboardInterrupt:
        print("mednet-watcher: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED


def _reopen_closed_streams() -> None:
    """Open /dev/null in place of each standard stream that was closed (``>&-``), for child processes as well.

    Otherwise a file that is opened later would get the stream's number.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # open() takes the lowest free number, which is fd
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _discard_output() -> None:
    """Send the rest of the output to /dev/null, so that Python reports no further error when it flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line, without importing any command."""
    top = argparse.ArgumentParser(
        prog="mednet-watcher",
        description="Sorts radiographs that arrive in an inbox. It makes no medical decision.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 config, 4 weights or device, 5 directory or "
        "ledger, 6 already running, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for add in (*operation.COMMANDS, *administration.COMMANDS, *research.COMMANDS):
        add(_adder(commands))
    return top


def _adder(commands: _Commands[argparse.ArgumentParser]) -> shared_options.Add:
    def add(name: str, purpose: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        command.set_defaults(module=name.replace("-", "_"))
        return command

    return add
