"""JPEGs written bit by bit, for what no encoder at hand writes."""

from __future__ import annotations

import struct

MOST_BLANK = 32767  # blocks that one code can call blank (ITU-T T.81, G.1.2.2)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def packed(bits: str) -> bytes:
    """Compressed data: filled up with ones, each FF stuffed."""
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


def table(kind: int, *values: int) -> bytes:
    """A Huffman table of one code of each length: 0 for the first value, 10 for the second, 110, and so on."""
    return bytes([kind]) + bytes([1] * len(values) + [0] * (16 - len(values))) + bytes(values)


def frame(marker: int, width: int, height: int, components: int = 1) -> bytes:
    """The beginning of a file: one quantisation table, and a frame of components that are not subsampled."""
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    head = struct.pack(">BHHB", 8, height, width, components) + parts
    return b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(marker, head)


def scan(component: int, tables: int, band: tuple[int, int], high: int, low: int, bits: str) -> bytes:
    return segment(0xDA, bytes([1, component, tables, *band, high << 4 | low])) + packed(bits)


def separate_scans(side: int) -> bytes:
    """A blank colour JPEG with a scan for each component. Blank blocks are "00" in the second and third only."""
    blocks = (side // 8) ** 2
    tables = table(0x00, 0) + table(0x10, 1, 0) + table(0x11, 0, 1)
    out = frame(0xC0, side, side, 3) + segment(0xC4, tables) + scan(1, 0x00, (0, 63), 0, 0, "010" * blocks)
    return out + scan(2, 0x01, (0, 63), 0, 0, "00" * blocks) + scan(3, 0x01, (0, 63), 0, 0, "00" * blocks) + b"\xff\xd9"


def progressive(width: int, height: int, scans: int) -> bytes:
    """A valid grey JPEG that refines each coefficient bit by bit, up to 883 scans, none of which changes a pixel."""
    blocks = -(-width // 8) * -(-height // 8)
    out = [frame(0xC2, width, height), segment(0xC4, table(0x00, 0) + table(0x10, 0xE0))]
    out.append(scan(1, 0x00, (0, 0), 0, 0, "0" * blocks))
    nothing = ("0" + "1" * 14) * -(-blocks // MOST_BLANK)
    steps = [(place, low) for place in range(1, 64) for low in range(13, -1, -1)]
    for place, low in steps[: scans - 1]:
        out.append(scan(1, 0x00, (place, place), 0 if low == 13 else low + 1, low, nothing))
    return b"".join(out) + b"\xff\xd9"
