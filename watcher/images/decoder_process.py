"""Open, digest and decode files for the daemon, one at a time, in a process of its own.

The files may be hostile. So the process has limited memory, writes no core dumps and dies with its parent. Its answers
are JSON and raw pixels, never pickles: a file that takes over the decoder can lie about its picture, and no more.
Run as ``python -m watcher.images.decoder_process FD DIRECTORY LIMITS``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import resource
import signal
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from watcher.core import safe_paths
from watcher.core.errors import Reject
from watcher.images import decode

HELLO = b"ready"
"""The first message of a process."""

LOADING = b"loading"
"""A message before the first DICOM file of a process, whose reader takes seconds to load. The file is not to blame."""

ASK = b"?"
"""The first byte of a question. A message must not be empty, while a name may be (``classify ''``)."""

PACKET = 1 << 16
"""The longest message, in bytes: a path, or an answer with its pixels."""

_PR_SET_PDEATHSIG = 1
_GONE = (errno.ENOENT, errno.ESTALE)


def main(argv: list[str]) -> None:
    """Send HELLO, then answer one name after the other until the parent closes its end of the socket."""
    channel = socket.socket(fileno=int(argv[0]))
    directory, limits = os.fsencode(argv[1]), json.loads(argv[2])
    _confine(limits.pop("memory_mb"))
    expects_dicom, tags = limits.pop("expects_dicom", False), limits.pop("tags", ())
    file_limits = decode.Limits(**limits)
    decode.warm_up()
    if expects_dicom:
        decode.load_dicom_reader()
    _silence_output()
    with contextlib.suppress(ConnectionError):
        channel.send(HELLO)  # from now on, each file answers for the time it takes
        while question := channel.recv(PACKET):
            name = question.removeprefix(ASK)
            # The directory is given as a path each time, because the inbox may have been mounted again meanwhile.
            channel.send(answer(directory, name, file_limits, lambda: channel.send(LOADING), tags))
    channel.close()  # only after an orderly end: after a defect, the parent could lose what was sent before


def _confine(memory_mb: int) -> None:
    """Limit the memory, forbid core dumps, die with the parent, and leave signals to it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _silence_output() -> None:
    """Discard all output, because what libraries print and the text of exceptions may name a patient.

    An unexpected exception still reports its type and its places in the code, without any value.
    """
    real_stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(null, fd)

    def report(kind: type[BaseException], _: BaseException, trace: TracebackType | None) -> None:
        places = "".join(traceback.format_tb(trace))
        os.write(real_stderr, f"decoder: {kind.__module__}.{kind.__name__}, its message left out\n{places}".encode())

    sys.excepthook = report


def answer(
    directory: bytes, name: bytes, limits: decode.Limits, loading: Callable[[], object], tags: Sequence[str] = ()
) -> bytes:
    """Return a line of JSON about a file, followed by its 64 x 64 pixels if it is an image.

    Args:
        directory: The directory that a relative ``name`` starts from, or an empty path.
        name: The name of the file.
        limits: The limits on one file.
        loading: A function to call before something is loaded that takes seconds.
        tags: The tags of DICOM files to report.
    """
    started = time.perf_counter()
    facts: dict[str, Any] = {}
    pixels = b""
    try:
        data = _read_below(directory, name, limits, facts)
        facts["digest"] = hashlib.sha256(data).hexdigest()
        if decode.needs_dicom_reader(data):
            loading()
            decode.load_dicom_reader()
            started = time.perf_counter()
        picture = decode.read(data, limits, tags)
        facts["blank"], facts["frames"] = decode.is_blank(picture.grey), picture.frames
        facts["modality"], facts["body_part"], facts["tags"] = picture.modality, picture.body_part, picture.tags
        pixels = picture.grey.tobytes()
    except Reject as error:
        facts["reason"], facts["detail"] = error.reason, error.detail
    facts["decode_ms"] = (time.perf_counter() - started) * 1000
    return json.dumps(facts).encode() + b"\n" + pixels


def _read_below(directory: bytes, name: bytes, limits: decode.Limits, facts: dict[str, Any]) -> bytes:
    """Return the bytes of a file in a directory or below it. No directory on the way may be a link."""
    below, base = os.path.split(name)
    if not directory or not below:
        return _read(os.path.join(directory, name), limits, facts)
    try:
        with safe_paths.open_directory(Path(os.fsdecode(directory)), os.fsdecode(below)) as parent:
            return _read(os.path.join(os.fsencode(parent), base), limits, facts)
    except OSError as error:
        raise _rejection(error, os.path.join(directory, name), facts) from error


def _read(path: bytes, limits: decode.Limits, facts: dict[str, Any]) -> bytes:
    """Return the bytes of a regular file, which is opened once and never through a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _rejection(error, path, facts) from error
    try:
        status = os.fstat(fd)
        facts["identity"] = _identity(status)
        if not stat.S_ISREG(status.st_mode):
            raise Reject("not_a_file", "a directory, device, socket or pipe")
        if status.st_size > limits.max_bytes:
            raise Reject("too_large", f"{status.st_size} bytes, the limit is {limits.max_bytes}")
        data = os.read(fd, status.st_size)
        while len(data) < status.st_size and (more := os.read(fd, status.st_size - len(data))):
            data += more
        if _identity(os.fstat(fd)) != facts["identity"]:
            raise Reject("unreadable", "the file changed while it was read")
        return data
    except OSError as error:
        raise _rejection(error, path, facts) from error
    finally:
        os.close(fd)


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _rejection(error: OSError, path: bytes, facts: dict[str, Any]) -> Reject:
    """Return the reason why a file could not be read, and add its identity to ``facts`` if that is known."""
    if error.errno in _GONE:
        facts["gone"] = True
        return Reject("not_found", "no such file")
    try:
        status = os.lstat(path)
    except OSError:
        return Reject("unreadable", str(error.strerror))
    facts["identity"] = _identity(status)
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return Reject("no_permission" if error.errno == errno.EACCES else "unreadable", str(error.strerror))
    return Reject("not_a_file", "a symbolic link, device, socket or pipe; links are never followed")


if __name__ == "__main__":
    main(sys.argv[1:])
