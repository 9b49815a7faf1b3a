"""The catalogue of events, and every log line of the test suite held against it."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema

from tests.support.repository import TOP

SCHEMA = TOP / "docs" / "events.schema.json"


@functools.cache
def catalogue() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def check_line(line: dict[str, Any]) -> None:
    """Fails if the line is not as the catalogue has it."""
    problems = [problem.message for problem in catalogue().iter_errors(line)]
    assert not problems, f"not as docs/events.schema.json has it: {problems} in {line}"


def check_text(text: bytes) -> int:
    """Hold every line against it that is a JSON object with an event. Gives how many."""
    found = 0
    for line in text.splitlines():
        if line.startswith(b"{") and b'"event": ' in line and line.endswith(b"}"):
            told = json.loads(line)
            if "timestamp" in told:
                check_line(told)
                found += 1
    return found
