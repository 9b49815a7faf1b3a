"""The picture of many small images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from watcher.cli import contact_sheet
from watcher.cli.contact_sheet import Tile

GREY = Image.fromarray(np.full((64, 64), 100, np.uint8))


def tiles(count: int, group: str = "Hand", caption: tuple[str, ...] = ("a.jpeg", "Hand", "99.0 %")) -> list[Tile]:
    return [Tile(GREY, caption, group)] * count


def test_size_is_as_announced() -> None:
    """The picture has the size that ``size`` computes from the groups."""
    sheet = contact_sheet.draw([*tiles(13), *tiles(2, "CXR")], "heading", ["one", "two"])
    assert sheet.size == contact_sheet.size([13, 2], notes=2)
    assert sheet.mode == "RGB"


def test_width_is_constant() -> None:
    """Few or many images: the picture is always as wide, and grows downwards by whole rows."""
    one, row, two_rows = (contact_sheet.size([n]) for n in (1, contact_sheet.COLUMNS, contact_sheet.COLUMNS + 1))
    assert one == row
    assert two_rows[0] == row[0]
    assert two_rows[1] > row[1]


def test_large_groups_do_not_grow_the_picture() -> None:
    """Beyond a few rows images are counted, not drawn."""
    many = contact_sheet.PER_GROUP * 50
    assert contact_sheet.draw(tiles(many), "h").size == contact_sheet.size([contact_sheet.PER_GROUP])


def test_nothing_to_show() -> None:
    """No images at all still give a picture with its heading."""
    assert contact_sheet.draw([], "nothing arrived").size == contact_sheet.size([])


def test_images_are_drawn_enlarged() -> None:
    """An image fills its square: as many pixels of its grey as the square has, captions aside."""
    sheet = np.asarray(contact_sheet.draw(tiles(1, caption=()), "h"))
    assert (sheet == 100).all(axis=2).sum() >= contact_sheet.SIDE**2


def test_no_image() -> None:
    """A file that is no image gets a box instead."""
    assert contact_sheet.draw([Tile(None, ("notes.txt", "unsupported format"), "quarantine")], "h").size


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode(mode: str) -> None:
    """Images of any kind that Pillow opens can be shown."""
    contact_sheet.draw([Tile(Image.new(mode, (10, 300)), ("x",), "g")], "h")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 255,
        "W" * 100_000,
        "two\nlines\r\n\tand a tab.jpeg",
        b"caf\xe9 \xff\xfe.jpeg".decode("utf-8", "surrogateescape"),
        "nul\0 bell\a escape\x1b[31m.jpeg",
        "\u202egepj.exe",
        "\u6771\u4eac-\u0645\u0631\u062d\u0628\u0627-\U0001f9b4.jpeg",
    ],
    ids=["empty", "long", "huge", "newlines", "not-utf8", "control", "right-to-left-override", "scripts"],
)
def test_odd_names(name: str) -> None:
    """Names as producers send them, in every place where text is drawn, neither fail nor change the size."""
    sheet = contact_sheet.draw([Tile(GREY, (name, name, name, name), name)], name[:500], [name[:500]])
    assert sheet.size == contact_sheet.size([1], notes=1)


def test_captions_stay_in_their_column() -> None:
    """A caption far too long is cut: the space between two columns stays free."""
    sheet = np.asarray(contact_sheet.draw(tiles(1, group="", caption=("W" * 300,) * 3), ""))
    left = int(np.argwhere((sheet == 100).all(axis=2))[:, 1].min())
    top = int(np.argwhere((sheet == 100).all(axis=2))[:, 0].min())
    assert (sheet[top:, left + contact_sheet.SIDE + 10 :] == 255).all()


def test_printable_keeps_both_ends() -> None:
    """Of a long name the beginning and the end are shown, where names differ."""
    shown = contact_sheet.printable("begin" + "x" * 300 + "end.jpeg")
    assert shown.startswith("begin")
    assert shown.endswith("end.jpeg")
    assert len(shown) <= contact_sheet.LONGEST
