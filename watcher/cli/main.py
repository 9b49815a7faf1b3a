"""The command line: arguments in, exit code out. Imports a command only when it is called."""

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


def main(argv: list[str] | None = None) -> int:
    """Run one command. Every :class:`Fatal` ends here, as a message and an exit code."""
    _open_closed()
    args = parser().parse_args(argv)
    try:
        command = importlib.import_module(f"watcher.cli.commands.{args.module}")
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
        if error.filename is not None and args.module != "run":  # the daemon's trace is for who mends it
            print(
                f"mednet-watcher: {error.filename} can not be read or written: {error.strerror}\n"
                "  See that it is there, to its rights and to the space on its disk, then start the command again.",
                file=sys.stderr,
            )
            return Exit.DIRECTORY
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
    for add in (*operation.COMMANDS, *administration.COMMANDS, *research.COMMANDS):
        add(_adder(commands))
    return top


def _adder(commands: _Commands[argparse.ArgumentParser]) -> shared_options.Add:
    def add(name: str, told: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
        command.set_defaults(module=name.replace("-", "_"))
        return command

    return add
