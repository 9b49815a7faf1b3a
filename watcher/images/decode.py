"""Decode the bytes of a file to the input of the model: one grey image of 64 x 64 pixels.

Training, ``classify`` and the daemon all use this module, so that they see the same pixels. It does not import torch,
because the decoder processes import it.
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
"""The preprocessing, as checkpoints record it. A checkpoint with another text is refused."""


@dataclass(frozen=True)
class Limits:
    """The limits on one file: ``max_bytes`` on disk, ``max_pixels`` once decoded."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000


@dataclass(frozen=True)
class Picture:
    """The picture in a file: the middle one of ``frames`` frames (or pages).

    For DICOM files, ``modality`` and ``body_part`` are words of :mod:`watcher.images.dicom_vocabulary`, and ``tags``
    holds the parts of the new name, see :mod:`watcher.images.dicom_filenames`.
    """

    grey: Grey = field(repr=False)  # (64, 64)
    frames: int = 1
    modality: str | None = None
    body_part: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def grey64(data: bytes, limits: Limits = Limits()) -> Grey:
    """Return only the grey levels of :func:`read`."""
    return read(data, limits).grey


def read(data: bytes, limits: Limits = Limits(), tags: Sequence[str] = ()) -> Picture:
    """Decode one image file to grey levels, shape (64, 64), dtype uint8.

    A 64 x 64 8-bit grey image does not change. Other images are rotated upright, converted to grey and resized by
    :func:`watcher.images.resize.to_64`. Levels of more than 8 bits are scaled by their own minimum and maximum.

    Raises:
        Reject: ``empty``, ``too_large``, ``too_complex``, ``unsupported_format``,
            ``truncated``, ``damaged``, ``unreadable``, ``no_pixel_data`` or ``needs_dicom_extra``.
    """
    if not data:
        raise Reject("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise Reject("too_large", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    kind = detect.format_of(data)
    if kind is None:
        raise Reject("unsupported_format", f"none of {', '.join(detect.NAMES)} and DICOM by its content")
    if kind == detect.DICOM:
        return _read_dicom(data, limits, tags)
    image = raster.read(data, kind, limits.max_pixels)
    return Picture(resize.to_64(image.levels), image.frames)


def needs_dicom_reader(data: bytes) -> bool:
    """Return True for the first DICOM file of a process, because its reader must be loaded before."""
    return load_dicom_reader.cache_info().currsize == 0 and detect.format_of(data) == detect.DICOM


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
    structure = dicom.check(data, limits.max_bytes)
    if not load_dicom_reader():
        raise Reject("needs_dicom_extra", "a DICOM file: install mednet-watcher[dicom] to have them read")
    from watcher.images import dicom_pixels

    frame = dicom_pixels.read(data, structure, limits.max_pixels, tags)
    return Picture(resize.to_64(frame.levels), frame.frames, frame.modality, frame.body_part, frame.tags)


def standardise(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Scale each image to [0, 1] by its own minimum and maximum, then subtract its mean.

    This is ``scaleImage`` of NVIDIA's MedNet notebook, for a batch. An image of one single grey level becomes zeros.

    Args:
        images: Shape (n, 64, 64), uint8.

    Returns:
        Shape (n, 1, 64, 64), float32.
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
    """Decode a small image of each format, so that no file has to wait for Pillow's plugins to load."""
    for kind in detect.NAMES:
        buffer = io.BytesIO()
        Image.new("L", (SIDE, SIDE)).save(buffer, kind)
        grey64(buffer.getvalue())


def is_blank(image: Grey) -> bool:
    """Return True if all pixels have the same grey level, so that there is nothing to classify."""
    pixels = image.tobytes()
    return pixels.count(pixels[0]) == len(pixels)
