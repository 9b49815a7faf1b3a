"""Read plans of trainings, YAML files that people write, and report each mistake with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from watcher.core.errors import Exit, Fatal


class PlanPart(BaseModel):
    """A part of a plan. An unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Plan = TypeVar("Plan", bound=PlanPart)


def read(path: Path, kind: type[Plan], contradictions: Callable[[Plan], list[str]], advice: str) -> Plan:
    """Read a plan of a kind, and check it for contradictions.

    Raises:
        Fatal: The file is missing or wrong; it names each mistake with its place (exit code 3).
    """
    try:
        plan = kind.model_validate(yaml.safe_load(path.read_text("utf-8")))
        mistakes = contradictions(plan)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mistakes = [str(error)]
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors()]
    if mistakes:
        raise Fatal(f"{path} can not be used:\n  " + "\n  ".join(mistakes), advice, Exit.CONFIG)
    return plan
