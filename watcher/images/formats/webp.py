"""Check that a WebP is complete and not too large once decoded, by its chunks (RFC 9649)."""

from __future__ import annotations

import struct

from watcher.core.errors import Reject

HOLE = 32
"""The number of zero bytes in a row that no lossless picture contains, see :func:`_reject_holes`."""

MAX_CHUNKS = 20_000
"""The most chunks. An animation has one for each frame, but no radiograph has so many."""

MAX_FRAMES = 32
"""The most frames of the largest size allowed. A decoder must go through all frames before the one it wants."""


def looks_like(data: bytes) -> bool:
    """Return True if a file begins like a WebP, which is one of several formats in RIFF containers."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def frames(data: bytes, max_pixels: int) -> int:
    """Check that all chunks are there, and return the number of frames. A still picture has 1.

    Raises:
        Reject: ``truncated``, ``damaged``, ``too_complex``, ``too_large`` or ``unreadable``.
    """
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise Reject("truncated", f"the WebP has {len(data)} of its {end} bytes")
    at, chunks, animated, pixels = 12, 0, 0, 0
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        body = at + 8
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise Reject("too_complex", f"a WebP of more than {MAX_CHUNKS} chunks")
        if body + size > end:
            raise Reject("damaged", f"the WebP's chunk {name!r} goes beyond its end")
        animated += name == b"ANMF"
        pixels = max(pixels, _pixels(data, name, body))
        if name == b"VP8L":
            _reject_holes(data, body, body + size)
        at = body + size + size % 2
    if pixels > max_pixels:
        raise Reject("too_large", f"{pixels} pixels, the limit is {max_pixels}")
    if not pixels:
        raise Reject("unreadable", "a WebP without a picture")
    if animated * pixels > MAX_FRAMES * max_pixels:
        raise Reject("too_complex", f"a WebP of {animated} frames")
    return max(animated, 1)


def _pixels(data: bytes, name: bytes, at: int) -> int:
    """Return the number of pixels that a chunk declares (RFC 9649, 2.5 to 2.7; RFC 6386, 9.1), 0 if none."""
    head = data[at : at + 10].ljust(10, b"\0")
    if name == b"VP8X":
        return (int.from_bytes(head[4:7], "little") + 1) * (int.from_bytes(head[7:10], "little") + 1)
    if name == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if name == b"VP8 ":
        return (int.from_bytes(head[6:8], "little") & 0x3FFF) * (int.from_bytes(head[8:10], "little") & 0x3FFF)
    return 0


def _reject_holes(data: bytes, start: int, end: int) -> None:
    """Reject zeros in place of pixels, as a crashed writer or a sparse upload leaves them.

    In a lossless picture, 256 zero bits would stand for equal pixels, which are written as one run instead. Lossy
    pictures are not checked: their arithmetic code writes zeros for blank areas, which look like a hole.
    """
    if (at := data.find(bytes(HOLE), start, end)) >= 0:
        raise Reject("damaged", f"zeros instead of pixels from byte {at} on: the WebP has a hole")
