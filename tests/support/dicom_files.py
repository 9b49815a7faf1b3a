"""DICOM files for tests, of any pixels and tags. Needs pydicom."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

SHADE = np.add.outer(np.arange(34) * 50, np.arange(36) * 7).astype(np.uint16)
"""12 bits, dark top left."""

PACKED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
"""Transfer syntaxes that pydicom itself can write."""


def dataset(pixels: np.ndarray = SHADE, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    """A picture (height, width), frames of it (n, height, width) or colours (height, width, 3)."""
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax in PACKED else syntax
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = CTImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = "1.2.3"
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    frames = pixels.reshape(-1, *(pixels.shape[-3:] if colour else pixels.shape[-2:]))
    found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    found.SamplesPerPixel = 3 if colour else 1
    if colour:
        found.PlanarConfiguration = 0
    if len(frames) > 1:
        found.NumberOfFrames = len(frames)
    found.Rows, found.Columns = frames.shape[1:3]
    found.BitsAllocated = found.BitsStored = 8 * pixels.dtype.itemsize
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = frames.astype(frames.dtype.newbyteorder(order)).tobytes()
    found.PixelData = raw + b"\0" * (len(raw) % 2)
    found["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    if syntax == JPEGBaseline8Bit:
        found.PixelData = encapsulate([_jpeg(frame) for frame in frames])
    for name, value in tags.items():
        setattr(found, name, value)
    if syntax in PACKED:
        plugin = "pydicom" if syntax == RLELossless else ""  # GDCM's ends the process where a side is odd
        found.compress(syntax, generate_instance_uid=False, encoding_plugin=plugin)
    return found


def _jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def dicom(pixels: np.ndarray = SHADE, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """The bytes of :func:`dataset`."""
    return written(dataset(pixels, syntax, **tags))


def written(found: Dataset) -> bytes:
    """The bytes of a data set, as a file."""
    buffer = io.BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG": JPEGBaseline8Bit,
}
