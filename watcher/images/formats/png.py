"""Check that a PNG is complete and undamaged, by its chunks."""

from __future__ import annotations

import struct
import zlib

from watcher.core.errors import Reject

MAGIC = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 100_000
"""The most chunks, because Pillow is slow at each. A 64 MB file of libpng, with 8 KB a chunk, has 8,000."""


def check_chunks(data: bytes) -> None:
    """Check the checksums of all chunks up to IEND. Pillow does not check those of pixels.

    Raises:
        Reject: ``truncated``, ``damaged`` or ``too_complex``.
    """
    at, name, count = 8, b"", 0
    while name != b"IEND":
        count += 1
        if count > MAX_CHUNKS:
            raise Reject("too_complex", f"a PNG of more than {MAX_CHUNKS} chunks")
        if at + 12 > len(data):
            raise Reject("truncated", "the PNG has no IEND chunk")
        size, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            raise Reject("truncated", f"the PNG ends within its chunk {name!r}")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Reject("damaged", f"the checksum of the PNG's chunk {name!r} is wrong")
        at = end + 4
