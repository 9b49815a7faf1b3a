"""Read a plain subset of YAML, with the line and column of each key and value.

Aliases, tags and deep nesting are refused. Unquoted words are read as in YAML 1.2, not 1.1: ``010`` is ten, and
``yes``, ``1:30`` and ``2024-01-01`` are text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MAX_DEPTH = 8
"""The deepest nesting of lists and mappings."""

_ALIAS = "text that starts with * must be in quotes (YAML's aliases are not supported)"
_NULL = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Place(NamedTuple):
    """A line and a column, both counted from 1. Line 0 stands for the whole file."""

    line: int
    column: int


class YamlProblem(Exception):
    """A problem with a text, for people, and its place."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


class YamlEntry(NamedTuple):
    """A key of a mapping, the place of the key, and the node of its value."""

    key: str
    place: Place
    node: yaml.Node


def read(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        YamlProblem: The file is missing, cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        return data.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise YamlProblem(Place(0, 0), f"can not be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        place = _place_after(data[: error.start].decode("utf-8"))
        raise YamlProblem(place, f"is not UTF-8 text (byte 0x{data[error.start]:02x})") from error


def compose(text: str) -> yaml.Node | None:
    """Return the node of the document, or None if there are only comments.

    Raises:
        YamlProblem: The text is not YAML, not plain, or more than one document.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        place = _place_after(text[: error.position])
        raise YamlProblem(place, f"holds a character that YAML forbids ({error.character!r})") from error
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        if error.context == "while scanning an alias":  # "*.part"; the loader refuses "*part", which is an alias
            raise YamlProblem(_place(error.context_mark), _ALIAS) from error
        problem = f"is not valid YAML: {error.problem}" + (f" ({error.context})" if error.context else "")
        raise YamlProblem(_place(error.problem_mark or error.context_mark), problem) from error
    except (ValueError, OverflowError) as error:  # PyYAML raises them for "\Uffffffff", for example
        raise YamlProblem(_place(loader.get_mark()), f"is not valid YAML: {error}") from error


def entries(mapping: yaml.MappingNode) -> tuple[list[YamlEntry], list[YamlProblem]]:
    """Return the entries of a mapping and the problems with its keys.

    A key that occurs twice is a problem, while PyYAML would take the second value without a word.
    """
    good: dict[str, YamlEntry] = {}
    bad: list[YamlProblem] = []
    for key, node in mapping.value:
        place = place_of(key)
        if not isinstance(key, yaml.ScalarNode):
            bad.append(YamlProblem(place, f"?: a key must be a word, not {describe(node_value(key))}"))
        elif key.value in good:
            first = good[key.value].place.line
            bad.append(YamlProblem(place, f"{describe_key(key.value)}: duplicate key, first given on line {first}"))
        else:
            good[key.value] = YamlEntry(key.value, place, node)
    return list(good.values()), bad


def node_value(node: yaml.Node | None) -> object:
    """Return the value of a node: None, bool, int, float, str, a tuple of these, or an empty dict for a mapping."""
    if isinstance(node, yaml.SequenceNode):
        return tuple(node_value(item) for item in node.value)
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else word_value(node.value)
    return None if node is None else {}


def word_value(text: str) -> object:
    """Return the value of an unquoted word."""
    if text in _NULL:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if len(text) < 20 and _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def place_of(node: yaml.Node) -> Place:
    """Return the place where a node starts."""
    return _place(node.start_mark)


def describe(value: object) -> str:
    """Return a value as a message shows it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, tuple | dict):
        return "a list" if isinstance(value, tuple) else "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def describe_key(key: str) -> str:
    """Return a key as a message shows it: unchanged if it is short and printable."""
    return key if key and key.isprintable() and len(key) <= 60 else describe(key)


class _Loader(yaml.BaseLoader):
    """A loader that builds nodes and no objects. It refuses text that could hang it, nest without end or run code."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
        if isinstance(event, yaml.AliasEvent):
            raise YamlProblem(_place(event.start_mark), _ALIAS)
        if getattr(event, "tag", None) is not None:
            raise YamlProblem(_place(event.start_mark), "tags (words that start with !) are not supported")
        if self._depth > MAX_DEPTH:
            raise YamlProblem(_place(event.start_mark), "is nested too deeply")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark else Place(0, 0)


def _place_after(text: str) -> Place:
    return Place(text.count("\n") + 1, len(text) - text.rfind("\n"))
