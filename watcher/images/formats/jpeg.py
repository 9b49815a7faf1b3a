"""Check that a JPEG is complete and not too costly to decode, by its markers.

"T.81" is the standard: ITU-T Recommendation T.81 (1992). This module finds the same markers as libjpeg, even in damaged
files.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from watcher.core.errors import Reject

MAGIC = b"\xff\xd8\xff"

HOLE = 32
"""The number of zero bytes in a row that a picture does not contain by chance, see :func:`_reject_holes`."""

MAX_SCANS = 500
"""The most scans. libjpeg writes 6 (grey) to 18 (CMYK). libjpeg-turbo's fuzzers stop at 500: ``TJPARAM_SCANLIMIT``."""

MAX_SCANS_OF_LARGEST = 32
"""The most scans of a picture of the largest size allowed. A few bytes can make a scan go over every block."""

MAX_SEGMENTS = 20_000
"""The most segments. A profile of 64 MB in segments of the largest size has a thousand."""

# T.81, table B.1. Frames with Huffman codes are sequential (baseline or extended) or progressive.
_SEQUENTIAL, _PROGRESSIVE, _DHT, _EOI, _SOS = (0xC0, 0xC1), 0xC2, 0xC4, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {_DHT, 0xC8, 0xCC}  # these three between C0 and CF are no frames
_TABLES = {0xDB, _DHT, 0xDD, 0xFE}  # quantisation, Huffman, restart interval; and comments
_APPLICATION = {0xE0: (b"JFIF\0", 18), 0xEE: (b"Adobe", 16)}  # their first bytes, and their least size
_MODES = {1: "L", 3: "RGB"}
_AC, _END_OF_BLOCK = 0x10, 0x00

# Zero bytes after FF and restart markers belong to the compressed data (T.81, B.1.1.5).
_next_marker = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]").search
_frame = struct.Struct(">BHHB").unpack_from
_length = struct.Struct(">H").unpack_from

Segment = tuple[int, int, int]
"""A marker, its offset, and the offset behind its segment."""


class Header(NamedTuple):
    """The width and height of a JPEG, and its mode as Pillow names it."""

    size: tuple[int, int]
    mode: str


def find_segments(data: bytes) -> list[Segment]:
    """Return all segments up to the end marker, or up to the end of a file that has none.

    Raises:
        Reject: ``too_complex``; there are too many.
    """
    segments: list[Segment] = []
    at = 2
    while match := _next_marker(data, at):
        start = match.start()
        marker = data[start + 1]
        if marker == _EOI or start + 4 > len(data):
            segments.append((marker, start, start + 2))
            break
        # The length includes its own two bytes. If it is smaller, libjpeg goes on behind them.
        at = start + 2 + max(_length(data, start + 2)[0], 2)
        segments.append((marker, start, at))
        if len(segments) > MAX_SEGMENTS:
            raise Reject("too_complex", f"a JPEG of more than {MAX_SEGMENTS} segments")
    return segments


def header(data: bytes, segments: list[Segment]) -> Header | None:
    """Return the header of a plain JPEG, as nearly all are, or None for any other, which Pillow must read.

    A plain JPEG has no bytes between its segments, no empty segments, and nothing but tables, comments, the markers of
    JFIF and Adobe, and one frame of 8 bits, grey or colour.
    """
    at, frame = 2, None
    for marker, start, end in segments:
        if start != at or end - start < 5:
            return None
        at = end
        if marker in _TABLES:
            continue
        if marker in _APPLICATION:
            prefix, least_size = _APPLICATION[marker]
            if end - start < least_size or not data.startswith(prefix, start + 4):
                return None
        elif frame is None and (marker in _SEQUENTIAL or marker == _PROGRESSIVE) and end - start >= 10:
            frame = _frame(data, start + 4)
        elif frame and marker == _SOS:
            bits, height, width, components = frame
            plain = bits == 8 and components in _MODES and width and height
            return Header((width, height), _MODES[components]) if plain else None
        else:
            return None
    return None


def depth_and_size(data: bytes, segments: list[Segment]) -> tuple[int, tuple[int, int] | None]:
    """Return the bits of a level, and the width and height, from the frame of a JPEG, lossless or not, or JPEG-LS.

    JPEG-LS is ITU-T T.87. Without a frame the result is (0, None).
    """
    for marker, start, end in segments:
        if marker in _FRAMES and end - start >= 10 and end <= len(data):
            bits, height, width, _ = _frame(data, start + 4)
            return bits, (width, height)
    return 0, None


def check(data: bytes, segments: list[Segment], pixels: int, max_pixels: int) -> None:
    """Reject a JPEG that no decoder should see.

    Raises:
        Reject: ``truncated``, ``too_complex`` or ``damaged``.
    """
    _reject_missing_end(data, segments)
    _reject_many_scans(segments, pixels, max_pixels)
    _reject_holes(data, segments)


def _reject_missing_end(data: bytes, segments: list[Segment]) -> None:
    """Reject a JPEG without an end marker, because a file that was cut short may still decode.

    Some cameras append a second picture behind the end. It must have an end marker as well.
    """
    if not segments or segments[-1][0] != _EOI or data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise Reject("truncated", "the JPEG has no end marker")


def _reject_many_scans(segments: list[Segment], pixels: int, max_pixels: int) -> None:
    """Reject files, mostly progressive ones, with so many scans that a decoder would take minutes."""
    scans = sum(marker == _SOS for marker, _, _ in segments)
    if scans > MAX_SCANS or scans * pixels > MAX_SCANS_OF_LARGEST * max_pixels:
        limit = min(MAX_SCANS, MAX_SCANS_OF_LARGEST * max_pixels // pixels)
        raise Reject("too_complex", f"a JPEG of {scans} scans, the limit for {pixels} pixels is {limit}")


def _reject_holes(data: bytes, segments: list[Segment]) -> None:
    """Reject zeros in place of pixels, as a crashed writer or a sparse upload leaves them.

    A Huffman code uses about as many bits as the picture has information, so that 256 zero bits in a row do not occur
    by chance. They can occur where the code wastes bits: in blank areas, whose blocks are all the same few bits. Those
    bits are zeros only if the all-zero code of each AC table in use means "end of block". Such scans are left to
    libjpeg, which finds too few or too many blocks. Any other all-zero code there would mean that one block after the
    other is filled to its last coefficient with the same value.

    Progressive files are not checked, because a few zeros can stand for whole scans in them.
    """
    if bytes(HOLE) not in data or not any(marker in _SEQUENTIAL for marker, _, _ in segments):
        return
    for number, (marker, start, end) in enumerate(segments[:-1]):
        if marker == _SOS:
            at = data.find(bytes(HOLE), end, segments[number + 1][1])
            if at >= 0 and not _zeros_can_be_blank(data, start, segments[:number]):
                raise Reject("damaged", f"zeros instead of pixels from byte {at} on: the JPEG has a hole")


def _zeros_can_be_blank(data: bytes, scan: int, before: list[Segment]) -> bool:
    """Return True if a scan writes blank areas as zeros: the all-zero code of each of its tables is "end of block"."""
    meanings: dict[int, int] = {}
    for marker, start, end in before:
        if marker == _DHT:
            meanings.update(_all_zero_codes(data[start + 4 : end]))
    components = data[scan + 4]
    tables = data[scan + 6 : scan + 5 + 2 * components : 2]  # T.81, B.2.3
    return all(meanings.get(_AC | table & 0x0F, _END_OF_BLOCK) == _END_OF_BLOCK for table in tables)


def _all_zero_codes(body: bytes) -> dict[int, int]:
    """Return the meaning of the all-zero code of each Huffman table in a segment (T.81, B.2.4.2, C.2).

    It is the first value of the table.
    """
    meanings, at = {}, 0
    while at + 17 < len(body):
        meanings[body[at]] = body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])
    return meanings
