"""Bytes to what the model was trained on: one 64 x 64 grey image.

Training, ``classify`` and the daemon all come through here, so that they can
not drift apart. No torch in this module: the decoder children import it.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from watcher import jpeg, png
from watcher.errors import Reject

SIDE = 64
"""Height and width of the model's input, in pixels (MedNIST's own size)."""

PREPROCESSING = "grey 64x64, each image scaled to [0, 1] by its own min and max, less its own mean"
"""What a checkpoint records, and what loading refuses to differ from."""

FORMATS = ("JPEG", "PNG")

# What Pillow's JPEG and PNG readers raise on damaged input. Anything else is a
# defect of the decoder: it ends the decoder child, and only this file with it.
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

Image.MAX_IMAGE_PIXELS = None  # `Limits.max_pixels` is the limit here

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """What one file may cost. ``max_bytes`` on disk, ``max_pixels`` once decoded."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000


def grey64(data: bytes, limits: Limits = Limits()) -> Grey:
    """Decode one image file to grey levels, shape (64, 64), dtype uint8.

    A 64 x 64 8-bit grey image comes back pixel for pixel. Others are turned to
    grey and resampled to 64 x 64 (aspect ratio not kept); 16-bit levels are
    scaled by their own minimum and maximum, where Pillow's ``convert("L")``
    would clip them to white.

    Raises:
        Reject: ``empty``, ``too_large``, ``too_complex``, ``unsupported_format``,
            ``truncated``, ``damaged`` or ``unreadable``.
    """
    if not data:
        raise Reject("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise Reject("too_large", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    try:
        if data.startswith(jpeg.MAGIC):
            return _jpeg(data, limits)
        if data.startswith(png.MAGIC):
            png.check_chunks(data)
        return _by_pillow(data, limits)
    except UnidentifiedImageError as error:
        if data.startswith((jpeg.MAGIC, png.MAGIC)):
            raise Reject("unreadable", "it begins like a JPEG or PNG, but its header is damaged") from error
        raise Reject("unsupported_format", f"neither {' nor '.join(FORMATS)} by its content") from error
    except MemoryError as error:
        raise Reject("too_large", str(error) or "out of memory while decoding") from error
    except _DAMAGED as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise Reject(reason, f"{type(error).__name__}: {error}") from error


def standardise(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Scale each image to [0, 1] by its own min and max, then take off its mean.

    Takes shape (n, 64, 64) uint8, gives (n, 1, 64, 64) float32. An image of one
    single grey level becomes all zeros. This is ``scaleImage`` of NVIDIA's
    MedNet notebook, for a batch.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    low = flat.min(axis=1, keepdims=True)
    span = flat.max(axis=1, keepdims=True) - low
    np.maximum(span, 1.0, out=span)
    flat -= low
    flat /= span
    flat -= flat.mean(axis=1, keepdims=True)
    return flat.reshape(len(images), 1, *images.shape[1:])


def warm_up() -> None:
    """Decode one small image of each format, so that no real file waits for Pillow's plugins to load."""
    for kind in FORMATS:
        buffer = io.BytesIO()
        Image.new("L", (SIDE, SIDE)).save(buffer, kind)
        grey64(buffer.getvalue())


def is_blank(image: Grey) -> bool:
    """True when every pixel has the same grey level: there is nothing to classify."""
    pixels = image.tobytes()
    return pixels.count(pixels[0]) == len(pixels)


def _jpeg(data: bytes, limits: Limits) -> Grey:
    """A JPEG such as nearly all are is read once, not by Pillow first: that takes as long as decoding it."""
    segments = jpeg.segments(data)
    header = jpeg.header(data, segments)
    if header is None:
        return _by_pillow(data, limits, segments)
    _refuse_early(data, limits, header.size, segments)
    pixels = _strictly(data, header.mode)
    return _by_pillow(data, limits) if pixels is None else _shrink_pixels(pixels)


def _by_pillow(data: bytes, limits: Limits, segments: list[jpeg.Segment] | None = None) -> Grey:
    """With the segments of a JPEG, it is judged before it is decoded."""
    # What Pillow only warns of is judged here: by the limits, by the end marker, by what it raises.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _refuse_early(data, limits, image.size, segments)
        if segments is not None and (pixels := _strictly(data, image.mode)) is not None:
            return _shrink_pixels(pixels)
        image.load()
        return _shrink(image)


def _refuse_early(data: bytes, limits: Limits, size: tuple[int, int], segments: list[jpeg.Segment] | None) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise Reject("too_large", f"{width} x {height} pixels, the limit is {limits.max_pixels}")
    if segments is not None:
        jpeg.refuse(data, segments, width * height, limits.max_pixels)


def _strictly(data: bytes, mode: str) -> Grey | None:
    """A JPEG's pixels, shape (height, width, 1 or 3), or None where Pillow is to read them.

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
    return None if mode == "CMYK" else pixels  # whole; Pillow knows the several ways to write CMYK


def _shrink_pixels(pixels: Grey) -> Grey:
    grey = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return grey if grey.shape == (SIDE, SIDE) else _shrink(Image.fromarray(grey))


def _shrink(image: Image.Image) -> Grey:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _shrink_deep(np.asarray(image, dtype=np.float32))
    grey = image if image.mode == "L" else image.convert("L")
    if grey.size != (SIDE, SIDE):
        grey = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.frombuffer(grey.tobytes(), np.uint8).reshape(SIDE, SIDE)


def _shrink_deep(levels: npt.NDArray[np.float32]) -> Grey:
    image = Image.fromarray(levels)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    small = np.asarray(image)
    span = max(float(small.max() - small.min()), 1.0)
    levels = np.rint((small - small.min()) * (255.0 / span))
    return np.asarray(levels, dtype=np.uint8)
