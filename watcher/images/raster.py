"""JPEG, PNG, TIFF, BMP and WebP: what Pillow and libjpeg make of them, once they were found whole."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg

# The plugins are named because Pillow, asked for one that is not loaded, loads all 43 of them: 0.1 s in every decoder.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from watcher.core.errors import Reject
from watcher.images.formats import bmp, jpeg, png, tiff, webp
from watcher.images.resize import Grey, Levels

# What Pillow's readers raise on damaged input. Anything else is a defect of
# the decoder: it ends the decoder child, and only this file with it.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
)

# What libjpeg calls the loss of picture data. Its other warnings (an unknown JFIF revision) change no pixel.
_DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")

_TURNS = ("exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp")  # where Pillow keeps what tells of turns
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262  # TIFF 6.0, section 8

Image.MAX_IMAGE_PIXELS = None  # the caller's limit counts here


class Raster(NamedTuple):
    """The pixels of one frame, upright, and of how many frames it is the middle one."""

    levels: Levels
    frames: int = 1


def read(data: bytes, kind: str, max_pixels: int) -> Raster:
    """Decode a file that begins like one of ``kind``.

    Raises:
        Reject: ``too_large``, ``too_complex``, ``truncated``, ``damaged`` or ``unreadable``.
    """
    try:
        if kind == "JPEG":
            return Raster(_jpeg(data, max_pixels))
        return _whole(data, kind, max_pixels)
    except UnidentifiedImageError as error:
        raise Reject(
            "unreadable", f"begins like a {kind}, but its header is damaged, or says what is not read"
        ) from error
    except MemoryError as error:
        raise Reject("too_large", str(error) or "out of memory while decoding") from error
    except _DAMAGED as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise Reject(reason, f"{type(error).__name__}: {error}") from error


def _whole(data: bytes, kind: str, max_pixels: int) -> Raster:
    pages = [0]
    if kind == "PNG":
        png.check_chunks(data)
    elif kind == "TIFF":
        pages = tiff.pages(data, max_pixels)
    elif kind == "BMP":
        bmp.check(data)
    else:
        pages = list(range(webp.frames(data, max_pixels)))
    return Raster(_by_pillow(data, kind, max_pixels, page=pages[len(pages) // 2]), len(pages))


def _jpeg(data: bytes, max_pixels: int) -> Levels:
    """A JPEG such as nearly all are is read once, not by Pillow first: that takes as long as decoding it."""
    segments = jpeg.segments(data)
    header = jpeg.header(data, segments)
    if header is None:
        return _by_pillow(data, "JPEG", max_pixels, segments)
    _refuse_early(data, max_pixels, header.size, segments)
    pixels = _strictly(data, header.mode)
    return _by_pillow(data, "JPEG", max_pixels) if pixels is None else pixels


def _by_pillow(
    data: bytes, kind: str, max_pixels: int, segments: list[jpeg.Segment] | None = None, page: int = 0
) -> Levels:
    """With the segments of a JPEG, it is judged before it is decoded."""
    # What Pillow only warns of is judged here: by the limits, by the end marker, by what it raises.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[kind]) as image:
        if page:
            image.seek(page)
        _refuse_early(data, max_pixels, image.size, segments)
        inverted = kind == "TIFF" and image.mode != "L" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
        levels: Levels | None = _strictly(data, image.mode) if segments is not None else None
        if levels is None:
            image.load()
            levels = _levels(image, inverted)
        return _upright(levels, image)


def _refuse_early(data: bytes, max_pixels: int, size: tuple[int, int], segments: list[jpeg.Segment] | None) -> None:
    width, height = size
    if width * height > max_pixels:
        raise Reject("too_large", f"{width} x {height} pixels, the limit is {max_pixels}")
    if segments is not None:
        jpeg.refuse(data, segments, width * height, max_pixels)


def _strictly(data: bytes, mode: str) -> Grey | None:
    """A JPEG's pixels, shape (height, width) or (height, width, 3), or None where Pillow is to read them.

    Pillow hides what libjpeg only warns of; here it counts. The pixels are the same.

    Raises:
        Reject: ``damaged``; the compressed data are not as they were written.
    """
    colours = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}.get(mode)
    if colours is None:
        return None
    try:
        pixels: Grey = simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            raise Reject("damaged", str(error)) from error
        return None  # a warning of no consequence, or a kind of JPEG that only Pillow may know
    if mode == "CMYK":
        return None  # whole; Pillow knows the several ways to write CMYK
    return pixels[..., 0] if mode == "L" else pixels


def _levels(image: Image.Image, inverted: bool) -> Levels:
    """Levels of more than 8 bits as they are: Pillow's ``convert("L")`` would clip them to white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image, dtype=np.float32)
        return -levels if inverted else levels
    return np.asarray(image if image.mode == "L" else image.convert("L"), dtype=np.uint8)


def _upright(levels: Levels, image: Image.Image) -> Levels:
    """Turned as EXIF (or XMP) says; Pillow has turned a TIFF already."""
    if not any(key in image.info for key in _TURNS):
        return levels
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:
        return levels  # no pixel depends on it
    if turn in (5, 6, 7, 8):
        levels = levels.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    if turn in (3, 4, 7, 8):
        levels = levels[::-1]
    return levels
