"""Check that a TIFF is complete, and list its pages, by its directories.

"TIFF 6.0" is the specification (Adobe, 1992). BigTIFF differs only in wider fields.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from watcher.core.errors import Reject

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MAX_DIRECTORIES = 2_000
"""The most directories: pages, and directories that belong to them. A page of a scanned film has three."""

MAX_ENTRIES = 100_000
"""The most fields in all directories together. A page has thirty."""

HOLE = 32
"""The number of zero bytes in a row that compressed pixels never contain, see :func:`_reject_holes`."""

# Sizes of field types: TIFF 6.0, section 2 (1 to 12); IFD, and BigTIFF's 16 to 18.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 7: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_SUBFILE_TYPE, _COMPRESSION, _TILE = 254, 259, (322, 323)
_OFFSETS = {273: 279, 324: 325, 513: 514}  # strips, tiles, a JPEG: the tag of their offsets, and of their byte counts
_SUBDIRECTORIES = (330, 34665, 34853, 40965)  # smaller sizes of the page, and EXIF
_REDUCED = 1
_JPEG_TABLES = 347  # TIFF Technical Note 2 (1995): a JPEG with nothing but tables
_WITHOUT_ZEROS = (2, 3, 4, 5, 32773)  # CCITT's three, LZW, PackBits

Values = npt.NDArray[np.unsignedinteger]


@dataclass
class _Directory:
    """The integer fields of a directory by their tags, and the offset of the next directory, 0 for none."""

    fields: dict[int, Values]
    next: int


def pages(data: bytes, max_pixels: int) -> list[int]:
    """Check that all pixels are there, and return the numbers of the pages that are not smaller copies of others.

    Raises:
        Reject: ``truncated``, ``damaged``, ``too_complex``, ``too_large`` or ``unreadable``.
    """
    reader = _Reader(data)
    numbers, number, at = [], 0, reader.first()
    while at:
        directory = reader.directory(at)
        if not _OFFSETS.keys() & directory.fields.keys():
            raise Reject("unreadable", "the TIFF does not say where its pixels are")
        _check(data, directory, max_pixels)
        for subdirectory in _subdirectories(directory):
            _check(data, reader.directory(subdirectory), max_pixels)
        if not int(directory.fields.get(_SUBFILE_TYPE, np.zeros(1, "u4"))[0]) & _REDUCED:
            numbers.append(number)
        number, at = number + 1, directory.next
    if not number:
        raise Reject("truncated", "the TIFF does not say where its first page is")
    return numbers or [0]


def _subdirectories(directory: _Directory) -> Iterator[int]:
    for tag in _SUBDIRECTORIES:
        yield from (int(at) for at in directory.fields.get(tag, np.zeros(0, "u4")))


class _Reader:
    """Reads directories of a TIFF, and rejects one that has too many or that refers to itself."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data.startswith(b"II") else ">"
        self._big = data[2:4] in (b"+\0", b"\0+")
        self._seen: set[int] = set()
        self._entries = 0

    def _unpack(self, fields: str, at: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self._order + fields, self._data, at)
        except struct.error as error:
            raise Reject("truncated", f"the TIFF ends before its byte {at}") from error

    def first(self) -> int:
        """Return the offset of the first directory."""
        return self._unpack("Q", 8)[0] if self._big else self._unpack("I", 4)[0]

    def directory(self, at: int) -> _Directory:
        """Read the directory at an offset. Every value of its fields must lie within the file."""
        if at in self._seen:
            raise Reject("unreadable", "the directories of the TIFF form a loop")
        self._seen.add(at)
        count = self._unpack("Q" if self._big else "H", at)[0]
        self._entries += count
        if len(self._seen) > MAX_DIRECTORIES or self._entries > MAX_ENTRIES:
            raise Reject("too_complex", f"a TIFF of more than {MAX_DIRECTORIES} pages or {MAX_ENTRIES} fields")
        head, size, entry = (8, 20, "HHQ") if self._big else (2, 12, "HHI")
        fields: dict[int, Values] = {}
        for start in range(at + head, at + head + size * count, size):
            tag, kind, number = self._unpack(entry, start)
            values = self._values(kind, number, start + size - (8 if self._big else 4))
            if values is not None:
                fields.setdefault(tag, values)
        return _Directory(fields, self._unpack("Q" if self._big else "I", at + head + size * count)[0])

    def _values(self, kind: int, number: int, at: int) -> Values | None:
        """Return the integers of a field, or None for another type. The values of any type must be in the file."""
        size = _SIZES.get(kind, 0) * number
        inline = 8 if self._big else 4
        start = at if size <= inline else self._unpack("Q" if self._big else "I", at)[0]
        if start + max(size, inline if start == at else 0) > len(self._data):
            raise Reject("truncated", f"the TIFF ends within a field, of {len(self._data)} bytes")
        if kind not in _INTEGERS or not number:
            return None
        return np.frombuffer(self._data, self._order + _INTEGERS[kind], number, start)


def _check(data: bytes, directory: _Directory, max_pixels: int) -> None:
    """Check that the pixels of one directory are there."""
    fields = directory.fields
    side = [int(fields[tag][0]) for tag in _TILE if tag in fields]
    if len(side) == 2 and side[0] * side[1] > max_pixels:
        raise Reject("too_large", f"tiles of {side[0]} x {side[1]} pixels, the limit is {max_pixels}")
    compression = int(fields[_COMPRESSION][0]) if _COMPRESSION in fields else 1
    for offset_tag, count_tag in _OFFSETS.items():
        if offset_tag not in fields:
            continue
        starts = fields[offset_tag].astype(np.uint64)
        sizes = fields.get(count_tag, np.zeros(0)).astype(np.uint64)
        if len(starts) != len(sizes) or not starts.all() or not sizes.all():
            raise Reject("unreadable", "the TIFF does not say where all of its pixels are")
        end = np.uint64(len(data))
        if (starts > end).any() or (sizes > end).any() or (starts + sizes > end).any():
            raise Reject("truncated", "the TIFF ends before its pixels do")
        if compression in _WITHOUT_ZEROS:
            _reject_holes(data, starts, sizes)
    tables = fields[_JPEG_TABLES].tobytes() if _JPEG_TABLES in fields else b"\xff\xd9"
    if tables[-2:] != b"\xff\xd9":
        raise Reject("damaged", "the TIFF's tables for its JPEGs are incomplete")


def _reject_holes(data: bytes, starts: Values, sizes: Values) -> None:
    """Reject zeros in place of pixels, as a crashed writer or a sparse upload leaves them.

    These codings shorten runs, so that none of them writes 32 zero bytes in a row.
    """
    if bytes(HOLE) not in data:
        return
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        if (at := data.find(bytes(HOLE), start, start + size)) >= 0:
            raise Reject("damaged", f"zeros instead of pixels from byte {at} on: the TIFF has a hole")
