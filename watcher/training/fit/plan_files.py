"""What is to be trained, as files in YAML that a person writes: read whole, each mistake told by its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from watcher.core.errors import Exit, Fatal


class PlanPart(BaseModel):
    """A part of such a file: an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Plan = TypeVar("Plan", bound=PlanPart)


def read(path: Path, form: type[Plan], contradictions: Callable[[Plan], list[str]], advice: str) -> Plan:
    """Read a file of this form that does not contradict itself.

    Raises:
        Fatal: exit code 3; the file is missing or wrong, each mistake by its place in it.
    """
    try:
        found = form.model_validate(yaml.safe_load(path.read_text("utf-8")))
        wrong = contradictions(found)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        wrong = [str(error)]
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    if wrong:
        raise Fatal(f"{path} can not be used:\n  " + "\n  ".join(wrong), advice, Exit.CONFIG)
    return found
