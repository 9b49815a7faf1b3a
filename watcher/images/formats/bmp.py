"""Check that a BMP is complete, by the number of bytes that its header gives for the pixels."""

from __future__ import annotations

import struct

from watcher.core.errors import Reject

MAGIC = b"BM"

_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""The possible sizes of the picture's header. The header starts at byte 14 with its size."""

_UNCOMPRESSED, _RUN_LENGTH = (0, 3), (1, 2)


def looks_like(data: bytes) -> bool:
    """Return True if a file begins like a BMP. The header's size must fit, because two letters prove little."""
    return data.startswith(MAGIC) and data[14:18] in {size.to_bytes(4, "little") for size in _HEADERS}


def check(data: bytes) -> None:
    """Check that all pixels are there.

    Raises:
        Reject: ``truncated`` or ``unreadable``.
    """
    try:
        start, size = struct.unpack_from("<II", data, 10)
        fields = "<HHHH" if size == 12 else "<iiHHII"
        width, height, _, bits, *compressed = struct.unpack_from(fields, data, 18)
    except struct.error as error:
        raise Reject("truncated", "the BMP ends within its header") from error
    compression, pixel_bytes = compressed or (0, 0)
    if compression in _RUN_LENGTH:
        end = start + pixel_bytes
        if not pixel_bytes or data[end - 2 : end] not in (b"\0\1", b""):
            raise Reject("unreadable", "the BMP does not say where its pixels end")
    elif compression in _UNCOMPRESSED:
        end = start + (width * bits + 31) // 32 * 4 * abs(height)
    else:
        raise Reject("unreadable", f"a BMP of compression {compression}")
    if end > len(data):
        raise Reject("truncated", f"the BMP ends at byte {len(data)}, its pixels at {end}")
