"""Is a WebP whole, and how large is it once decoded? Its chunks tell (RFC 9649)."""

from __future__ import annotations

import struct

from watcher.core.errors import Reject

HOLE = 32
"""As many zero bytes in a row are no picture without loss, see :func:`_refuse_holes`."""

MOST_CHUNKS = 20_000
"""A moving picture has one for each frame, and it is no radiograph."""

MOST_PASSES = 32
"""Frames of the most pixels allowed: to come to one, a decoder goes through those before it."""


def looks_like(data: bytes) -> bool:
    """RIFF is a container of other things, too."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def frames(data: bytes, max_pixels: int) -> int:
    """See that every chunk is there. Gives the number of frames, 1 for a picture that does not move.

    Raises:
        Reject: ``truncated``, ``damaged``, ``too_complex``, ``too_large`` or ``unreadable``.
    """
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise Reject("truncated", f"the WebP has {len(data)} of its {end} bytes")
    at, chunks, moving, most = 12, 0, 0, 0
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        body = at + 8
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise Reject("too_complex", f"a WebP of more than {MOST_CHUNKS} chunks")
        if body + size > end:
            raise Reject("damaged", f"the WebP's chunk {name!r} goes beyond its end")
        moving += name == b"ANMF"
        most = max(most, _pixels(data, name, body))
        if name == b"VP8L":
            _refuse_holes(data, body, body + size)
        at = body + size + size % 2
    if most > max_pixels:
        raise Reject("too_large", f"{most} pixels, the limit is {max_pixels}")
    if not most:
        raise Reject("unreadable", "a WebP without a picture")
    if moving * most > MOST_PASSES * max_pixels:
        raise Reject("too_complex", f"a WebP of {moving} frames")
    return max(moving, 1)


def _pixels(data: bytes, name: bytes, at: int) -> int:
    """How many pixels a chunk says there are (RFC 9649, 2.5 to 2.7; RFC 6386, 9.1)."""
    head = data[at : at + 10].ljust(10, b"\0")
    if name == b"VP8X":
        return (int.from_bytes(head[4:7], "little") + 1) * (int.from_bytes(head[7:10], "little") + 1)
    if name == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if name == b"VP8 ":
        return (int.from_bytes(head[6:8], "little") & 0x3FFF) * (int.from_bytes(head[8:10], "little") & 0x3FFF)
    return 0


def _refuse_holes(data: bytes, start: int, end: int) -> None:
    """Refuse zeros where pixels should be, as a crashed writer or a sparse upload leaves them.

    256 zero bits would be a pixel that many times, which is written as one run. Not so in pictures with
    loss: their arithmetic code writes zeros for blank areas, and nothing tells those from a hole.
    """
    if (at := data.find(bytes(HOLE), start, end)) >= 0:
        raise Reject("damaged", f"zeros instead of pixels from byte {at} on: the WebP has a hole")
