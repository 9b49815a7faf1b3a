"""WebP: whole or not, and what comes out."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from watcher.core.errors import Reject
from watcher.images import decode

NOISE = np.random.default_rng(1).integers(0, 256, (20, 24, 3), np.uint8)
SHADE = np.add.outer(np.arange(64) * 2, np.arange(64)).astype(np.uint8)


def encode(picture: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", **options)
    return buffer.getvalue()


def refused(data: bytes, max_pixels: int = 64_000_000) -> str:
    with pytest.raises(Reject) as caught:
        decode.grey64(data, decode.Limits(max_pixels=max_pixels))
    return caught.value.reason


def extended(width: int, height: int, *chunks: bytes) -> bytes:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0"
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}], ids=str)
def test_every_prefix_is_refused(options: dict[str, object]) -> None:
    """No WebP cut short at any byte is shown, lossy, lossless or with EXIF behind the picture."""
    data = encode(NOISE, **options)
    decode.grey64(data)
    for cut in range(len(data)):
        refused(data[:cut])


def test_a_grey_picture() -> None:
    """Without loss, it is that very picture."""
    np.testing.assert_allclose(decode.grey64(encode(SHADE, lossless=True)).astype(int), SHADE.astype(int), atol=1)


def test_a_moving_picture() -> None:
    """Of several frames the middle one is shown, and their number is told."""
    frames = [Image.fromarray(np.full((30, 30, 3), level, np.uint8)) for level in (0, 50, 100, 150, 250)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    found = decode.read(buffer.getvalue())
    assert (found.frames, found.grey[0, 0]) == (5, 100)


def test_flat_pictures_are_no_damage() -> None:
    """Large pictures with hardly anything in them have no hole."""
    for side in (64, 1500):
        flat = np.zeros((side, side), np.uint8)
        flat[: side // 2] = 200
        for lossless in (False, True):
            decode.grey64(encode(flat, lossless=lossless))


def test_a_hole() -> None:
    """Zeros in the middle of the pixels refuse the file."""
    data = bytearray(encode(np.random.default_rng(2).integers(0, 256, (60, 60, 3), np.uint8), lossless=True))
    data[1000:1100] = bytes(100)
    assert refused(bytes(data)) == "damaged"


def test_it_says_that_it_is_huge() -> None:
    """Refused by its header, before Pillow lays out a canvas for it."""
    assert refused(extended(2**24, 2**24)) == "too_large"
    assert refused(encode(NOISE), max_pixels=479) == "too_large"


def test_chunks_without_end() -> None:
    """Any number of empty chunks, or of frames, is refused in a moment."""
    started = time.process_time()
    assert refused(extended(64, 64, b"JUNK\0\0\0\0" * 1_000_000)) == "too_complex"
    assert refused(extended(8000, 8000, b"ANMF\0\0\0\0" * 33)) == "too_complex"
    assert refused(extended(64, 64, b"VP8 \xff\0\0\0")) == "damaged"
    assert refused(b"RIFF\x04\0\0\0WEBP") == "unreadable"
    assert time.process_time() - started < 2
