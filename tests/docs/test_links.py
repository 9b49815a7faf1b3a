"""The documentation: whatever it links to or names in this repository is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.repository import TOP

PAGES = sorted([TOP / "README.md", TOP / "CHANGELOG.md", TOP / "weights" / "README.md", *(TOP / "docs").rglob("*.md")])

_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
_LINK = re.compile(r"!?\[[^]]*\]\(\s*([^)\s]+)\s*\)")
_EXTERNAL = re.compile(r"[a-z]+:")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:\.ci|\.requirements|docs|systemd|tests|watcher|weights)/[\w./-]*\w/?")


def links(page: Path) -> Iterator[str]:
    """Give every target of a link that is no address on the web."""
    text = _INDENTED.sub("", _FENCED.sub("", page.read_text()))
    return (target for target in _LINK.findall(text) if not _EXTERNAL.match(target))


def named_paths(page: Path) -> Iterator[str]:
    """Give every path of this repository that stands in backquotes, alone."""
    return (word for word in _CODE.findall(page.read_text()) if _PATH.fullmatch(word))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)


def is_there(page: Path, target: str) -> bool:
    """Return True if a link on ``page`` leads to a file, and to a heading of it where it names one."""
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    return there.exists() and (not anchor or there.suffix != ".md" or anchor in anchors(there))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not is_there(page, target)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_path_named_exists(page: Path) -> None:
    """A module that moves takes its name in the documentation along."""
    assert [path for path in named_paths(page) if not (TOP / path).exists()] == []


def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    """The two tests above look at what they should: links, anchors, pictures and paths, but no code."""
    page = tmp_path / "page.md"
    page.write_text(
        "# The page\n[a](page.md) [b](gone.md) [c](#the-page) [d](#gone) ![e](gone.svg) [f](https://example.org/x)\n"
        "[g\nh](gone/)\n\n    [code](none.md)\n\n```\n[code](none.md)\n```\n"
        "`watcher/gone.py` `watcher/__init__.py` `tests/gone/` `watcher/gone.py:main` `make tests/none.py`\n"
    )
    assert [target for target in links(page) if not is_there(page, target)] == [
        *("gone.md", "#gone", "gone.svg", "gone/")
    ]
    assert [path for path in named_paths(page) if not (TOP / path).exists()] == ["watcher/gone.py", "tests/gone/"]


def test_the_pages_name_what_they_should() -> None:
    """A search that finds next to nothing would prove nothing."""
    assert sum(len(list(links(page))) for page in PAGES) > 40
    assert sum(len(list(named_paths(page))) for page in PAGES) > 60
