"""BMP: whole or not, and what comes out."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from watcher.core.errors import Reject
from watcher.images import decode

GREY = np.add.outer(np.arange(20) * 4, np.arange(23)).astype(np.uint8)


def encode(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY).convert(mode).save(buffer, "BMP")
    return buffer.getvalue()


def by_runs() -> bytes:
    """Each row as two runs, half and half, and the mark of the end."""
    rows = b"".join(bytes([10, row, 13, row + 100, 0, 0]) for row in range(20))
    pixels = rows[:-2] + b"\0\1"
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    head = struct.pack("<IiiHHIIiiII", 40, 23, 20, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(pixels), 0, 0, 54 + 1024) + head + palette + pixels


def refused(data: bytes) -> str:
    with pytest.raises(Reject) as caught:
        decode.grey64(data)
    return caught.value.reason


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_every_prefix_is_refused(mode: str) -> None:
    """No BMP cut short at any byte is shown, of any depth."""
    data = encode(mode)
    decode.grey64(data)
    for cut in range(len(data)):
        refused(data[:cut])


def test_runs() -> None:
    """A BMP of runs is read, and no prefix of it."""
    data = by_runs()
    found = decode.grey64(data).astype(int)
    assert found[-1, 0] == 0 and found[0, -1] == 119
    for cut in range(len(data)):
        refused(data[:cut])


def test_pixels_are_those_of_a_png() -> None:
    """Grey and colour, stored from the bottom up or from the top down: the picture is the same."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    upright = decode.grey64(buffer.getvalue())
    for mode in ("L", "RGB"):
        np.testing.assert_array_equal(decode.grey64(encode(mode)), upright)
    data = bytearray(encode("L"))
    data[22:26] = struct.pack("<i", -20)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(GREY[::-1])).save(buffer, "PNG")
    np.testing.assert_array_equal(decode.grey64(bytes(data)), decode.grey64(buffer.getvalue()))


def test_a_text_that_begins_like_one() -> None:
    """Two letters make no BMP."""
    assert refused(b"BMI over 25: 12 patients\n" * 9) == "unsupported_format"


def test_it_says_that_it_is_huge() -> None:
    """The pixels it tells of are not there: refused before any memory is spent on them."""
    data = bytearray(encode("L"))
    data[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    assert refused(bytes(data)) == "truncated"


def test_what_no_camera_writes() -> None:
    """A JPEG in a BMP, or runs without an end, are refused as unreadable."""
    for kind, length in ((4, 100), (1, 0), (1, 77)):
        data = bytearray(by_runs())
        data[30:38] = struct.pack("<II", kind, length)
        assert refused(bytes(data)) == "unreadable"
