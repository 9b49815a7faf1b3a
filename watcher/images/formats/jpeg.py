"""What the markers of a JPEG tell of it, before anything is decoded.

"T.81" is the standard: ITU-T Recommendation T.81 (1992). The walk comes to the
same markers as libjpeg does, in damaged files too.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from watcher.core.errors import Reject

MAGIC = b"\xff\xd8\xff"

HOLE = 32
"""As many zero bytes in a row are no picture, see :func:`_refuse_holes`."""

MOST_SCANS = 500
"""In any picture. libjpeg writes 6 (grey) to 18 (CMYK). libjpeg-turbo's fuzzers stop at 500: ``TJPARAM_SCANLIMIT``."""

MOST_PASSES = 32
"""In a picture of the most pixels allowed. Each scan goes over every block, though a few bytes may stand for it."""

MOST_SEGMENTS = 20_000
"""A profile of 64 MB, cut into segments of the longest kind, has a thousand."""

# T.81, table B.1. Frames by Huffman codes are sequential (baseline or extended) or progressive.
_SEQUENTIAL, _PROGRESSIVE, _DHT, _EOI, _SOS = (0xC0, 0xC1), 0xC2, 0xC4, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {_DHT, 0xC8, 0xCC}  # the others of C0 to CF are no frames
_TABLES = {0xDB, _DHT, 0xDD, 0xFE}  # quantisation, Huffman, restart interval; and comments
_APPLICATION = {0xE0: (b"JFIF\0", 18), 0xEE: (b"Adobe", 16)}  # what they begin with, and their least size
_MODES = {1: "L", 3: "RGB"}
_AC, _END_OF_BLOCK = 0x10, 0x00

# The next marker. Stuffed zeros and restart markers are part of the compressed data (T.81, B.1.1.5).
_next = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]").search
_frame = struct.Struct(">BHHB").unpack_from
_length = struct.Struct(">H").unpack_from

Segment = tuple[int, int, int]
"""A marker, where it begins, and where its segment ends."""


class Header(NamedTuple):
    """Width and height, and the mode as Pillow names it."""

    size: tuple[int, int]
    mode: str


def segments(data: bytes) -> list[Segment]:
    """All segments up to the end marker, or up to where the file ends without one.

    Raises:
        Reject: ``too_complex``; they are too many.
    """
    found: list[Segment] = []
    at = 2
    while hit := _next(data, at):
        start = hit.start()
        marker = data[start + 1]
        if marker == _EOI or start + 4 > len(data):
            found.append((marker, start, start + 2))
            break
        # A length of less than its own two bytes: libjpeg goes on behind them.
        at = start + 2 + max(_length(data, start + 2)[0], 2)
        found.append((marker, start, at))
        if len(found) > MOST_SEGMENTS:
            raise Reject("too_complex", f"a JPEG of more than {MOST_SEGMENTS} segments")
    return found


def header(data: bytes, found: list[Segment]) -> Header | None:
    """The header of a JPEG such as nearly all are; None where there is anything else in it, for Pillow to judge.

    Plain is: no byte between the segments, none of them empty; tables,
    comments, JFIF's and Adobe's marks, and one frame of 8 bits, grey or colour.
    """
    at, frame = 2, None
    for marker, start, end in found:
        if start != at or end - start < 5:
            return None
        at = end
        if marker in _TABLES:
            continue
        if marker in _APPLICATION:
            mark, least = _APPLICATION[marker]
            if end - start < least or not data.startswith(mark, start + 4):
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


def depth_and_size(data: bytes, found: list[Segment]) -> tuple[int, tuple[int, int] | None]:
    """Bits, width and height as the frame has them, also of a JPEG without loss and of JPEG-LS (ITU-T T.87)."""
    for marker, start, end in found:
        if marker in _FRAMES and end - start >= 10 and end <= len(data):
            bits, height, width, _ = _frame(data, start + 4)
            return bits, (width, height)
    return 0, None


def refuse(data: bytes, found: list[Segment], pixels: int, max_pixels: int) -> None:
    """Refuse what no decoder needs to see.

    Raises:
        Reject: ``truncated``, ``too_complex`` or ``damaged``.
    """
    _refuse_missing_end(data, found)
    _refuse_long_work(found, pixels, max_pixels)
    _refuse_holes(data, found)


def _refuse_missing_end(data: bytes, found: list[Segment]) -> None:
    """A file cut short may still decode; its end marker tells that it is whole.

    A further picture behind the end, as some cameras append, must have an end as well.
    """
    if not found or found[-1][0] != _EOI or data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise Reject("truncated", "the JPEG has no end marker")


def _refuse_long_work(found: list[Segment], pixels: int, max_pixels: int) -> None:
    """Refuse files, progressive ones mostly, whose many scans would take a decoder minutes."""
    scans = sum(marker == _SOS for marker, _, _ in found)
    if scans > MOST_SCANS or scans * pixels > MOST_PASSES * max_pixels:
        most = min(MOST_SCANS, MOST_PASSES * max_pixels // pixels)
        raise Reject("too_complex", f"a JPEG of {scans} scans; of {pixels} pixels {most} are the most")


def _refuse_holes(data: bytes, found: list[Segment]) -> None:
    """Refuse zeros where pixels should be, as a crashed writer or a sparse upload leaves them.

    A Huffman code spends about as many bits as the picture has to tell, so
    that 256 zero bits in a row do not come about by chance. They do where the
    code wastes bits: in blank areas, each block of which is the same few bits.
    Those bits are zeros only if the all-zero code of each AC table in use means
    "end of block": such scans are left to libjpeg, which misses or finds too
    many blocks. Any other all-zero code in their place says that block after
    block is filled to its last coefficient with one and the same value.

    Progressive files are not judged: there a few zeros stand for whole scans.
    """
    if bytes(HOLE) not in data or not any(marker in _SEQUENTIAL for marker, _, _ in found):
        return
    for number, (marker, start, end) in enumerate(found[:-1]):
        if marker == _SOS:
            at = data.find(bytes(HOLE), end, found[number + 1][1])
            if at >= 0 and not _blank_is_zeros(data, start, found[:number]):
                raise Reject("damaged", f"zeros instead of pixels from byte {at} on: the JPEG has a hole")


def _blank_is_zeros(data: bytes, scan: int, before: list[Segment]) -> bool:
    """Whether zeros are how this scan writes a blank area: "end of block" has the all-zero code everywhere."""
    meanings: dict[int, int] = {}
    for marker, start, end in before:
        if marker == _DHT:
            meanings.update(_all_zero_codes(data[start + 4 : end]))
    components = data[scan + 4]
    tables = data[scan + 6 : scan + 5 + 2 * components : 2]  # T.81, B.2.3
    return all(meanings.get(_AC | table & 0x0F, _END_OF_BLOCK) == _END_OF_BLOCK for table in tables)


def _all_zero_codes(body: bytes) -> dict[int, int]:
    """For each Huffman table of a segment what its all-zero code stands for: the first value (T.81, B.2.4.2, C.2)."""
    meanings, at = {}, 0
    while at + 17 < len(body):
        meanings[body[at]] = body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])
    return meanings
