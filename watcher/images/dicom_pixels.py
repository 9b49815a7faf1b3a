"""Decode the picture of a DICOM file as it is meant to be shown. Needs the extra ``mednet-watcher[dicom]``.

The steps are modality LUT or rescale, VOI LUT or the first window, and inversion for MONOCHROME1 (PS3.4, N.2). Overlays
are left out. Only the tags needed for that are read, and no message of a library is passed on, because it may hold
the value of a tag about the patient.
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
from watcher.images.formats.dicom import Structure
from watcher.images.resize import Levels

_NEEDED = [
    *("Modality", "BodyPartExamined", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}

# The beginnings of the UIDs of transfer syntaxes.
_JPEG_LS, _JPEG_2000 = "1.2.840.10008.1.2.4.8", "1.2.840.10008.1.2.4.9"
_JPEG = ("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.70")

# The exceptions of pydicom and its decoders for damaged or contradictory files. Any other one is a defect of the
# decoder: it ends the decoder process, and only this file is rejected.
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


class Frame(NamedTuple):
    """The middle one of ``frames`` frames, with the facts about its file that do not identify a patient."""

    levels: Levels
    frames: int
    modality: str | None
    body_part: str | None
    tags: dict[str, str]


def read(data: bytes, structure: Structure, max_pixels: int, tags: Sequence[str] = ()) -> Frame:
    """Decode a file that :func:`watcher.images.formats.dicom.check` found complete.

    ``tags`` are those that its new name is made of.

    Raises:
        Reject: ``no_pixel_data``, ``unsupported_format``, ``truncated``,
            ``damaged``, ``too_large``, ``too_complex`` or ``unreadable``.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            dataset = open_dataset(data, structure, tags)
            frames = _check_pixels(dataset, max_pixels)
            modality = dicom_vocabulary.modality(dataset.get("Modality"))
            body_part = dicom_vocabulary.body_part(dataset.get("BodyPartExamined"))
            name_parts = {tag: dicom_filenames.part_of_name(tag, dataset.get(tag)) for tag in tags}
            return Frame(_frame_levels(dataset, frames // 2), frames, modality, body_part, name_parts)
    except MemoryError:
        raise Reject("too_large", "out of memory while decoding") from None
    except AttributeError:
        raise Reject("unreadable", "a DICOM file without an element that every picture has") from None
    except _DAMAGED as error:
        raise Reject("unreadable", f"a DICOM file that contradicts itself ({type(error).__name__})") from None


def open_dataset(data: bytes, structure: Structure, tags: Sequence[str] = ()) -> Dataset:
    """Return the elements that a picture needs, those of ``tags``, and no others."""
    dataset = dcmread(io.BytesIO(data), force=True, specific_tags=[*_NEEDED, *tags])
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = UID(structure.coding.syntax)
    if structure.fragments is not None and "PixelData" in dataset:
        start, end = structure.fragments  # pydicom would take a delimiter within a fragment for the end
        dataset["PixelData"].value = data[start:end]
    return dataset


def levels(dataset: Dataset, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the levels of a grey frame after its modality and VOI LUT, or the colours of a colour frame."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(pixels, dataset)
    return pixels if pixels.ndim == 3 else _windowed(apply_modality_lut(pixels, dataset), dataset)


def _windowed(values: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """Apply the VOI LUT or the first window. An invalid one (of width 0, for example) is left out."""
    try:
        return apply_voi_lut(values, dataset, index=0)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        return values


def _check_pixels(dataset: Dataset, max_pixels: int) -> int:
    """Check that all frames are there and not too large, and return their number.

    Raises:
        Reject: They are not, or no decoder is installed for them.
    """
    element = next((name for name in _PIXELS if name in dataset), None)
    if element is None:
        modality = dicom_vocabulary.modality(dataset.get("Modality"))
        raise Reject("no_pixel_data", f"a DICOM file without a picture{f' (Modality {modality})' if modality else ''}")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in UID_dictionary or not syntax.is_transfer_syntax:
        raise Reject("unsupported_format", "a DICOM file of a transfer syntax that is not in the standard")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise Reject("too_large", f"{columns} x {rows} pixels, the limit is {max_pixels}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    bits = _BITS.get(element) or int(dataset.BitsAllocated)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if min(rows, columns, frames) < 1 or samples not in (1, 3) or bits not in (1, 8, 16, 32, 64):
        raise Reject("unreadable", f"{samples} samples of {bits} bits for each of {columns} x {rows} pixels")
    if not get_decoder(syntax).is_available:
        raise Reject("unsupported_format", f"there is no decoder here for {syntax.name}")
    if syntax.is_encapsulated:
        _check_compressed_frame(dataset, frames, max_pixels)
        return frames
    half_colour = dataset.get("PhotometricInterpretation") == "YBR_FULL_422"
    size = (rows * columns * frames * bits * (2 if half_colour else samples) + 7) // 8
    found_size = len(dataset[element].value or b"")
    if found_size < size:
        raise Reject("truncated", f"{found_size} bytes of pixels where there should be {size}")
    return frames


def _check_compressed_frame(dataset: Dataset, frames: int, max_pixels: int) -> None:
    """Reject compressed pixels that are incomplete, or that would cost a decoder more than the file says."""
    syntax, size = dataset.file_meta.TransferSyntaxUID, (int(dataset.Columns), int(dataset.Rows))
    code = get_frame(dataset.PixelData, frames // 2, number_of_frames=frames)
    coded_size: tuple[int, int] | None = None
    if syntax.startswith(_JPEG) or syntax.startswith(_JPEG_LS):
        segments = jpeg.find_segments(code)
        if syntax.startswith(_JPEG):
            jpeg.check(code, segments, size[0] * size[1], max_pixels)
        bits, coded_size = jpeg.depth_and_size(code, segments)
        if syntax == JPEGExtended12Bit and bits != 8:
            raise Reject("unsupported_format", "12-bit lossy JPEG (JPEG Extended), which no decoder here can read")
    elif syntax.startswith(_JPEG_2000) and code.startswith(b"\xff\x4f\xff\x51"):
        right, bottom, left, top = struct.unpack_from(">4I", code, 8)  # ITU-T T.800, A.5.1
        coded_size = right - left, bottom - top
    if coded_size is not None and coded_size != size:
        columns, rows = coded_size
        raise Reject("damaged", f"{size[0]} x {size[1]} pixels by the tags, {columns} x {rows} in the compressed data")


def _frame_levels(dataset: Dataset, frame: int) -> Levels:
    """Return the levels of one frame as they are meant to be shown."""
    try:
        pixels = pixel_array(dataset, index=frame)
    except (NotImplementedError, RuntimeError):  # all decoders have failed
        name = dataset.file_meta.TransferSyntaxUID.name
        raise Reject("unreadable", f"no decoder here can read these pixels ({name})") from None
    windowed = levels(dataset, pixels)
    if windowed.ndim == 3:
        return _luminance(windowed)
    shown = windowed.astype(np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = shown.min() + shown.max() - shown
    _blacken_padding(shown, pixels, dataset.get("PixelPaddingValue"))
    return shown.astype(np.float32)


def _luminance(colours: npt.NDArray[Any]) -> Levels:
    """Return 8-bit colours unchanged, and deeper ones as grey levels of the same depth (ITU-R BT.601)."""
    if colours.dtype == np.uint8:
        return colours
    return (colours[..., :3].astype(np.float64) @ (0.299, 0.587, 0.114)).astype(np.float32)


def _blacken_padding(shown: npt.NDArray[np.float64], pixels: npt.NDArray[Any], value: object) -> None:
    """Make the padding around the picture (PS3.3, C.7.5.1.1.2) as dark as its darkest pixel.

    So the value of the padding does not influence the scale of the picture.
    """
    if not isinstance(value, int):
        return
    outside = pixels == value
    if outside.any() and not outside.all():
        shown[outside] = shown[~outside].min()
