"""Damaged files: never a crash, never a hang, and never classified where the damage can be told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.proofs.fuzz import FORMS, UNTOLD, Fuzz, encode
from tests.support.daemon import Sampler
from watcher.core.errors import Reject
from watcher.images.decode import grey64
from watcher.images.formats import tiff


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(io.BytesIO(Sampler(3).jpeg("CXR")))


def test_four_thousand_damaged_files(tmp_path: Path) -> None:
    """Every file is answered for by the one process that was started: none crashes it, none hangs it."""
    fuzz = Fuzz(tmp_path)
    fuzz.run(4000, seed=11)
    assert fuzz.reasons.total() == 4000
    assert fuzz.reasons["decoder_crashed"] == fuzz.reasons["decoder_hung"] == 0
    assert len(fuzz.processes) == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_file_decodes(picture: Image.Image, form: str) -> None:
    """Before any damage each of the forms is read, and shows about the same picture."""
    found = grey64(encode(picture, form)).astype(float)
    wanted = np.asarray(picture.convert(FORMS[form][1] if FORMS[form][1] == "1" else "L"), float)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("form", sorted(set(FORMS) - set(UNTOLD)))
def test_every_zero_filled_tail_is_refused(picture: Image.Image, form: str) -> None:
    """A file of full length whose end is zeros, from any byte on: what a broken copy leaves behind.

    TIFF and WebP have no mark at their end: fewer zeros than a hole has are not noticed there, nor those of
    fields behind the pixels (a resolution, say), of which no pixel depends.
    """
    data = encode(picture, form)
    few = 0 if FORMS[form][0] in ("JPEG", "PNG") else tiff.HOLE
    shown = {cut: _shown(data[:cut] + bytes(len(data) - cut)) for cut in _cuts(data[: len(data) - few])}
    whole = _shown(data) if FORMS[form][0] == "TIFF" else b""
    assert [cut for cut, pixels in shown.items() if pixels not in (None, whole)] == []


@pytest.mark.parametrize("form", FORMS)
def test_every_prefix_is_refused(picture: Image.Image, form: str) -> None:
    """A file that is still being written, cut after any byte."""
    data = encode(picture, form)
    assert [cut for cut in _cuts(data) if _shown(data[:cut])] == []


def _cuts(data: bytes) -> Iterator[int]:
    """Every place in the head and the tail, every third between; the last zeros of a PNG's end may not differ."""
    end = len(data.rstrip(b"\0"))
    yield from (cut for cut in range(end) if cut < 700 or cut > end - 100 or cut % 3 == 0)


def _shown(data: bytes) -> bytes | None:
    """The pixels, or None where the file is refused."""
    try:
        return grey64(data).tobytes()
    except Reject:
        return None


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 4096, b"trailing text", b"\xff\xff"])
def test_padding_after_the_end_is_fine(picture: Image.Image, tail: bytes) -> None:
    """Whole files that a device padded decode as they are."""
    for form in ("grey JPEG", "colour JPEG"):
        data = encode(picture, form)
        assert (grey64(data + tail) == grey64(data)).all()


def test_bytes_too_many_before_the_end_are_damage(picture: Image.Image) -> None:
    """A file that libjpeg only warns of is refused: its picture may not be the one that was sent."""
    data = encode(picture, "grey JPEG")
    with pytest.raises(Reject) as caught:
        grey64(data[:-2] + b"Z" * 100 + data[-2:])
    assert (caught.value.reason, "extraneous" in caught.value.detail) == ("damaged", True)


def test_an_unknown_jfif_revision_is_no_damage(picture: Image.Image) -> None:
    """Warnings that cost no pixel refuse nothing."""
    data = bytearray(encode(picture, "grey JPEG"))
    data[11] = 9  # major revision of the JFIF header
    assert (grey64(bytes(data)) == grey64(encode(picture, "grey JPEG"))).all()


def test_a_flat_optimised_jpeg_is_no_damage() -> None:
    """Pictures whose compressed data are legitimately all zeros decode."""
    for size, half in ((64, False), (500, False), (300, True)):
        grey = np.zeros((size, size), np.uint8)
        grey[: size // 2] = 255 if half else 0
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "JPEG", optimize=True)
        assert grey64(buffer.getvalue()).max() == (255 if half else 0)
