"""Is a DICOM file whole? Its elements tell, before anything is decoded.

"PS3.5" is the standard: DICOM part 5, sections 7 and A. No value of an element
is looked at here but the transfer syntax: whose picture it is stays in the file.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from watcher.core.errors import Reject

MOST_ELEMENTS = 300_000
"""A volume of a thousand frames, each with a few dozen elements of its own, has 50,000."""

MOST_NESTED = 32
"""Sequences within sequences. Structured reports go to ten or so."""

_IMPLICIT, _DEFLATED, _BIG = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2"
_SHORT = set(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_META, _SYNTAX, _PIXELS = 0x0002, 0x00020010, (0x7FE00008, 0x7FE00009, 0x7FE00010)
_ITEM, _ITEM_END, _SEQUENCE_END, _DELIMITERS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFE


class Coding(NamedTuple):
    """How elements are written."""

    explicit: bool
    little: bool

    @property
    def syntax(self) -> str:
        """The transfer syntax of files that are written so and do not say it."""
        return "1.2.840.10008.1.2" + ("" if not self.explicit else ".1" if self.little else ".2")


class Whole(NamedTuple):
    """What was found: how the elements are written, and where compressed pixels begin and end, if they are."""

    coding: Coding
    fragments: tuple[int, int] | None


class _Element(NamedTuple):
    tag: int
    vr: bytes
    length: int
    start: int


def looks_like(data: bytes) -> bool:
    """With the preamble, or without one, as older archives have them: the first element then must be one."""
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


def check(data: bytes, max_bytes: int) -> Whole:
    """See that every element is there, and the pixels with all their fragments.

    What follows the pixels is not missed where a file ends between two
    elements: no pixel depends on it.

    Raises:
        Reject: ``truncated``, ``too_complex``, ``too_large`` or ``unreadable``.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    syntax, at = _meta(data, at)
    if syntax == _DEFLATED:
        return _Walk(_inflated(data[at:], max_bytes), Coding(True, True)).through(0)._replace(fragments=None)
    if syntax is not None:
        return _Walk(data, Coding(syntax != _IMPLICIT, syntax != _BIG)).through(at)
    return _Walk(data, _guessed(data, at)).through(at)


def _meta(data: bytes, at: int) -> tuple[bytes | None, int]:
    """The transfer syntax, and where the data set begins (PS3.10, 7.1)."""
    walk, syntax = _Walk(data, Coding(True, True)), None
    while at + 8 <= len(data) and struct.unpack_from("<H", data, at)[0] == _META:
        element = walk.element(at)
        at = walk.behind(element)
        if element.tag == _SYNTAX:
            syntax = data[element.start : at].rstrip(b"\0 ")
    return syntax, at


def _inflated(data: bytes, max_bytes: int) -> bytes:
    """PS3.5, A.5: all elements behind the first group, deflated together."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(data, max_bytes)
    except zlib.error as error:
        raise Reject("damaged", "the DICOM file does not inflate") from error
    if unpacker.unconsumed_tail:
        raise Reject("too_large", f"more than {max_bytes} bytes once inflated")
    if not unpacker.eof:
        raise Reject("truncated", "the DICOM file ends within its deflated elements")
    return found


def _guessed(data: bytes, at: int) -> Coding:
    """How the elements are written where the file does not say. Groups of the first elements are small numbers."""
    explicit = data[at + 4 : at + 6] in _SHORT | _LONG
    return Coding(explicit, not explicit or struct.unpack_from("<H", data, at)[0] < 0x0100)


class _Walk:
    def __init__(self, data: bytes, coding: Coding) -> None:
        self._data, self._coding, self._elements = data, coding, 0
        order = "<" if coding.little else ">"
        self._tag = struct.Struct(order + "HH").unpack_from
        self._short = struct.Struct(order + "H").unpack_from
        self._long = struct.Struct(order + "I").unpack_from

    def through(self, at: int) -> Whole:
        """Every element of the file, up to its end or to the zeros that it is padded with."""
        fragments, pixels = None, False
        while at < len(self._data):
            if pixels and not self._data[at:].strip(b"\0"):
                break
            element = self.element(at)
            at = self.behind(element)
            if element.tag in _PIXELS:
                pixels = True
                if element.length == _UNDEFINED:
                    fragments = (element.start, at)
        return Whole(self._coding, fragments)

    def element(self, at: int, explicit: bool | None = None) -> _Element:
        """The head of the element at a place (PS3.5, 7.1)."""
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise Reject("too_complex", f"a DICOM file of more than {MOST_ELEMENTS} elements")
        explicit = self._coding.explicit if explicit is None else explicit
        try:
            group, number = self._tag(self._data, at)
            vr = self._data[at + 4 : at + 6] if explicit and group != _DELIMITERS else b""
            if vr in _LONG:
                length, start = self._long(self._data, at + 8)[0], at + 12
            elif b"AA" <= vr <= b"ZZ":
                length, start = self._short(self._data, at + 6)[0], at + 8
            else:  # also in explicit files: some writers change over within a sequence
                vr, length, start = b"", self._long(self._data, at + 4)[0], at + 8
        except struct.error as error:
            raise Reject("truncated", "the DICOM file ends within the head of an element") from error
        return _Element(group << 16 | number, vr, length, start)

    def behind(self, element: _Element) -> int:
        """Where an element ends."""
        if element.length != _UNDEFINED:
            return self._within(element.start + element.length)
        return self._behind_items(element)

    def _within(self, at: int) -> int:
        if at > len(self._data):
            raise Reject("truncated", f"the DICOM file ends at byte {len(self._data)}, an element of it at {at}")
        return at

    def _behind_items(self, element: _Element) -> int:
        """Behind the delimiter of a sequence, or of fragments (PS3.5, 7.5 and A.4). UN holds implicit elements."""
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
                    at = self._within(at + inner.length)
            else:
                raise Reject("unreadable", "a sequence of the DICOM file holds something else than items")
            if len(levels) > MOST_NESTED:
                raise Reject("too_complex", f"more than {MOST_NESTED} sequences of the DICOM file within each other")
        return at
