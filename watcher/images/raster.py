"""Decode JPEG, PNG, TIFF, BMP and WebP files with Pillow and libjpeg, after a check that they are complete."""

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

# The exceptions of Pillow's readers for damaged files. Any other one is a defect of the decoder: it ends the decoder
# process, and only this file is rejected.
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

# The beginnings of libjpeg's warnings about lost picture data. Its other warnings (an unknown JFIF revision, for
# example) change no pixel.
_DATA_LOSS = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")

_ORIENTATION_KEYS = ("exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp")  # of Pillow's Image.info
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262  # TIFF 6.0, section 8

Image.MAX_IMAGE_PIXELS = None  # the caller sets the limit


class Raster(NamedTuple):
    """The upright pixels of the middle one of ``frames`` frames."""

    levels: Levels
    frames: int = 1


def read(data: bytes, kind: str, max_pixels: int) -> Raster:
    """Decode a file that begins like a file of the format ``kind``.

    Raises:
        Reject: ``too_large``, ``too_complex``, ``truncated``, ``damaged`` or ``unreadable``.
    """
    try:
        if kind == "JPEG":
            return Raster(_jpeg(data, max_pixels))
        return _read_middle_page(data, kind, max_pixels)
    except UnidentifiedImageError as error:
        detail = f"begins like a {kind}, but its header is damaged or asks for something that is not supported"
        raise Reject("unreadable", detail) from error
    except MemoryError as error:
        raise Reject("too_large", str(error) or "out of memory while decoding") from error
    except _DAMAGED as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise Reject(reason, f"{type(error).__name__}: {error}") from error


def _read_middle_page(data: bytes, kind: str, max_pixels: int) -> Raster:
    """Check that a file is complete, and decode its middle page or frame."""
    pages = [0]
    if kind == "PNG":
        png.check_chunks(data)
    elif kind == "TIFF":
        pages = tiff.pages(data, max_pixels)
    elif kind == "BMP":
        bmp.check(data)
    else:
        pages = list(range(webp.frames(data, max_pixels)))
    return Raster(_decode_with_pillow(data, kind, max_pixels, page=pages[len(pages) // 2]), len(pages))


def _jpeg(data: bytes, max_pixels: int) -> Levels:
    """Decode a JPEG.

    The header of nearly all of them is read here, because Pillow takes as long to open a JPEG as libjpeg to decode it.
    """
    segments = jpeg.find_segments(data)
    header = jpeg.header(data, segments)
    if header is None:
        return _decode_with_pillow(data, "JPEG", max_pixels, segments)
    _check_before_decoding(data, max_pixels, header.size, segments)
    pixels = _decode_strictly(data, header.mode)
    return _decode_with_pillow(data, "JPEG", max_pixels) if pixels is None else pixels


def _decode_with_pillow(
    data: bytes, kind: str, max_pixels: int, segments: list[jpeg.Segment] | None = None, page: int = 0
) -> Levels:
    """Decode one page of a file. If ``segments`` of a JPEG are given, it is checked first."""
    # Pillow's warnings are ignored, because the limits, the end marker and its exceptions decide here.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[kind]) as image:
        if page:
            image.seek(page)
        _check_before_decoding(data, max_pixels, image.size, segments)
        inverted = kind == "TIFF" and image.mode != "L" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
        levels: Levels | None = _decode_strictly(data, image.mode) if segments is not None else None
        if levels is None:
            image.load()
            levels = _levels(image, inverted)
        return _upright(levels, image)


def _check_before_decoding(
    data: bytes, max_pixels: int, size: tuple[int, int], segments: list[jpeg.Segment] | None
) -> None:
    width, height = size
    if width * height > max_pixels:
        raise Reject("too_large", f"{width} x {height} pixels, the limit is {max_pixels}")
    if segments is not None:
        jpeg.check(data, segments, width * height, max_pixels)


def _decode_strictly(data: bytes, mode: str) -> Grey | None:
    """Decode a JPEG with libjpeg itself, whose warnings about damage Pillow hides.

    Returns:
        The same pixels as Pillow would give, of shape (height, width) or (height, width, 3). None if Pillow must
        decode this file.

    Raises:
        Reject: ``damaged``; the compressed data have changed since they were written.
    """
    colours = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}.get(mode)
    if colours is None:
        return None
    try:
        pixels: Grey = simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError as error:
        if str(error).startswith(_DATA_LOSS):
            raise Reject("damaged", str(error)) from error
        return None  # the warning changes no pixel, or only Pillow can decode this kind of JPEG
    if mode == "CMYK":
        return None  # it is undamaged, and Pillow knows the several ways to write CMYK
    return pixels[..., 0] if mode == "L" else pixels


def _levels(image: Image.Image, inverted: bool) -> Levels:
    """Return the grey levels. More than 8 bits are kept, because Pillow's ``convert("L")`` would clip them to white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image, dtype=np.float32)
        return -levels if inverted else levels
    return np.asarray(image if image.mode == "L" else image.convert("L"), dtype=np.uint8)


def _upright(levels: Levels, image: Image.Image) -> Levels:
    """Rotate and flip levels as EXIF or XMP says. Pillow does that itself for a TIFF."""
    if not any(key in image.info for key in _ORIENTATION_KEYS):
        return levels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:
        return levels  # damaged EXIF data do not change a pixel
    if orientation in (5, 6, 7, 8):
        levels = levels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        levels = levels[::-1]
    return levels
