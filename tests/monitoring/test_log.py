"""Logs: one line an event, whatever a file is called."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.core.printable import printable
from watcher.core.records import Decision, Filed, MoveOrder, Outcome, Timing
from watcher.monitoring import log
from watcher.service import log_lines

HAND = Decision(Outcome.SORTED, "Hand", 0.98765432, top=(("Hand", 0.98765432), ("CXR", 0.01)))
TIMING = Timing(seen_s=100.0, queue_ms=1.234, decode_ms=2.0, infer_ms=3.0)
EVIL = '\n{"event": "image.sorted"}\r\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2028\udcff'


def filed(name: str = "a.png", decision: Decision = HAND) -> Filed:
    return Filed(MoveOrder(name, None, "d" * 64, decision, TIMING), f"/sorted/Hand/{name}", 4.0)


def written(form: Literal["json", "console"], *files: Filed, level: str = "info") -> str:
    stream = io.StringIO()
    logger = log.configure(form, level, stream)
    for file in files:
        log_lines.outcome(logger, file, 7, 5, "model", "cpu", now_s=100.5)
    return stream.getvalue()


def told(file: Filed) -> dict[str, Any]:
    [line] = written("json", file).splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_json_line_has_the_documented_keys() -> None:
    """The canonical line has all its keys and no other, also where there is nothing to say."""
    line = told(filed())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "image.sorted",
        "level": "info",
        "id": 7,
        "batch": 5,
        "name": "a.png",
        "digest": "d" * 64,
        "class": "Hand",
        "confidence": 0.987654,
        "runner_up": "CXR",
        "reason": None,
        "detail": None,
        "destination": "/sorted/Hand/a.png",
        "model": "model",
        "device": "cpu",
        "queue_ms": 1.23,
        "decode_ms": 2.0,
        "infer_ms": 3.0,
        "move_ms": 4.0,
        "total_ms": 500.0,
    }


@pytest.mark.parametrize(
    ("outcome", "event", "level"),
    [
        (Outcome.SORTED, "image.sorted", "info"),
        (Outcome.REVIEW, "image.review", "warning"),
        (Outcome.QUARANTINE, "image.quarantined", "warning"),
    ],
)
def test_each_outcome_has_its_event_and_level(outcome: Outcome, event: str, level: str) -> None:
    """An outcome that needs a person is a warning, a sorted file is not; all have the same keys."""
    line = told(filed(decision=Decision(outcome, None, 0.0, "reason", "detail")))
    assert (line["event"], line["level"], line["reason"], line["detail"]) == (event, level, "reason", "detail")
    assert set(line) == set(told(filed()))
    assert line["runner_up"] is None


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_name_forges_a_line(form: Literal["json", "console"]) -> None:
    """A name with newlines and terminal codes stays within its line and commands no terminal."""
    evil = filed(EVIL, replace(HAND, detail=EVIL))
    text = written(form, evil, filed())
    plain = written(form, filed("plain"), filed())
    assert len(text.splitlines()) == len(plain.splitlines()) == 2
    assert "\x1b[2J" not in text and "\x1b]" not in text
    assert not any(c in text for c in "\r\x07\x9b\u202e\u2028")
    text.encode()


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=[])))
def test_printable_is_safe_for_any_name(name: str) -> None:
    """Any name is printed in characters that are printable and can be encoded; plain names are left as they are."""
    safe = printable(name)
    assert safe.isprintable()
    safe.encode()
    if name.isprintable():
        assert safe == name


def test_level_filters() -> None:
    """Below the level nothing is written."""
    assert written("json", filed(), level="warning") == ""
    assert written("json", filed(decision=Decision(Outcome.REVIEW, None, 0.0)), level="warning") != ""


def test_auto_is_json_without_a_terminal() -> None:
    """Auto writes JSON if the output is no terminal."""
    stream = io.StringIO()
    log.configure("auto", "info", stream).info("inbox.reachable")
    assert json.loads(stream.getvalue())["event"] == "inbox.reachable"


def test_auto_is_for_people_on_a_terminal() -> None:
    """Coloured text where a person reads; no JSON."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream:
        log_lines.outcome(log.configure("auto", "info", stream), filed(), 7, 5, "model", "cpu", now_s=100.5)
        text = os.read(ours, 65536).decode()
    os.close(ours)
    assert "image.sorted" in text and "a.png" in text
    assert "\x1b[" in text and "{" not in text


def test_console_without_a_terminal_has_no_colour_codes() -> None:
    """Text redirected into a file is text, without terminal codes."""
    assert "\x1b" not in written("console", filed())
