"""The picture in a DICOM file, as it is meant to be shown. Needs the extra ``mednet-watcher[dicom]``.

Modality LUT or rescale, then VOI LUT or the first window, then inverted if
MONOCHROME1 (PS3.4, N.2); overlays are left out. Nothing but what is needed for
that is read of a file, and no message of a library is passed on: it may hold
what a tag says of a patient.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.uid import UID, JPEGExtended12Bit, UID_dictionary

from watcher.core.errors import Reject
from watcher.images import dicom_filenames, dicom_vocabulary
from watcher.images.formats import jpeg
from watcher.images.formats.dicom import Whole
from watcher.images.resize import Levels

_NEEDED = [
    *("Modality", "BodyPartExamined", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(
        f"{colour}PaletteColorLookupTable{what}"
        for colour in ("Red", "Green", "Blue")
        for what in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}

_JPEG_LS, _JPEG_2000 = "1.2.840.10008.1.2.4.8", "1.2.840.10008.1.2.4.9"  # what their transfer syntaxes begin with
_JPEG = ("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.70")

# What pydicom and its decoders raise on damaged or contradictory files. Anything
# else is a defect of the decoder: it ends the decoder child, and only this file with it.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    InvalidDicomError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class Slice(NamedTuple):
    """One frame, the middle one of ``frames``, and what little of its file may be told."""

    levels: Levels
    frames: int
    modality: str | None
    body_part: str | None
    tags: dict[str, str]


def read(data: bytes, whole: Whole, max_pixels: int, tags: Sequence[str] = ()) -> Slice:
    """Decode a file that :func:`watcher.images.formats.dicom.check` found whole.

    ``tags`` are what its name is to be made of.

    Raises:
        Reject: ``no_pixel_data``, ``unsupported_format``, ``truncated``,
            ``damaged``, ``too_large``, ``too_complex`` or ``unreadable``.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            dataset = opened(data, whole, tags)
            frames = _judged(dataset, max_pixels)
            said = (
                dicom_vocabulary.modality(dataset.get("Modality")),
                dicom_vocabulary.body_part(dataset.get("BodyPartExamined")),
            )
            named = {tag: dicom_filenames.told(tag, dataset.get(tag)) for tag in tags}
            return Slice(_shown(dataset, frames // 2), frames, *said, named)
    except MemoryError:
        raise Reject("too_large", "out of memory while decoding") from None
    except AttributeError:
        raise Reject("unreadable", "a DICOM file without an element that every picture has") from None
    except _DAMAGED as error:
        raise Reject("unreadable", f"a DICOM file that contradicts itself ({type(error).__name__})") from None


def opened(data: bytes, whole: Whole, tags: Sequence[str] = ()) -> Dataset:
    """The elements that a picture needs, those of ``tags``, and none else."""
    dataset = dcmread(io.BytesIO(data), force=True, specific_tags=[*_NEEDED, *tags])
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = UID(whole.coding.syntax)
    if whole.fragments is not None and "PixelData" in dataset:
        start, end = whole.fragments  # pydicom takes a delimiter within a fragment for the end
        dataset["PixelData"].value = data[start:end]
    return dataset


def levels(dataset: Dataset, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The levels of a grey frame after modality and VOI, or the colours of one in colours."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(pixels, dataset)
    return pixels if pixels.ndim == 3 else _windowed(apply_modality_lut(pixels, dataset), dataset)


def _windowed(values: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """Through the VOI LUT or the first window; as they are where that is none (a width of 0, say)."""
    try:
        return apply_voi_lut(values, dataset, index=0)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        return values


def _judged(dataset: Dataset, max_pixels: int) -> int:
    """The number of frames, all of which are there, in a size that is allowed."""
    place = next((name for name in _PIXELS if name in dataset), None)
    if place is None:
        told = dicom_vocabulary.modality(dataset.get("Modality"))
        raise Reject("no_pixel_data", f"a DICOM file without a picture{f' (Modality {told})' if told else ''}")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in UID_dictionary or not syntax.is_transfer_syntax:
        raise Reject("unsupported_format", "a DICOM file of a transfer syntax that is not in the standard")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise Reject("too_large", f"{columns} x {rows} pixels, the limit is {max_pixels}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    bits = _BITS.get(place) or int(dataset.BitsAllocated)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if min(rows, columns, frames) < 1 or samples not in (1, 3) or bits not in (1, 8, 16, 32, 64):
        raise Reject("unreadable", f"{samples} samples of {bits} bits for each of {columns} x {rows} pixels")
    if not get_decoder(syntax).is_available:
        raise Reject("unsupported_format", f"there is no decoder here for {syntax.name}")
    if syntax.is_encapsulated:
        _judge_code(dataset, frames, max_pixels)
        return frames
    half = dataset.get("PhotometricInterpretation") == "YBR_FULL_422"
    size = (rows * columns * frames * bits * (2 if half else samples) + 7) // 8
    if len(dataset[place].value or b"") < size:
        raise Reject("truncated", f"{len(dataset[place].value or b'')} bytes of pixels where there should be {size}")
    return frames


def _judge_code(dataset: Dataset, frames: int, max_pixels: int) -> None:
    """Refuse compressed pixels that would cost a decoder more than the file says, or are not whole."""
    syntax, size = dataset.file_meta.TransferSyntaxUID, (int(dataset.Columns), int(dataset.Rows))
    code = get_frame(dataset.PixelData, frames // 2, number_of_frames=frames)
    found: tuple[int, int] | None = None
    if syntax.startswith(_JPEG) or syntax.startswith(_JPEG_LS):
        segments = jpeg.segments(code)
        if syntax.startswith(_JPEG):
            jpeg.refuse(code, segments, size[0] * size[1], max_pixels)
        bits, found = jpeg.depth_and_size(code, segments)
        if syntax == JPEGExtended12Bit and bits != 8:
            raise Reject("unsupported_format", "12-bit JPEG with loss (JPEG Extended): no decoder here can read it")
    elif syntax.startswith(_JPEG_2000) and code.startswith(b"\xff\x4f\xff\x51"):
        right, bottom, left, top = struct.unpack_from(">4I", code, 8)  # ITU-T T.800, A.5.1
        found = right - left, bottom - top
    if found is not None and found != size:
        raise Reject("damaged", f"{size[0]} x {size[1]} pixels are said to be {found[0]} x {found[1]} compressed ones")


def _shown(dataset: Dataset, frame: int) -> Levels:
    try:
        pixels = pixel_array(dataset, index=frame)
    except (NotImplementedError, RuntimeError):  # of all decoders there are
        name = dataset.file_meta.TransferSyntaxUID.name
        raise Reject("unreadable", f"no decoder here can read these pixels ({name})") from None
    found = levels(dataset, pixels)
    if found.ndim == 3:
        return _luminance(found)
    shown = found.astype(np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = shown.min() + shown.max() - shown
    _blacken_padding(shown, pixels, dataset.get("PixelPaddingValue"))
    return shown.astype(np.float32)


def _luminance(colours: npt.NDArray[Any]) -> Levels:
    """8 bits as every other format's; more by the same weights (ITU-R BT.601), as deep as they are."""
    if colours.dtype == np.uint8:
        return colours
    return (colours[..., :3].astype(np.float64) @ (0.299, 0.587, 0.114)).astype(np.float32)


def _blacken_padding(shown: npt.NDArray[np.float64], pixels: npt.NDArray[Any], value: object) -> None:
    """What lies outside of the picture (PS3.3, C.7.5.1.1.2) is as dark as the darkest in it, and sets no scale."""
    if not isinstance(value, int):
        return
    outside = pixels == value
    if outside.any() and not outside.all():
        shown[outside] = shown[~outside].min()
