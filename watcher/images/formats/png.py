"""Is a PNG whole? Its chunks tell, before anything is decoded."""

from __future__ import annotations

import struct
import zlib

from watcher.core.errors import Reject

MAGIC = b"\x89PNG\r\n\x1a\n"


MOST_CHUNKS = 100_000
"""Pillow takes its time over each. A file of 64 MB from libpng, 8 KB of pixels to the chunk, has 8,000."""


def check_chunks(data: bytes) -> None:
    """See that every chunk has its checksum, up to IEND. Pillow does not ask this of pixels.

    Raises:
        Reject: ``truncated``, ``damaged`` or ``too_complex``.
    """
    at, name, count = 8, b"", 0
    while name != b"IEND":
        count += 1
        if count > MOST_CHUNKS:
            raise Reject("too_complex", f"a PNG of more than {MOST_CHUNKS} chunks")
        if at + 12 > len(data):
            raise Reject("truncated", "the PNG has no IEND chunk")
        size, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            raise Reject("truncated", f"the PNG ends within its chunk {name!r}")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Reject("damaged", f"the checksum of the PNG's chunk {name!r} is wrong")
        at = end + 4
