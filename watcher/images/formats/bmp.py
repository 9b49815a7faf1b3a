"""Is a BMP whole? Its header tells how many bytes its pixels take."""

from __future__ import annotations

import struct

from watcher.core.errors import Reject

MAGIC = b"BM"

_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""The sizes that the header of the picture can have: it begins with its own, at byte 14."""

_PLAIN, _BY_RUNS = (0, 3), (1, 2)


def looks_like(data: bytes) -> bool:
    """The two letters it begins with are those of a thousand texts as well."""
    return data.startswith(MAGIC) and data[14:18] in {size.to_bytes(4, "little") for size in _HEADERS}


def check(data: bytes) -> None:
    """See that the pixels are all there.

    Raises:
        Reject: ``truncated`` or ``unreadable``.
    """
    try:
        start, size = struct.unpack_from("<II", data, 10)
        form = "<HHHH" if size == 12 else "<iiHHII"
        width, height, _, bits, *compressed = struct.unpack_from(form, data, 18)
    except struct.error as error:
        raise Reject("truncated", "the BMP ends within its header") from error
    compression, told = compressed or (0, 0)
    if compression in _BY_RUNS:
        end = start + told
        if not told or data[end - 2 : end] not in (b"\0\1", b""):
            raise Reject("unreadable", "the BMP does not say where its pixels end")
    elif compression in _PLAIN:
        end = start + (width * bits + 31) // 32 * 4 * abs(height)
    else:
        raise Reject("unreadable", f"a BMP of compression {compression}")
    if end > len(data):
        raise Reject("truncated", f"the BMP ends at byte {len(data)}, its pixels at {end}")
