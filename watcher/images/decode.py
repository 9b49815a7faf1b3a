"""Bytes to what the model was trained on: one 64 x 64 grey image.

Training, ``classify`` and the daemon all come through here, so that they can
not drift apart. No torch in this module: the decoder children import it.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from watcher.core.errors import Reject
from watcher.images import raster, resize
from watcher.images.formats import detect, dicom
from watcher.images.resize import Grey

SIDE = resize.SIDE

PREPROCESSING = "grey 64x64, each image scaled to [0, 1] by its own min and max, less its own mean"
"""What a checkpoint records, and what loading refuses to differ from."""


@dataclass(frozen=True)
class Limits:
    """What one file may cost. ``max_bytes`` on disk, ``max_pixels`` once decoded."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000


@dataclass(frozen=True)
class Picture:
    """What a file shows. Of one with several ``frames`` (pages), it is the middle one.

    Of DICOM files, what they say they show: words of :mod:`watcher.images.dicom_vocabulary`; and
    the ``tags`` asked for, as :mod:`watcher.images.dicom_filenames` has them.
    """

    grey: Grey = field(repr=False)  # (64, 64)
    frames: int = 1
    modality: str | None = None
    body_part: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def grey64(data: bytes, limits: Limits = Limits()) -> Grey:
    """The grey levels of :func:`read`: what training needs of a file."""
    return read(data, limits).grey


def read(data: bytes, limits: Limits = Limits(), tags: Sequence[str] = ()) -> Picture:
    """Decode one image file to grey levels, shape (64, 64), dtype uint8.

    A 64 x 64 8-bit grey image comes back pixel for pixel. Others are turned
    upright and to grey, and go through :func:`watcher.images.resize.to_64`; levels of
    more than 8 bits are scaled by their own minimum and maximum.

    Raises:
        Reject: ``empty``, ``too_large``, ``too_complex``, ``unsupported_format``,
            ``truncated``, ``damaged``, ``unreadable``, ``no_pixel_data`` or ``needs_dicom_extra``.
    """
    if not data:
        raise Reject("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise Reject("too_large", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    kind = detect.of(data)
    if kind is None:
        raise Reject("unsupported_format", f"none of {', '.join(detect.NAMES)} and DICOM by its content")
    if kind == detect.DICOM:
        return _read_dicom(data, limits, tags)
    found = raster.read(data, kind, limits.max_pixels)
    return Picture(resize.to_64(found.levels), found.frames)


def needs_dicom_reader(data: bytes) -> bool:
    """Return True for the first DICOM file of a process, because its reader must be loaded before."""
    return load_dicom_reader.cache_info().currsize == 0 and detect.of(data) == detect.DICOM


@functools.cache
def load_dicom_reader() -> bool:
    """Import the reader of DICOM files. It takes seconds, so that only processes that meet such a file do it.

    Returns:
        False if a package that the reader needs is not installed.

    Raises:
        ImportError: a module of this product is missing, which is a defect and no missing extra.
    """
    try:
        from watcher.images import dicom_pixels  # noqa: F401 - used once it is known to be there
    except ImportError as error:
        if _top_package(error.name) == _top_package(__name__):
            raise
        return False
    return True


def _top_package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _read_dicom(data: bytes, limits: Limits, tags: Sequence[str]) -> Picture:
    whole = dicom.check(data, limits.max_bytes)
    if not load_dicom_reader():
        raise Reject("needs_dicom_extra", "a DICOM file: install mednet-watcher[dicom] to have them read")
    from watcher.images import dicom_pixels

    found = dicom_pixels.read(data, whole, limits.max_pixels, tags)
    return Picture(resize.to_64(found.levels), found.frames, found.modality, found.body_part, found.tags)


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
    for kind in detect.NAMES:
        buffer = io.BytesIO()
        Image.new("L", (SIDE, SIDE)).save(buffer, kind)
        grey64(buffer.getvalue())


def is_blank(image: Grey) -> bool:
    """True when every pixel has the same grey level: there is nothing to classify."""
    pixels = image.tobytes()
    return pixels.count(pixels[0]) == len(pixels)
