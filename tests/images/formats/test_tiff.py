"""TIFF: whole or not, which pages count, and what comes out."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from watcher.core.errors import Reject
from watcher.images import decode
from watcher.images.formats import tiff

DEEP = (np.add.outer(np.arange(50), np.arange(70)) * 30 + 300).astype(np.uint16)
GREY = (DEEP // 16).astype(np.uint8)


def encode(*pages: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(page) for page in pages)
    if others:
        options |= {"save_all": True, "append_images": others}
    first.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def refused(data: bytes, max_pixels: int = 64_000_000) -> str:
    with pytest.raises(Reject) as caught:
        decode.grey64(data, decode.Limits(max_pixels=max_pixels))
    return caught.value.reason


def written(order: str, levels: np.ndarray, photometric: int, *extra: tuple[int, int, int]) -> bytes:
    """A TIFF written by hand: one strip behind one directory of short fields (tag, count, value)."""
    height, width = levels.shape
    bits = levels.dtype.itemsize * 8
    fields = [(256, 1, width), (257, 1, height), (258, 1, bits), (259, 1, 1), (262, 1, photometric), (277, 1, 1)]
    fields += [(273, 1, 200), (278, 1, height), (279, 1, levels.nbytes), *extra]
    head = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(fields))
    for tag, count, value in sorted(fields):
        head += struct.pack(order + "HHIH2x", tag, 3, count, value)
    return (head + bytes(4)).ljust(200, b"\0") + levels.astype(levels.dtype.newbyteorder(order)).tobytes()


class TestPixels:
    @pytest.mark.parametrize(
        ("order", "levels"), [("<", GREY), (">", GREY), ("<", DEEP)], ids=["8 bits", "8 bits, big-endian", "16 bits"]
    )
    def test_white_is_zero(self, order: str, levels: np.ndarray) -> None:
        """A film's scan that stores white as 0 shows the same as its inverse, in 8 bits and in 16."""
        black = decode.grey64(written(order, levels, 1)).astype(int)
        white = decode.grey64(written(order, levels, 0)).astype(int)
        assert black[0, 0] < black[-1, -1]
        np.testing.assert_allclose(white - white.min(), (black.max() - black), atol=1)

    def test_what_pillow_can_not_read(self) -> None:
        """16 bits, big-endian, white stored as 0: refused, and never shown inverted."""
        assert refused(written(">", DEEP, 0)) == "unreadable"

    def test_deep_levels_are_scaled_not_clipped(self) -> None:
        """16 bits, as of a 12-bit detector, are spread over 0 to 255, as those of a PNG are."""
        buffer = io.BytesIO()
        Image.fromarray(DEEP).save(buffer, "PNG")
        for data in (encode(DEEP), encode(DEEP, compression="tiff_lzw"), written(">", DEEP, 1)):
            np.testing.assert_array_equal(decode.grey64(data), decode.grey64(buffer.getvalue()))

    def test_floating_point_with_what_is_no_number(self) -> None:
        """Numbers as small as they may be are spread over 0 to 255, those that are none count as the least."""
        levels = GREY.astype(np.float32) / 1e6
        levels[:3], levels[3, 0], levels[3, 1] = np.nan, np.inf, -np.inf
        found = decode.grey64(encode(levels))
        assert (found.min(), found.max()) == (0, 255) and not found[:3].any()

    @pytest.mark.parametrize("turn", range(1, 9))
    def test_orientation(self, turn: int) -> None:
        """A page is shown as its Orientation says: the same picture, whichever way it is stored."""
        ways = [GREY, GREY[:, ::-1], GREY[::-1, ::-1], GREY[::-1]]
        ways += [GREY.T, GREY.T[::-1], GREY.T[::-1, ::-1], GREY.T[:, ::-1]]
        found = decode.grey64(encode(np.ascontiguousarray(ways[turn - 1]), tiffinfo={274: turn}))
        np.testing.assert_array_equal(found, decode.grey64(encode(GREY)))


class TestPages:
    def test_the_middle_page_counts(self) -> None:
        """Of several pages the middle one is shown, and their number is told."""
        found = decode.read(encode(GREY, GREY, GREY[::-1], GREY, GREY))
        assert found.frames == 5
        np.testing.assert_array_equal(found.grey, decode.grey64(encode(np.ascontiguousarray(GREY[::-1]))))

    def test_a_preview_is_no_page(self) -> None:
        """A smaller copy of the picture beside it does not make the file one of several."""
        second = written("<", GREY, 1, (254, 1, 1))
        whole = bytearray(written("<", GREY, 1))
        last = 10 + 12 * 9
        whole[last : last + 4] = struct.pack("<I", len(whole))
        entries = bytearray(second[8 : 10 + 12 * 10 + 4])
        assert decode.read(bytes(whole + entries)).frames == 1

    @pytest.mark.parametrize("to", [8, 10**6])
    def test_pages_without_end(self, to: int) -> None:
        """A directory that follows itself, or is not there, is refused."""
        whole = bytearray(written("<", GREY, 1))
        whole[10 + 12 * 9 : 14 + 12 * 9] = struct.pack("<I", to)
        assert refused(bytes(whole)) == ("unreadable" if to == 8 else "truncated")

    def test_a_million_pages(self) -> None:
        """More pages or fields than any film has are refused in a moment."""
        page = struct.pack("<HHHIIHHII", 2, 273, 4, 1, 8, 279, 4, 1, 8)
        pages = b"".join(page + struct.pack("<I", 8 + 30 * number) for number in range(1, 100_001))
        started = time.process_time()
        assert refused(b"II*\0" + struct.pack("<I", 8) + pages) == "too_complex"
        fields = struct.pack("<H", 60_000) + page[2:] * 30_000
        turns = b"".join(fields + struct.pack("<I", 8 + (len(fields) + 4) * number) for number in (1, 2, 3))
        assert refused(b"II*\0" + struct.pack("<I", 8) + turns) == "too_complex"
        assert time.process_time() - started < 2


class TestWhole:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"big_tiff": True},
            {"compression": "tiff_lzw", "strip_size": 128},
            {"compression": "tiff_adobe_deflate"},
            {"compression": "group4"},
            {"exif": {271: "maker"}},
        ],
        ids=str,
    )
    def test_every_prefix_is_refused(self, options: dict[str, object]) -> None:
        """No TIFF cut short at any byte is shown: in strips, compressed, of the big kind, with EXIF."""
        levels = GREY[:20, :24]
        if "exif" in options:
            exif = Image.Exif()
            exif.get_ifd(34665)[36867] = "2026:11:23 20:00:00"
            options = {"exif": exif}
        data = encode(levels > 100 if options.get("compression") == "group4" else levels, **options)
        decode.grey64(data)
        padding = len(data) - len(data.rstrip(b"\0"))  # to an even length
        taken = []
        for cut in range(len(data) - padding):
            try:
                decode.grey64(data[:cut])
            except Reject:
                continue
            taken.append(cut)
        assert taken == []

    def test_flat_pictures_are_no_damage(self) -> None:
        """Pictures of one level, whose coding has little to tell, have no hole."""
        for compression in ("tiff_lzw", "packbits", "group4", "tiff_deflate", "jpeg"):
            for side in (64, 3000):
                flat = np.zeros((side, side), bool if compression == "group4" else np.uint8)
                flat[side // 2 :] = 1
                decode.grey64(encode(flat, compression=compression))

    def test_a_hole(self) -> None:
        """Zeros in the middle of compressed pixels refuse the file."""
        noise = np.random.default_rng(1).integers(0, 256, (90, 90), np.uint8)
        data = bytearray(encode(noise, compression="tiff_lzw"))
        data[3000:3100] = bytes(100)
        assert refused(bytes(data)) == "damaged"


class TestHostile:
    def test_tiles_larger_than_the_picture(self) -> None:
        """A tile is memory, too."""
        data = written("<", GREY, 1, (322, 1, 60_000), (323, 1, 60_000), (324, 1, 200), (325, 1, 3500))
        assert refused(data) == "too_large"

    def test_strips_that_are_nowhere(self) -> None:
        """A strip at byte 0, or of no bytes, would show the header as pixels."""
        whole = bytearray(written("<", GREY, 1))
        at = whole.index(struct.pack("<HHIH", 273, 3, 1, 200)) + 8
        whole[at : at + 2] = b"\0\0"
        assert refused(bytes(whole)) == "unreadable"

    def test_too_many_pixels(self) -> None:
        """The limit of pixels holds for the page that is shown."""
        assert refused(encode(GREY), max_pixels=GREY.size - 1) == "too_large"
        assert tiff.pages(encode(GREY), GREY.size) == [0]
