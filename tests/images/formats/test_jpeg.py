"""A JPEG's markers tell whether it has holes, and how much work it is."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.support.daemon import Sampler
from tests.support.jpeg_bits import frame, packed, progressive, scan, segment, separate_scans, table
from watcher.core.errors import Reject
from watcher.images.decode import Limits, grey64
from watcher.images.formats import jpeg

BLOCK = 512  # of a disk, the least that a crash leaves unwritten


def encode(levels: np.ndarray, mode: str = "L", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def blanks(side: int = 200) -> Iterator[np.ndarray]:
    """Pictures that are blank wholly or in large part."""
    y, x = np.mgrid[:side, :side]
    yield from (np.full((side, side), level, np.uint8) for level in (0, 128, 255))
    yield (y > side // 2).astype(np.uint8) * 255
    yield ((x - side / 2) ** 2 + (y - side / 2) ** 2 < 900).astype(np.uint8) * 180  # a CT on black
    yield from (ramp.astype(np.uint8) for ramp in (x // 2, 255 - x // 2, y // 2, 255 - y, (x + y) // 2))
    yield ((x // 8) % 2 * 255).astype(np.uint8)
    yield ((x + y) % 2 * 255).astype(np.uint8)


def holed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(BLOCK) + data[at + BLOCK :]


def passes(data: bytes) -> bool:
    try:
        grey64(data)
    except Reject:
        return False
    return True


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """A synthetic radiograph of each class, enlarged to 256 x 256."""
    small = [Image.open(io.BytesIO(data)) for data in Sampler(5).many(6)]
    return [np.asarray(image.resize((256, 256))) for image in small]


class TestHoles:
    @pytest.mark.parametrize(
        ("mode", "options"),
        [
            ("L", {}),
            ("L", {"quality": 95}),
            ("RGB", {"subsampling": 2}),
            ("RGB", {"subsampling": 0, "quality": 90}),
            ("RGB", {"restart_marker_blocks": 8}),
            ("CMYK", {}),
        ],
    )
    def test_a_block_of_zeros_is_refused_wherever_it_is(
        self, pictures: list[np.ndarray], mode: str, options: dict[str, object]
    ) -> None:
        """512 zeros instead of compressed data, at any byte, never pass for a picture."""
        for levels in pictures:
            data = encode(levels, mode, **options)
            start = data.index(b"\xff\xda") + 14
            assert len(data) > start + 2 * BLOCK
            assert [at for at in range(start, len(data) - BLOCK, 37) if passes(holed(data, at))] == []

    def test_the_reason_says_where(self, pictures: list[np.ndarray]) -> None:
        """The detail names the byte at which the hole begins."""
        whole = encode(pictures[0])
        data = holed(whole, len(whole) - 1000)
        with pytest.raises(Reject, match=r"hole") as caught:
            grey64(data)
        told = int(caught.value.detail.split("byte ")[1].split()[0])
        assert caught.value.reason == "damaged"
        assert len(whole) - 1002 <= told <= len(whole) - 1000

    def test_holes_that_libjpeg_takes_for_pixels(self) -> None:
        """A hole that makes as many blocks as it destroyed decodes without complaint: only its zeros tell."""
        tables = segment(0xC4, table(0x00, 0) + table(0x10, 1, 0))
        block = "0" + "00" * 63  # the same as before in the mean, -1 in each other place
        data = frame(0xC0, 64, 64) + tables + scan(1, 0x00, (0, 63), 0, 0, block * 64) + b"\xff\xd9"
        assert simplejpeg.decode_jpeg(data, "GRAY", strict=True).shape == (64, 64, 1)
        assert not passes(data)


class TestLegitimateZeros:
    @pytest.mark.parametrize("optimize", [False, True])
    @pytest.mark.parametrize(("mode", "subsampling"), [("L", 0), ("RGB", 0), ("RGB", 2), ("CMYK", 0)])
    def test_blank_pictures_decode(self, mode: str, subsampling: int, optimize: bool) -> None:
        """Blank areas, ramps and patterns, which are long runs of zeros if the tables are optimised, are no holes."""
        runs = 0
        for levels, quality, restart in itertools.product(blanks(), (1, 10, 50, 75, 95, 100), (0, 5)):
            options = {"quality": quality, "optimize": optimize, "restart_marker_blocks": restart}
            data = encode(levels, mode, subsampling=subsampling, **options)
            assert grey64(data).shape == (64, 64)
            runs += bytes(jpeg.HOLE) in data
        assert (runs > 0) == optimize

    def test_each_scan_is_judged_by_its_own_tables(self) -> None:
        """In a scan of blank chrominance of its own, zeros are right; in one of luminance they are a hole."""
        data = separate_scans(256)
        assert bytes(jpeg.HOLE) in data
        assert (grey64(data) == 128).all()
        assert not passes(data.replace(packed("010" * 1024), bytes(384)))

    def test_a_table_defined_anew_counts(self) -> None:
        """The tables in force are those defined last before the scan."""
        blank, other = segment(0xC4, table(0x00, 0) + table(0x10, 0, 1)), segment(0xC4, table(0x10, 1, 0))
        head, rest = frame(0xC0, 256, 256), scan(1, 0x00, (0, 63), 0, 0, "00" * 1024) + b"\xff\xd9"
        assert passes(head + other + blank + rest)
        assert not passes(head + blank + other + rest)

    def test_zeros_outside_the_pixels_are_no_hole(self, pictures: list[np.ndarray]) -> None:
        """Comments, profiles and padding may be zeros."""
        data = encode(pictures[0], comment=bytes(1000))
        assert (grey64(data + bytes(1000)) == grey64(encode(pictures[0]))).all()

    def test_progressive_blanks_decode(self) -> None:
        """Progressive files write a blank scan as a few zeros, and are left alone."""
        for levels in blanks(600):
            assert grey64(encode(levels, progressive=True)).shape == (64, 64)


class TestLongWork:
    def test_a_bomb_of_scans_is_refused_at_once(self) -> None:
        """A file of 200 KB that takes a decoder longer than it has is refused before it is decoded, by its cause."""
        bomb = progressive(8000, 8000, 883)
        assert len(bomb) < 250_000
        started = time.process_time()
        assert refused(bomb) == ("too_complex", "a JPEG of 883 scans, the limit for 64000000 pixels is 32")
        assert time.process_time() - started < 1

    @pytest.mark.parametrize(("side", "most"), [(80, 500), (400, 64)])
    def test_up_to_the_limit_scans_decode(self, side: int, most: int) -> None:
        """Small pictures may have more scans than large ones; the limit grows with ``max_pixels``."""
        limits = Limits(max_pixels=2 * 400 * 400)
        assert (grey64(progressive(side, side, most), limits) == 128).all()
        assert refused(progressive(side, side, most + 1), limits)[0] == "too_complex"

    def test_scans_hidden_behind_odd_bytes_count(self) -> None:
        """Fill bytes, lengths too small and bytes of no segment hide no scan."""
        bomb = progressive(80, 80, 501)
        for odd in (b"\xff" * 5, b"\xff\xfe\0\0", b"\xff\xfe\0\1", b"\0\0", b"\xff\0", b"\xff\xd0", b"\xff\xff\xff\0"):
            assert refused(bomb.replace(b"\xff\xda", odd + b"\xff\xda"))[0] == "too_complex"

    def test_scans_count_in_any_kind_of_jpeg(self) -> None:
        """A baseline JPEG that sends the same components over and over is refused as well."""
        data = separate_scans(64)
        start = data.index(b"\xff\xda")
        assert refused(data[:start] + data[start:-2] * 200 + data[-2:])[0] == "too_complex"

    def test_scans_of_a_thumbnail_do_not_count(self) -> None:
        """Bytes within a segment, or behind the end, are no scan."""
        whole = encode(gradient := np.tile(np.arange(64, dtype=np.uint8), (64, 1)), comment=b"\xff\xda" * 600)
        assert (grey64(whole + b"\xff\xda" * 600 + b"\xff\xd9") == grey64(encode(gradient))).all()

    def test_pillow_writes_far_fewer(self) -> None:
        """A file that an encoder writes passes, at the most pixels allowed too."""
        levels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
        for mode in ("L", "RGB", "CMYK"):
            data = encode(levels, mode, progressive=True)
            assert 5 < sum(marker == 0xDA for marker, _, _ in jpeg.find_segments(data)) <= jpeg.MAX_SCANS_OF_LARGEST

    @pytest.mark.parametrize("segments", [b"\xff\xfe\0\2", b"\xff\xe1\0\2", b"\xff\xdb\0\2", b"\xff\xc4\0\2"])
    def test_a_file_of_nothing_but_segments(self, segments: bytes) -> None:
        """Sixty megabytes of empty segments are refused in a moment, not after minutes of parsing."""
        started = time.process_time()
        assert refused(b"\xff\xd8" + segments * 15_000_000)[0] == "too_complex"
        assert time.process_time() - started < 2


def refused(data: bytes, limits: Limits = Limits()) -> tuple[str, str]:
    with pytest.raises(Reject) as caught:
        grey64(data, limits)
    return caught.value.reason, caught.value.detail
