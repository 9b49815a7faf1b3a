"""A process that opens, digests and decodes files for the daemon, one at a time.

It works on hostile bytes, so it is a process of its own: limited in memory,
without core dumps, dead when its parent is. What it answers is JSON and raw
pixels, never a pickle: a decoder that was taken over can lie about a picture,
no more. Run as ``python -m watcher.images.decoder_process FD DIRECTORY LIMITS``.
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
LOADING = b"loading"
"""What it says once, before the first DICOM file of its life: loading their reader takes seconds, no file's own."""

ASK = b"?"
"""What a question begins with: a packet must not be empty, a name may be (``classify ''``)."""

PACKET = 1 << 16
"""Longest message, in bytes: a path, or an answer with its pixels."""

_PR_SET_PDEATHSIG = 1
_GONE = (errno.ENOENT, errno.ESTALE)


def main(argv: list[str]) -> None:
    """Say hello, then answer each name until the parent closes its end. One packet is one message."""
    channel = socket.socket(fileno=int(argv[0]))
    directory, limits = os.fsencode(argv[1]), json.loads(argv[2])
    _confine(limits.pop("memory_mb"))
    expects_dicom, tags = limits.pop("expects_dicom", False), limits.pop("tags", ())
    bounds = decode.Limits(**limits)
    decode.warm_up()
    if expects_dicom:
        decode.load_dicom_reader()
    _silence()
    with contextlib.suppress(ConnectionError):
        channel.send(HELLO)  # from now on the time a file takes is its own
        while question := channel.recv(PACKET):
            name = question.removeprefix(ASK)
            # By path each time: the inbox may be another directory by now (mounted again, say).
            channel.send(answer(directory, name, bounds, lambda: channel.send(LOADING), tags))
    channel.close()  # not after a defect: the parent could lose what was sent before it


def _confine(memory_mb: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group, the parent's to answer
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _silence() -> None:
    """From the first file on, let out no word of one: what libraries print and exceptions say may name a patient.

    Of a defect the place in the code is told, and no value.
    """
    told, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(nowhere, fd)

    def tell(kind: type[BaseException], _: BaseException, trace: TracebackType | None) -> None:
        places = "".join(traceback.format_tb(trace))
        os.write(told, f"decoder: {kind.__module__}.{kind.__name__}, its message left out\n{places}".encode())

    sys.excepthook = tell


def answer(
    directory: bytes, name: bytes, limits: decode.Limits, loading: Callable[[], object], tags: Sequence[str] = ()
) -> bytes:
    """One line of JSON, then the 64 x 64 pixels if the file is an image. ``loading`` is told that it will take long."""
    started = time.perf_counter()
    told: dict[str, Any] = {}
    pixels = b""
    try:
        data = _found(directory, name, limits, told)
        told["digest"] = hashlib.sha256(data).hexdigest()
        if decode.needs_dicom_reader(data):
            loading()
            decode.load_dicom_reader()
            started = time.perf_counter()
        picture = decode.read(data, limits, tags)
        told["blank"], told["frames"] = decode.is_blank(picture.grey), picture.frames
        told["modality"], told["body_part"], told["tags"] = picture.modality, picture.body_part, picture.tags
        pixels = picture.grey.tobytes()
    except Reject as error:
        told["reason"], told["detail"] = error.reason, error.detail
    told["decode_ms"] = (time.perf_counter() - started) * 1000
    return json.dumps(told).encode() + b"\n" + pixels


def _found(directory: bytes, name: bytes, limits: decode.Limits, told: dict[str, Any]) -> bytes:
    """The bytes of a file in a directory, or below it: no link leads there."""
    below, base = os.path.split(name)
    if not directory or not below:
        return _read(os.path.join(directory, name), limits, told)
    try:
        with safe_paths.open_directory(Path(os.fsdecode(directory)), os.fsdecode(below)) as place:
            return _read(os.path.join(os.fsencode(place), base), limits, told)
    except OSError as error:
        raise _refusal(error, os.path.join(directory, name), told) from error


def _read(path: bytes, limits: decode.Limits, told: dict[str, Any]) -> bytes:
    """The bytes of a regular file, opened once and never through a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _refusal(error, path, told) from error
    try:
        found = os.fstat(fd)
        told["identity"] = _identity(found)
        if not stat.S_ISREG(found.st_mode):
            raise Reject("not_a_file", "a directory, device, socket or pipe")
        if found.st_size > limits.max_bytes:
            raise Reject("too_large", f"{found.st_size} bytes, the limit is {limits.max_bytes}")
        data = os.read(fd, found.st_size)
        while len(data) < found.st_size and (more := os.read(fd, found.st_size - len(data))):
            data += more
        if _identity(os.fstat(fd)) != told["identity"]:
            raise Reject("unreadable", "the file changed while it was read")
        return data
    except OSError as error:
        raise _refusal(error, path, told) from error
    finally:
        os.close(fd)


def _identity(found: os.stat_result) -> list[int]:
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _refusal(error: OSError, path: bytes, told: dict[str, Any]) -> Reject:
    """Why a file could not be read, with what its name stands for if that can be told."""
    if error.errno in _GONE:
        told["gone"] = True
        return Reject("not_found", "no such file")
    try:
        found = os.lstat(path)
    except OSError:
        return Reject("unreadable", str(error.strerror))
    told["identity"] = _identity(found)
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return Reject("no_permission" if error.errno == errno.EACCES else "unreadable", str(error.strerror))
    return Reject("not_a_file", "a symbolic link, device, socket or pipe; links are never followed")


if __name__ == "__main__":
    main(sys.argv[1:])
