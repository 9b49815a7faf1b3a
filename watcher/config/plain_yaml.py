"""The plain part of YAML, with the place of everything in it.

No aliases, no tags, nothing nested deeply. Unquoted words are read as in YAML
1.2, not 1.1: ``010`` is ten, and ``yes``, ``1:30`` and ``2024-01-01`` are text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEEPEST = 8
_ALIAS = "text that starts with * must be in quotes (YAML's aliases are not understood here)"
_NULL = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Place(NamedTuple):
    """Line and column, counted from 1. Line 0 stands for the file as a whole."""

    line: int
    column: int


class Unusable(Exception):
    """A text that is not plain YAML: ``problem`` in words, and its ``place``."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


class YamlEntry(NamedTuple):
    """A key of a mapping, the key's place and the node of its value."""

    key: str
    place: Place
    node: yaml.Node


def read(path: Path) -> str:
    """Give the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        Unusable: it is missing, can not be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        return data.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise Unusable(Place(0, 0), f"can not be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        place = _place_after(data[: error.start].decode("utf-8"))
        raise Unusable(place, f"is not UTF-8 text (byte 0x{data[error.start]:02x})") from error


def compose(text: str) -> yaml.Node | None:
    """Give the document's node, None if there is nothing but comments.

    Raises:
        Unusable: it is not YAML, not plain, or more than one document.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        place = _place_after(text[: error.position])
        raise Unusable(place, f"holds a character that YAML forbids ({error.character!r})") from error
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        if error.context == "while scanning an alias":  # "*.part"; "*part" is one, and refused below
            raise Unusable(_place(error.context_mark), _ALIAS) from error
        problem = f"is not valid YAML: {error.problem}" + (f" ({error.context})" if error.context else "")
        raise Unusable(_place(error.problem_mark or error.context_mark), problem) from error
    except (ValueError, OverflowError) as error:  # PyYAML on "\Uffffffff" and its like
        raise Unusable(_place(loader.get_mark()), f"is not valid YAML: {error}") from error


def entries(mapping: yaml.MappingNode) -> tuple[list[YamlEntry], list[Unusable]]:
    """Give each key once, and what is wrong with keys; PyYAML lets a second value win in silence."""
    good: dict[str, YamlEntry] = {}
    bad: list[Unusable] = []
    for key, node in mapping.value:
        place = place_of(key)
        if not isinstance(key, yaml.ScalarNode):
            bad.append(Unusable(place, f"?: a key must be a word, not {shown(plain(key))}"))
        elif key.value in good:
            first = good[key.value].place.line
            bad.append(Unusable(place, f"{word(key.value)}: duplicate key, first given on line {first}"))
        else:
            good[key.value] = YamlEntry(key.value, place, node)
    return list(good.values()), bad


def plain(node: yaml.Node | None) -> object:
    """Give a node's value: None, bool, int, float, str, a tuple of these, or a dict (contents left out)."""
    if isinstance(node, yaml.SequenceNode):
        return tuple(plain(item) for item in node.value)
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else scalar(node.value)
    return None if node is None else {}


def scalar(text: str) -> object:
    """Give what an unquoted word stands for."""
    if text in _NULL:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if len(text) < 20 and _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def place_of(node: yaml.Node) -> Place:
    """Give where a node starts."""
    return _place(node.start_mark)


def shown(value: object) -> str:
    """Name a value in a message, at bounded length."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, tuple | dict):
        return "a list" if isinstance(value, tuple) else "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def word(key: str) -> str:
    """Name a key in a message: as it is if that fits in a line."""
    return key if key and key.isprintable() and len(key) <= 60 else shown(key)


class _Loader(yaml.BaseLoader):
    """Composes nodes only, and refuses what could hang, nest without end or run code."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
        if isinstance(event, yaml.AliasEvent):
            raise Unusable(_place(event.start_mark), _ALIAS)
        if getattr(event, "tag", None) is not None:
            raise Unusable(_place(event.start_mark), "tags (words that start with !) are not understood here")
        if self._depth > DEEPEST:
            raise Unusable(_place(event.start_mark), "is nested too deeply")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark else Place(0, 0)


def _place_after(text: str) -> Place:
    return Place(text.count("\n") + 1, len(text) - text.rfind("\n"))
