"""Draw many small images on one picture, by group, each with a caption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 12
SIDE = 96
"""Height and width of an enlarged image, in pixels."""

PER_GROUP = 24
"""The most images of a group that are shown, so that the picture stays small enough to look at."""

LONGEST = 80
"""The most characters of a caption line. A line that does not fit is cut further."""

_GAP, _MARGIN = 16, 28
_LINE, _CAPTION_LINES = 15, 3
_TILE_HEIGHT = SIDE + 5 + _LINE * _CAPTION_LINES + 8
_GROUP_HEAD, _GROUP_TAIL = 34, 10
_HEAD, _NOTE_LINE = 44, 20
_PAPER, _INK, _FAINT, _RULE, _BOX = "#ffffff", "#1c2126", "#5c6670", "#d5dade", "#eceff1"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """An image, its caption lines, and the group that it is shown in. ``image`` is None if there is none to show."""

    image: Image.Image | None
    caption: tuple[str, ...]
    group: str


def draw(tiles: Sequence[Tile], heading: str, notes: Sequence[str] = (), per_group: int = PER_GROUP) -> Image.Image:
    """Draw the picture, RGB, with groups and images in their order of appearance.

    Captions have up to three lines, cut to the width of the image. Characters that a font cannot show are replaced.
    """
    groups: dict[str, list[Tile]] = {}
    for tile in tiles:
        groups.setdefault(tile.group, []).append(tile)
    shown = [min(len(group), per_group) for group in groups.values()]
    sheet = Image.new("RGB", size(shown, len(notes)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _draw_head(pen, heading, notes)
    for name, members in groups.items():
        top = _draw_group(sheet, pen, top, name, members, per_group)
    return sheet


def size(counts: Iterable[int], notes: int = 0) -> tuple[int, int]:
    """Return width and height in pixels of a picture with groups of so many shown images and so many lines of notes."""
    rows = [-(-count // COLUMNS) for count in counts]
    height = 2 * _MARGIN + _head_height(notes) + sum(_GROUP_HEAD + row * _TILE_HEIGHT + _GROUP_TAIL for row in rows)
    return 2 * _MARGIN + COLUMNS * SIDE + (COLUMNS - 1) * _GAP, height


def printable(text: str) -> str:
    """Return one line of at most :data:`LONGEST` characters, its middle cut out, and only printable characters."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 + 1 :]}"
    return "".join(c if c.isprintable() else "?" for c in text)


def _head_height(notes: int) -> int:
    return _HEAD + notes * _NOTE_LINE + 8


def _draw_head(pen: ImageDraw.ImageDraw, heading: str, notes: Sequence[str]) -> int:
    """Draw heading and notes, and return the height where the groups begin."""
    width = COLUMNS * SIDE + (COLUMNS - 1) * _GAP
    title, small = _font(25), _font(14)
    pen.text((_MARGIN, _MARGIN), _fitted(pen, heading, title, width), fill=_INK, font=title)
    for number, note in enumerate(notes):
        place = (_MARGIN, _MARGIN + _HEAD + number * _NOTE_LINE)
        pen.text(place, _fitted(pen, note, small, width, whole=True), fill=_FAINT, font=small)
    return _MARGIN + _head_height(len(notes))


def _draw_group(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, top: int, name: str, members: Sequence[Tile], per_group: int
) -> int:
    """Draw one group below ``top``, and return the height where the next begins."""
    shown = members[:per_group]
    font, small = _font(17), _font(13)
    count = f"{len(members)}" if len(shown) == len(members) else f"{len(members)}, {len(shown)} of them shown"
    title = _fitted(pen, name, font, sheet.width // 2)
    pen.line((_MARGIN, top, sheet.width - _MARGIN, top), fill=_RULE)
    base = top + 24
    pen.text((_MARGIN, base), title, fill=_INK, font=font, anchor="ls")
    pen.text((_MARGIN + pen.textlength(title, font=font) + 10, base), count, fill=_FAINT, font=small, anchor="ls")
    for number, tile in enumerate(shown):
        row, column = divmod(number, COLUMNS)
        place = (_MARGIN + column * (SIDE + _GAP), top + _GROUP_HEAD + row * _TILE_HEIGHT)
        _draw_tile(sheet, pen, place, tile)
    return top + _GROUP_HEAD + -(-len(shown) // COLUMNS) * _TILE_HEIGHT + _GROUP_TAIL


def _draw_tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, place: tuple[int, int], tile: Tile) -> None:
    left, top = place
    if tile.image is None:
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_BOX, outline=_RULE)
        middle = (left + SIDE // 2, top + SIDE // 2)
        pen.text(middle, "no image", fill=_FAINT, font=_font(12), anchor="mm")
    else:
        sheet.paste(tile.image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), place)
    for number, line in enumerate(tile.caption[:_CAPTION_LINES]):
        font = _font(11)
        spot = (left, top + SIDE + 5 + number * _LINE)
        pen.text(spot, _fitted(pen, line, font, SIDE + 8), fill=_FAINT if number else _INK, font=font)


def _fitted(pen: ImageDraw.ImageDraw, text: str, font: _Font, width: int, *, whole: bool = False) -> str:
    """Cut a text in its middle until it is no wider than ``width`` pixels. ``whole`` looks at all of it."""
    line = "".join(c if c.isprintable() else "?" for c in text) if whole else printable(text)
    shown, keep = line, len(line)
    while keep > 1 and pen.textlength(shown, font=font) > width:
        keep -= 1
        shown = f"{line[: (keep + 1) // 2]}…{line[len(line) - keep // 2 :]}"
    return shown


def _font(points: int) -> _Font:
    """Return Pillow's own font, so that the picture is the same wherever it is drawn."""
    return ImageFont.load_default(points)
