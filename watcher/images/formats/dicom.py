"""Check that a DICOM file is complete, by its elements.

"PS3.5" is the standard: DICOM part 5, sections 7 and A. The only value that is read here is the transfer syntax, so
that nothing about the patient leaves the file.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from watcher.core.errors import Reject

MAX_ELEMENTS = 300_000
"""The most elements. A volume of a thousand frames, with a few dozen elements each, has 50,000."""

MAX_DEPTH = 32
"""The most sequences within each other. Structured reports have about ten."""

_IMPLICIT, _DEFLATED, _BIG = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2"
_SHORT = set(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_META, _SYNTAX, _PIXELS = 0x0002, 0x00020010, (0x7FE00008, 0x7FE00009, 0x7FE00010)
_ITEM, _ITEM_END, _SEQUENCE_END, _DELIMITERS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFE


class Coding(NamedTuple):
    """The coding of elements: with explicit types (VRs) or not, and little-endian or big-endian."""

    explicit: bool
    little: bool

    @property
    def syntax(self) -> str:
        """The transfer syntax of a file with this coding that does not name its own."""
        return "1.2.840.10008.1.2" + ("" if not self.explicit else ".1" if self.little else ".2")


class Structure(NamedTuple):
    """The coding of a complete file's elements, and the beginning and end of its pixels if they are compressed."""

    coding: Coding
    fragments: tuple[int, int] | None


class _Element(NamedTuple):
    """The head of an element: its tag, type (VR) and length, and the offset of its value."""

    tag: int
    vr: bytes
    length: int
    start: int


def looks_like(data: bytes) -> bool:
    """Return True if a file begins like a DICOM file.

    Files of older archives have no preamble. Then the first element must be a valid one.
    """
    if data[128:132] == b"DICM":
        return True
    if len(data) < 8:
        return False
    little, big = (struct.unpack_from(order + "HH", data) for order in "<>")
    for group, element in (little, big):
        if group in (_META, 0x0008) and element < 0x0060:
            length = struct.unpack_from("<I", data, 4)[0]
            implicit = (group, element) == little and length % 2 == 0 and length <= len(data)
            return data[4:6] in _SHORT | _LONG or implicit
    return False


def check(data: bytes, max_bytes: int) -> Structure:
    """Check that all elements are there, and all fragments of the pixels.

    A file may end between two elements after the pixels, because no pixel depends on the rest.

    Raises:
        Reject: ``truncated``, ``too_complex``, ``too_large`` or ``unreadable``.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    syntax, at = _read_meta(data, at)
    if syntax == _DEFLATED:
        reader = _Reader(_inflated(data[at:], max_bytes), Coding(True, True))
        return reader.read_all(0)._replace(fragments=None)
    if syntax is not None:
        return _Reader(data, Coding(syntax != _IMPLICIT, syntax != _BIG)).read_all(at)
    return _Reader(data, _guess_coding(data, at)).read_all(at)


def _read_meta(data: bytes, at: int) -> tuple[bytes | None, int]:
    """Return the transfer syntax, and the offset of the data set (PS3.10, 7.1)."""
    reader, syntax = _Reader(data, Coding(True, True)), None
    while at + 8 <= len(data) and struct.unpack_from("<H", data, at)[0] == _META:
        element = reader.element(at)
        at = reader.end_of(element)
        if element.tag == _SYNTAX:
            syntax = data[element.start : at].rstrip(b"\0 ")
    return syntax, at


def _inflated(data: bytes, max_bytes: int) -> bytes:
    """Inflate the data set, whose elements are deflated together (PS3.5, A.5)."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = unpacker.decompress(data, max_bytes)
    except zlib.error as error:
        raise Reject("damaged", "the DICOM file does not inflate") from error
    if unpacker.unconsumed_tail:
        raise Reject("too_large", f"more than {max_bytes} bytes once inflated")
    if not unpacker.eof:
        raise Reject("truncated", "the DICOM file ends within its deflated elements")
    return inflated


def _guess_coding(data: bytes, at: int) -> Coding:
    """Guess the coding of a file that does not name it. The first elements have small group numbers."""
    explicit = data[at + 4 : at + 6] in _SHORT | _LONG
    return Coding(explicit, not explicit or struct.unpack_from("<H", data, at)[0] < 0x0100)


class _Reader:
    """Reads the elements of a file one after the other, and rejects a file that has too many."""

    def __init__(self, data: bytes, coding: Coding) -> None:
        self._data, self._coding, self._elements = data, coding, 0
        order = "<" if coding.little else ">"
        self._tag = struct.Struct(order + "HH").unpack_from
        self._short = struct.Struct(order + "H").unpack_from
        self._long = struct.Struct(order + "I").unpack_from

    def read_all(self, at: int) -> Structure:
        """Read all elements of the file, up to its end or to the zeros that pad it."""
        fragments, pixels_seen = None, False
        while at < len(self._data):
            if pixels_seen and not self._data[at:].strip(b"\0"):
                break
            element = self.element(at)
            at = self.end_of(element)
            if element.tag in _PIXELS:
                pixels_seen = True
                if element.length == _UNDEFINED:
                    fragments = (element.start, at)
        return Structure(self._coding, fragments)

    def element(self, at: int, explicit: bool | None = None) -> _Element:
        """Read the head of the element at an offset (PS3.5, 7.1)."""
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise Reject("too_complex", f"a DICOM file of more than {MAX_ELEMENTS} elements")
        explicit = self._coding.explicit if explicit is None else explicit
        try:
            group, number = self._tag(self._data, at)
            vr = self._data[at + 4 : at + 6] if explicit and group != _DELIMITERS else b""
            if vr in _LONG:
                length, start = self._long(self._data, at + 8)[0], at + 12
            elif b"AA" <= vr <= b"ZZ":
                length, start = self._short(self._data, at + 6)[0], at + 8
            else:  # explicit files can have these as well, because some writers change within a sequence
                vr, length, start = b"", self._long(self._data, at + 4)[0], at + 8
        except struct.error as error:
            raise Reject("truncated", "the DICOM file ends within the head of an element") from error
        return _Element(group << 16 | number, vr, length, start)

    def end_of(self, element: _Element) -> int:
        """Return the offset behind an element."""
        if element.length != _UNDEFINED:
            return self._within_file(element.start + element.length)
        return self._end_of_items(element)

    def _within_file(self, at: int) -> int:
        if at > len(self._data):
            raise Reject("truncated", f"the DICOM file ends at byte {len(self._data)}, one of its elements at {at}")
        return at

    def _end_of_items(self, element: _Element) -> int:
        """Return the offset behind the delimiter of a sequence or of fragments (PS3.5, 7.5 and A.4).

        The elements in a sequence of type UN are implicit.
        """
        levels, at = [(False, self._coding.explicit and element.vr != b"UN")], element.start
        while levels:
            in_item, explicit = levels[-1]
            inner = self.element(at, explicit)
            at = inner.start
            if inner.tag == (_ITEM_END if in_item else _SEQUENCE_END):
                levels.pop()
            elif in_item != (inner.tag >> 16 == _DELIMITERS) and (in_item or inner.tag == _ITEM):
                if inner.length == _UNDEFINED:
                    levels.append((not in_item, explicit and inner.vr != b"UN"))
                else:
                    at = self._within_file(at + inner.length)
            else:
                raise Reject("unreadable", "a sequence of the DICOM file holds something other than items")
            if len(levels) > MAX_DEPTH:
                raise Reject("too_complex", f"more than {MAX_DEPTH} sequences of the DICOM file within each other")
        return at
