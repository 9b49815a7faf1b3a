"""Start processes of the product by forking one that has imported its modules.

The imports of a daemon take half a second of CPU, with torch two, and the tests start hundreds of processes. What a
test starts here is a process of its own, with its own directory, environment, standard streams and end; only the
imports are shared. What tests of the command line promise about a new Python is tested with a new Python.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.support.repository import TOP

PLAIN = ("tests.support.stub_daemon", "watcher.cli.main", "watcher.cli.commands.status", "watcher.cli.commands.undo")
"""Modules to import before the first fork: what the daemon needs, without torch."""

TORCH = (*PLAIN, "watcher.cli.commands.run", "watcher.cli.commands.classify", "watcher.model.classifier")
"""Modules of ``PLAIN`` and torch."""

TRAINING = (*PLAIN, "watcher.cli.commands.ablate", "torch._dynamo")
"""With what the first optimizer of a process imports, which takes longer than torch itself."""

_LONGEST_REQUEST = 1 << 17


class ForkedProcess:
    """A process that the server forked, as ``subprocess.Popen`` has it.

    It is no child of this process: the server tells its number and its exit status.
    """

    def __init__(self, args: Sequence[str], status: int) -> None:
        self.args, self.returncode, self._status, self._told = list(args), None, status, b""
        while b"\n" not in self._told:
            self._read()
        number, _, self._told = self._told.partition(b"\n")
        self.pid = int(number)

    returncode: int | None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        while self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._read()
            if self._told.endswith(b"\n"):
                self.returncode = int(self._told)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self) -> None:
        message = os.read(self._status, 64)
        if not message:
            raise EOFError("the fork server has ended")
        self._told += message

    def __del__(self) -> None:
        os.close(self._status)


def start(
    call: str,
    arguments: Sequence[str],
    *,
    stdout: int,
    stderr: int,
    environ: Mapping[str, str],
    cwd: Path | None = None,
    modules: tuple[str, ...] = PLAIN,
) -> ForkedProcess:
    """Start a process that calls ``module:function`` with the list of arguments, and exits with what it returns."""
    request = {"call": call, "arguments": arguments, "environ": dict(environ), "cwd": str(cwd or Path.cwd())}
    status, its_status = os.pipe()
    with open(os.devnull) as stdin:
        streams = [stdin.fileno(), stdout, stderr, its_status]
        socket.send_fds(_server(modules), [json.dumps(request).encode()], streams)
    os.close(its_status)
    return ForkedProcess([call, *arguments], status)


@functools.cache
def _server(modules: tuple[str, ...]) -> socket.socket:
    """The channel to a server with these modules, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno()), *modules]
    # A fork takes no threads along, so numpy must not have started any.
    environ = {**os.environ, "PYTHONPATH": str(TOP), "OPENBLAS_NUM_THREADS": "1"}
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environ, stdout=subprocess.DEVNULL)
    atexit.register(_end, ours, process)
    return ours


def _end(channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
    channel.close()
    process.wait()


class _Request(NamedTuple):
    call: str
    arguments: list[str]
    environ: dict[str, str]
    cwd: str
    streams: list[int]


def _serve(channel: socket.socket) -> _Request | None:
    """Fork for every request, until the tests end. Return the request in the new process, and None in the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then end what they started
    signal.signal(signal.SIGCHLD, _reap)
    gc.freeze()
    while True:
        message, fds, *_ = socket.recv_fds(channel, _LONGEST_REQUEST, 4)
        if not message:
            _reap()
            return None
        *streams, status = fds
        if os.fork() == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid == 0:
                os.close(status)
                return _Request(**json.loads(message), streams=streams)
            _tell_end(pid, status, streams)
        for fd in fds:
            os.close(fd)


def _reap(*_: object) -> None:
    """Take note of the processes that have ended, so that their CPU time counts as that of the tests."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _tell_end(pid: int, status: int, streams: list[int]) -> NoReturn:
    """Wait for the new process, in one between it and the server."""
    for fd in streams:
        os.close(fd)
    with contextlib.suppress(BrokenPipeError):  # nobody waits for its end
        os.write(status, b"%d\n" % pid)
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(request: _Request) -> Any:
    for number, fd in enumerate(request.streams):
        os.dup2(fd, number)
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environ)
    sys.argv = [str(TOP / "watcher" / "__main__.py"), *request.arguments]  # as `python -m watcher` has it
    importlib.reload(importlib.import_module("watcher.core.failpoints"))  # it read the server's environment
    module, _, function = request.call.partition(":")
    return getattr(importlib.import_module(module), function)(request.arguments)


if __name__ == "__main__":
    for _name in sys.argv[2:]:
        importlib.import_module(_name)
    with socket.socket(fileno=int(sys.argv[1])) as _channel:
        _request = _serve(_channel)
    if _request is not None:
        sys.exit(_become(_request))
