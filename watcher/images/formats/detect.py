"""Tell the format of a file from its content, never from its name."""

from __future__ import annotations

from watcher.images.formats import bmp, dicom, jpeg, png, tiff, webp

NAMES = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""The formats, as Pillow names them."""

DICOM = "DICOM"


def format_of(data: bytes) -> str | None:
    """Return the name of a file's format, or None if it is not supported."""
    if data.startswith(jpeg.MAGIC):
        return "JPEG"
    if data.startswith(png.MAGIC):
        return "PNG"
    if dicom.looks_like(data):  # before TIFF, because the preamble of a DICOM file may be that of a TIFF
        return DICOM
    if data.startswith(tiff.MAGICS):
        return "TIFF"
    if webp.looks_like(data):
        return "WEBP"
    return "BMP" if bmp.looks_like(data) else None
