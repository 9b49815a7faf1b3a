"""Escapes text so that it is safe in a log, on a terminal and on a page."""

from __future__ import annotations


def printable(name: str) -> str:
    """A file name as text that is safe in any log: control characters and bytes that are no UTF-8 escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
