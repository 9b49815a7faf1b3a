"""Decode: bytes to one 64 x 64 grey image, or a reason."""

from __future__ import annotations

import functools
import io
import itertools
import struct
import subprocess
import sys
import time
import unittest.mock
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from watcher import images
from watcher.core.errors import Reject
from watcher.images import decode

Encoded = Callable[..., bytes]

DICOM_READER = f"{images.__name__}.dicom_pixels"
DICOM_FILE = bytes(128) + b"DICM" + b"\x08\0\x60\0CS\x02\0CT"
"""One element, its Modality."""


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 64, height: int = 64) -> np.ndarray:
    return np.add.outer(np.arange(height) * 2, np.arange(width)).astype(np.uint8)


def bare_png(width: int, height: int, depth: int = 8, colour: int = 0, rows: bytes = b"") -> bytes:
    """A PNG written by hand, of any size and depth."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def rejected(data: bytes, limits: decode.Limits = decode.Limits()) -> str:
    with pytest.raises(Reject) as caught:
        decode.grey64(data, limits)
    assert caught.value.detail
    return caught.value.reason


class TestPixels:
    def test_grey_png_comes_back_pixel_for_pixel(self, png: Encoded) -> None:
        """An 8-bit grey 64 x 64 image is not touched."""
        data = png(7)
        levels = decode.grey64(data)
        assert levels.dtype == np.uint8
        np.testing.assert_array_equal(levels, np.asarray(Image.open(io.BytesIO(data))))

    def test_grey_jpeg_comes_back_as_decoded(self, jpeg: Encoded) -> None:
        """A grey 64 x 64 JPEG is exactly what Pillow makes of it: no draft mode, no resampling."""
        data = jpeg(7, quality=95)
        np.testing.assert_array_equal(decode.grey64(data), np.asarray(Image.open(io.BytesIO(data))))

    def test_16_bit_is_scaled_not_clipped(self) -> None:
        """16-bit levels, as of a 12-bit detector, are spread over 0 to 255 instead of being clipped to white."""
        levels = (np.add.outer(np.arange(64), np.arange(64)) * 32 + 300).astype(np.uint16)
        found = decode.grey64(encode(Image.fromarray(levels)))
        expected = np.rint((levels - 300.0) * 255 / (levels.max() - 300.0))
        np.testing.assert_allclose(found, expected, atol=1)  # halves may be rounded either way
        assert found.min() == 0 and found.max() == 255

    def test_16_bit_large_image_keeps_its_gradient(self) -> None:
        """A large 16-bit image is resampled before it is scaled: a gradient stays one."""
        levels = np.tile(np.arange(512, dtype=np.uint16) * 100, (512, 1))
        found = decode.grey64(encode(Image.fromarray(levels))).astype(int)
        assert (np.diff(found, axis=1) > 0).all() and found[0, 0] == 0 and found[0, -1] == 255

    def test_16_bit_constant_image_is_blank(self) -> None:
        """One single 16-bit level becomes one grey level."""
        assert decode.is_blank(decode.grey64(encode(Image.fromarray(np.full((64, 64), 40000, np.uint16)))))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
    def test_colour_modes_of_png_become_their_luminance(self, mode: str) -> None:
        """Colour, alpha, palette and bilevel PNGs of a grey picture give that grey picture."""
        grey = Image.fromarray(gradient() if mode != "1" else (gradient() > 90).astype(np.uint8) * 255)
        found = decode.grey64(encode(grey.convert(mode)))
        np.testing.assert_allclose(found.astype(int), np.asarray(grey).astype(int), atol=1)

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_colour_modes_of_jpeg_become_their_luminance(self, mode: str) -> None:
        """Colour and print (CMYK) JPEGs of a grey picture give that grey picture, not its negative."""
        grey = Image.fromarray(gradient())
        found = decode.grey64(encode(grey.convert("RGB").convert(mode), "JPEG", quality=95))
        np.testing.assert_allclose(found.astype(int), np.asarray(grey).astype(int), atol=6)

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (63, 65), (640, 480)])
    def test_any_size_becomes_64_by_64(self, size: tuple[int, int], jpeg: Encoded, png: Encoded) -> None:
        """Any aspect ratio, down to a single pixel, is resampled to 64 x 64."""
        for data in (jpeg(0, *size), png(0, *size), encode(Image.new("I;16", size))):
            found = decode.grey64(data)
            assert (found.shape, found.dtype) == ((64, 64), np.uint8)

    def test_orientation_of_a_large_image_is_kept(self) -> None:
        """Resampling neither mirrors nor transposes: dark stays top left."""
        found = decode.grey64(encode(Image.fromarray(gradient(120, 60)))).astype(int)
        assert found[0, 0] < 10 and found[0, -1] > 100 and found[-1, -1] > found[-1, 0] > 100

    def test_palette_with_transparency_is_decoded_in_silence(self) -> None:
        """A file that Pillow would warn of writes nothing into the daemon's output (here: warnings are errors)."""
        image = Image.fromarray(gradient()).convert("P")
        found = decode.grey64(encode(image, transparency=bytes([0, 128, 255])))
        np.testing.assert_allclose(found.astype(int), gradient().astype(int), atol=1)


def stored(turn: int, levels: np.ndarray) -> np.ndarray:
    """Return the levels that are stored under an orientation for ``levels`` to be shown (EXIF 2.32, 4.6.4)."""
    across = levels.T
    ways = [levels, levels[:, ::-1], levels[::-1, ::-1], levels[::-1]]
    ways += [across, across[::-1], across[::-1, ::-1], across[:, ::-1]]
    return np.ascontiguousarray(ways[turn - 1])


class TestUpright:
    """A camera's or a phone's picture is shown the way its EXIF says."""

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "colour JPEG", "16-bit PNG"])
    @pytest.mark.parametrize("turn", range(1, 9))
    def test_every_way_to_hold_a_camera(self, turn: int, kind: str) -> None:
        """Whichever of the eight ways the pixels are stored in, the same picture comes out."""
        levels = stored(turn, gradient(60, 40))
        image = Image.fromarray(levels.astype(np.uint16) * 256 if "16" in kind else levels)
        image = image.convert("RGB") if kind == "colour JPEG" else image
        exif = Image.Exif()
        exif[0x0112] = turn
        name = kind.split()[-1]
        options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if name == "JPEG" else {}
        found = decode.grey64(encode(image, name, exif=exif, **options)).astype(int)
        wanted = decode.grey64(encode(Image.fromarray(gradient(60, 40)))).astype(int)
        if "16" in kind:
            wanted = np.rint((wanted - wanted.min()) * 255 / (wanted.max() - wanted.min()))
        np.testing.assert_allclose(found, wanted, atol=3)

    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
    )
    def test_an_exif_that_is_none(self, jpeg: Encoded, exif: bytes) -> None:
        """No pixel depends on it: the picture is shown as it is stored."""
        np.testing.assert_array_equal(decode.grey64(jpeg(3, exif=b"Exif\0\0" + exif)), decode.grey64(jpeg(3)))


class TestRejects:
    def test_empty_file(self) -> None:
        """No bytes: empty."""
        assert rejected(b"") == "empty"

    @pytest.mark.parametrize("data", [b"x", b"not an image " * 50, b"%PDF-1.7\n", b"\0" * 1000])
    def test_other_content(self, data: bytes) -> None:
        """A file that is no image by its content is unsupported, whatever its name may be."""
        assert rejected(data) == "unsupported_format"

    @pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "PPM", "ICO", "TGA"])
    def test_other_image_formats(self, kind: str) -> None:
        """Any other format is unsupported, also one that Pillow could read."""
        assert rejected(encode(Image.fromarray(gradient()), kind)) == "unsupported_format"

    def test_too_many_bytes(self, png: Encoded) -> None:
        """A file above max_bytes is not even looked at; one at the limit is fine."""
        data = png()
        assert rejected(data, decode.Limits(max_bytes=len(data) - 1)) == "too_large"
        decode.grey64(data, decode.Limits(max_bytes=len(data)))

    def test_too_many_pixels(self, jpeg: Encoded, png: Encoded) -> None:
        """An image above max_pixels is refused by its header; one at the limit is fine."""
        for data in (png(0, 100, 50), jpeg(0, 100, 50)):
            assert rejected(data, decode.Limits(max_pixels=4999)) == "too_large"
            decode.grey64(data, decode.Limits(max_pixels=5000))

    @pytest.mark.parametrize("side", [8001, 10_000, 20_000, 2**31 - 1])
    def test_decompression_bomb(self, side: int) -> None:
        """A few bytes that claim to be a huge image are refused in silence, before any memory is spent on them."""
        assert rejected(bare_png(side, side)) == "too_large"

    def test_operator_may_allow_more_pixels(self) -> None:
        """max_pixels is the only limit: an image that Pillow alone would warn of is decoded when allowed."""
        rows = b"".join(b"\0" + bytes(11_250) for _ in range(1))
        data = bare_png(90_000, 1_000, depth=1, rows=rows * 1_000)
        assert decode.is_blank(decode.grey64(data, decode.Limits(max_pixels=100_000_000)))

    def test_no_pixels(self) -> None:
        """An image of zero width is no image."""
        assert rejected(bare_png(0, 64)) in ("unreadable", "unsupported_format")

    def test_a_png_of_nothing_but_chunks(self) -> None:
        """Sixty megabytes of empty chunks are refused in a moment, not after minutes of parsing."""
        chunk = struct.pack(">I4sI", 0, b"teXt", zlib.crc32(b"teXt"))
        data = bare_png(64, 64)
        started = time.process_time()
        assert rejected(data[:33] + chunk * 5_000_000 + data[33:]) == "too_complex"
        assert time.process_time() - started < 2

    def test_damaged_middle(self, png: Encoded) -> None:
        """A PNG whose pixel data are damaged is told so, by its checksum: it is no picture of something else."""
        data = bytearray(png())
        data[len(data) // 2] ^= 0xFF
        assert rejected(bytes(data)) == "damaged"


class TestOneReading:
    """JPEGs such as nearly all are do not pass through Pillow: nothing else may differ by that."""

    @pytest.mark.parametrize("size", [(64, 64), (1, 1), (7, 9), (63, 65), (130, 40)])
    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_pixels_are_those_of_pillow(self, mode: str, size: tuple[int, int]) -> None:
        """Of every subsampling, size, quality and kind of coding, the pixels are what Pillow alone makes of them."""
        picture = Image.fromarray(gradient(*size)).convert(mode)
        turns = itertools.product((10, 75, 100), (0, 1, 2, "4:1:1"), (False, True), (False, True), (0, 3))
        for quality, subsampling, progressive, optimize, restart in turns:
            options = {"progressive": progressive, "optimize": optimize, "restart_marker_blocks": restart}
            data = encode(picture, "JPEG", quality=quality, subsampling=subsampling, **options)
            np.testing.assert_array_equal(decode.grey64(data), by_pillow(data))

    @pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
    def test_pixels_of_another_encoder_are_those_of_pillow(self, subsampling: str) -> None:
        """Also of subsamplings that Pillow does not write."""
        colour = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
        data = simplejpeg.encode_jpeg(colour, 90, "RGB", subsampling)
        np.testing.assert_array_equal(decode.grey64(data), by_pillow(data))

    def test_pillow_does_not_read_a_common_jpeg(self, jpeg: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
        """Grey and colour JPEGs are read once; what has more in its header is left to Pillow."""
        common = [jpeg(0), jpeg(0, 70, 50, "RGB", progressive=True, comment=b"x", dpi=(72, 72))]
        others = [
            jpeg(0, exif=b"Exif\0\0"),
            jpeg(0, icc_profile=b"x" * 99),
            jpeg(0, mode="CMYK"),
            b"\xff\xd8\xff" + jpeg()[2:],
        ]
        monkeypatch.setattr(Image, "open", unittest.mock.Mock(side_effect=AssertionError))
        for data in common:
            decode.grey64(data)
        for data in others:
            with pytest.raises(AssertionError):
                decode.grey64(data)

    @given(data=st.data())
    def test_damaged_headers_are_refused_as_by_pillow(self, jpeg: Encoded, data: st.DataObject) -> None:
        """A header that Pillow refuses is refused, and one that Pillow opens gives the same pixels."""
        mode, dpi = data.draw(st.sampled_from([("L", None), ("RGB", (72, 72)), ("CMYK", None)]))
        hurt = bytearray(jpeg(3, 12, 10, mode, **({"dpi": dpi} if dpi else {})))
        places = st.integers(2, hurt.index(b"\xff\xda") + 13)
        values = st.sampled_from([0, 1, 2, 3, 8, 12, 254, 255]) | st.integers(0, 255)
        for place, value in data.draw(st.lists(st.tuples(places, values), min_size=1, max_size=3)):
            hurt[place] = value
        with unittest.mock.patch("watcher.images.formats.jpeg.header", return_value=None):
            slow = outcome(bytes(hurt))
        assert outcome(bytes(hurt)) == slow

    def test_several_pictures_in_one_jpeg(self, jpeg: Encoded) -> None:
        """Of a JPEG with several pictures (MPO) it is the first, judged as any other."""
        first, second = (Image.open(io.BytesIO(jpeg(seed))) for seed in (1, 2))
        data = encode(first, "MPO", save_all=True, append_images=[second])
        assert Image.open(io.BytesIO(data)).format == "MPO"
        np.testing.assert_array_equal(decode.grey64(data), by_pillow(data))
        end = data.index(b"\xff\xd9")
        assert rejected(data[: end - 20]) == rejected(data[:-1]) == "truncated"
        assert rejected(data[:end] + b"Z" * 100 + data[end:]) == "damaged"


def by_pillow(data: bytes) -> np.ndarray:
    """Return what Pillow alone decodes from the file: the longer side 64, the other filled up."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = (max(1, round(side * 64 / max(image.size))) for side in image.size)
        small = np.asarray(image.convert("L").resize((width, height), Image.Resampling.BILINEAR))
        top, left = (64 - height) // 2, (64 - width) // 2
        return np.pad(small, ((top, 64 - height - top), (left, 64 - width - left)), "edge")


def outcome(data: bytes) -> bytes | str:
    try:
        return decode.grey64(data, decode.Limits(max_pixels=1_000_000)).tobytes()
    except Reject as error:
        return error.reason


class TestTruncated:
    """A file that a producer has not finished writing never passes for an image."""

    @pytest.mark.parametrize(
        "options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"comment": b"x\xff\xd9"}]
    )
    def test_every_strict_prefix_of_a_jpeg(self, jpeg: Encoded, options: dict[str, object]) -> None:
        """No JPEG cut short at any byte is decoded, progressive, with restarts or with a misleading comment."""
        data = jpeg(1, 24, 20, **options)
        assert _accepted_prefixes(data) == []

    def test_every_strict_prefix_of_a_jpeg_with_a_thumbnail(self, jpeg: Encoded) -> None:
        """The end marker of an embedded thumbnail is not taken for that of the image."""
        data = jpeg(1, 24, 20)
        app1 = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + jpeg(2, 8, 8)
        assert _accepted_prefixes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + data[2:]) == []

    @pytest.mark.parametrize("mode", ["L", "RGB", "P"])
    def test_every_strict_prefix_of_a_png(self, png: Encoded, mode: str) -> None:
        """No PNG cut short at any byte is decoded, down to the last byte of its last checksum."""
        assert _accepted_prefixes(png(1, 24, 20, mode)) == []

    def test_trailing_bytes_are_no_harm(self, jpeg: Encoded, png: Encoded) -> None:
        """Padding after the end of a whole image is fine."""
        for data in (jpeg(), png()):
            np.testing.assert_array_equal(decode.grey64(data + b"\0" * 512), decode.grey64(data))


def _accepted_prefixes(data: bytes) -> list[int]:
    """The lengths below len(data) at which the data still pass for an image. Empty is right."""
    decode.grey64(data)
    passed = []
    for length in range(len(data)):
        try:
            decode.grey64(data[:length])
        except Reject:
            continue
        passed.append(length)
    return passed


def _well_formed(data: bytes) -> bool:
    """Decoding ends in one of the two ways there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = decode.grey64(data, decode.Limits(max_pixels=1_000_000))
        except Reject as error:
            return bool(error.reason and error.detail)
    return (found.shape, found.dtype) == ((64, 64), np.uint8)


@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\x10JFIF\0"]), st.binary())
def test_any_bytes_give_an_image_or_a_reason(head: bytes, rest: bytes) -> None:
    """Random bytes, also behind a real signature, raise nothing but Reject."""
    assert _well_formed(head + rest)


@given(kind=st.sampled_from(["jpeg", "progressive", "png", "palette"]), data=st.data())
def test_any_damage_gives_an_image_or_a_reason(jpeg: Encoded, png: Encoded, kind: str, data: st.DataObject) -> None:
    """A real image with any bytes overwritten, checksums mended, raises nothing but Reject."""
    whole = {
        "jpeg": lambda: jpeg(3, 12, 10),
        "progressive": lambda: jpeg(3, 12, 10, progressive=True),
        "png": lambda: png(3, 12, 10),
        "palette": lambda: png(3, 12, 10, "P"),
    }[kind]()
    hurt = bytearray(whole)
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(hurt) - 1), st.integers(0, 255)), max_size=6)):
        hurt[place] = value
    assert _well_formed(bytes(hurt))
    if kind in ("png", "palette"):
        assert _well_formed(_mended(bytes(hurt)))


def _mended(data: bytes) -> bytes:
    """The chunks of a PNG with their checksums made right again, so that damage reaches the decoder."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        if len(body) != length + 4:
            break
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4)
        at += 12 + length
    return out + data[at:]


class TestDicomReader:
    @pytest.fixture(autouse=True)
    def not_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reader of DICOM files is not imported yet."""
        monkeypatch.delattr(images, "dicom_pixels", raising=False)
        monkeypatch.setattr(decode, "load_dicom_reader", functools.cache(decode.load_dicom_reader.__wrapped__))

    def test_missing_package_means_that_the_extra_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without pydicom there is no reader, and a DICOM file is rejected for that."""
        monkeypatch.delitem(sys.modules, DICOM_READER, raising=False)
        monkeypatch.setitem(sys.modules, "pydicom", None)
        assert not decode.load_dicom_reader()
        assert rejected(DICOM_FILE) == "needs_dicom_extra"

    @pytest.mark.parametrize("missing", [DICOM_READER, "watcher.images.dicom_vocabulary"])
    def test_missing_module_of_our_own_raises(self, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
        """A renamed or lost module must not send every DICOM file to quarantine for want of an extra."""
        monkeypatch.delitem(sys.modules, DICOM_READER, raising=False)
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delattr(images, missing.rpartition(".")[2], raising=False)
        with pytest.raises(ImportError, match=missing.rpartition(".")[2]):
            decode.load_dicom_reader()
        with pytest.raises(ImportError):
            decode.grey64(DICOM_FILE)


class TestStandardise:
    def test_matches_the_formula(self) -> None:
        """Each image for itself: (x - min) / (max - min), less the mean of that."""
        images = np.random.default_rng(0).integers(20, 200, (3, 64, 64), dtype=np.uint8)
        found = decode.standardise(images)
        assert (found.shape, found.dtype) == ((3, 1, 64, 64), np.float32)
        for image, one in zip(images.astype(np.float64), found, strict=True):
            scaled = (image - image.min()) / (image.max() - image.min())
            np.testing.assert_allclose(one[0], scaled - scaled.mean(), atol=1e-5)

    def test_constant_image_gives_zeros(self) -> None:
        """One single grey level, black, grey or white, becomes zeros: no division by zero."""
        images = np.stack([np.full((64, 64), level, np.uint8) for level in (0, 128, 255)])
        assert not decode.standardise(images).any()

    def test_two_levels_next_to_each_other_are_spread(self) -> None:
        """A contrast of one grey level is scaled to the full range."""
        image = np.zeros((1, 64, 64), np.uint8)
        image[0, :32] = 1
        found = decode.standardise(image)
        assert found.max() == 0.5 and found.min() == -0.5

    def test_leaves_its_input_alone(self) -> None:
        """The images are not changed in place."""
        images = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8)
        before = images.copy()
        decode.standardise(images)
        np.testing.assert_array_equal(images, before)


def test_blank_is_one_single_level() -> None:
    """Blank means every pixel the same; one pixel that differs is enough to be none."""
    image = np.full((64, 64), 9, np.uint8)
    assert decode.is_blank(image)
    image[63, 63] = 10
    assert not decode.is_blank(image)


def test_reasons_are_few() -> None:
    """Reasons label metrics: all that decoding gives are of the documented vocabulary."""
    known = {"empty", "too_large", "unsupported_format", "truncated", "unreadable"}
    rng = np.random.default_rng(0)
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        for size in range(60):
            assert rejected(start + rng.bytes(size)) in known


def test_a_decoder_loads_no_plugin_of_pillow_that_it_does_not_need() -> None:
    """A decoder that is ready for every format has not loaded Pillow's 38 other plugins, which take 0.1 s."""
    code = (
        "import sys; from watcher.images import decode; decode.warm_up()\n"
        "sys.exit(bool({'PIL.PcxImagePlugin', 'PIL.PdfImagePlugin', 'PIL.FliImagePlugin'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
