"""Which format a file has, by its content and never by its name."""

from __future__ import annotations

from watcher.images.formats import bmp, dicom, jpeg, png, tiff, webp

NAMES = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""As Pillow knows them."""

DICOM = "DICOM"


def of(data: bytes) -> str | None:
    """The name of the format, or None where it is none that is read here."""
    if data.startswith(jpeg.MAGIC):
        return "JPEG"
    if data.startswith(png.MAGIC):
        return "PNG"
    if dicom.looks_like(data):  # its preamble may be that of a TIFF
        return DICOM
    if data.startswith(tiff.MAGICS):
        return "TIFF"
    if webp.looks_like(data):
        return "WEBP"
    return "BMP" if bmp.looks_like(data) else None
