"""Escape text so that it is safe in a log, on a terminal and on a web page."""

from __future__ import annotations


def printable(name: str) -> str:
    """Return a file name with all control characters, and all bytes that are not UTF-8, escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
