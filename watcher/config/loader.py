"""Read the settings from ``config.yaml`` and from the environment variables ``MEDNET_SECTION__KEY``.

All mistakes are reported at once, each with its place, so that an operator can mend the file in one go.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from watcher.config import conflicts, plain_yaml
from watcher.config.plain_yaml import Place, YamlProblem
from watcher.config.settings import Config, Key
from watcher.core.errors import Exit, Fatal

__all__ = ["Config", "ConfigError", "load"]

DEFAULT_PATH = Path("config.yaml")
"""The file that `run` reads unless another one is named."""

SERVICE_PATH = Path("/etc/mednet-watcher/config.yaml")
"""The file of the service, see `install-service`."""

PREFIX = "MEDNET_"


class ConfigError(Fatal):
    """The settings cannot be used. ``problems`` holds one line for each mistake."""

    def __init__(self, path: Path, problems: tuple[str, ...]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"{path} has {count}:\n  " + "\n  ".join(problems),
            "Mend them and try again; `mednet-watcher check-config` checks without starting anything.",
            code=Exit.CONFIG,
        )
        self.problems = problems


_MODE: Key = ("", "mode")  # it has no section
_SCHEMA: dict[Key, dict[str, Any]] = {
    (section, key): schema
    for section, model in Config().sections()
    for key, schema in model.model_json_schema()["properties"].items()
}
_SCHEMA[_MODE] = Config.model_json_schema()["properties"]["mode"]
_VARIABLES = {f"{PREFIX}{'__'.join(filter(None, key))}".upper(): key for key in _SCHEMA}
_ENVIRONMENT = Place(2**62, 0)  # it sorts the problems of the environment behind those of the file


def default_path() -> Path:
    """Return the file that commands read unless another one is named.

    It is config.yaml in the working directory. If that does not exist, it is the file of the service if there is one.
    """
    return SERVICE_PATH if os.path.exists(SERVICE_PATH) and not os.path.exists(DEFAULT_PATH) else DEFAULT_PATH


def load_or_default(path: Path | None) -> Config:
    """Read the settings in ``path``, or else in the default file. Without any file the defaults hold.

    Raises:
        ConfigError: The settings cannot be used.
    """
    return load(path or default_path(), os.environ, optional=path is None)


def load(path: Path, environ: Mapping[str, str], *, optional: bool = False) -> Config:
    """Read the settings in ``path``, replaced by the variables ``MEDNET_SECTION__KEY`` in ``environ``.

    Relative paths, from either source, are resolved against the directory of ``path``.

    Args:
        path: The file.
        environ: The environment.
        optional: Treat a missing file as an empty one.

    Raises:
        ConfigError: The settings cannot be used. It holds all problems, those of the file in its order.
    """
    draft = _Draft(str(path))
    if path.exists() or not optional:
        _read_file(path, draft)
    _read_environment(environ, draft)
    config = _validate(draft).resolve_paths(Path(os.path.abspath(path)).parent)
    for conflict in conflicts.find(config):
        draft.add_conflict(conflict)
    if draft.problems:
        raise ConfigError(path, tuple(text for _, text in sorted(draft.problems, key=lambda problem: problem[0])))
    return config


@dataclass
class _Draft:
    """The values and problems read so far.

    ``places`` also holds the name by which the operator set the key. The value of a key in ``unknown`` is not known,
    so that its default proves no conflict.
    """

    file: str
    values: dict[Key, object] = field(default_factory=dict)
    places: dict[Key, tuple[Place, str]] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)
    unknown: set[Key] = field(default_factory=set)

    def add_problem(self, place: Place, problem: str) -> None:
        """Add a problem at a place."""
        in_file = f"{self.file}:{place.line}:{place.column}" if place.line else self.file
        self.problems.append((place, f"{'environment' if place == _ENVIRONMENT else in_file}: {problem}"))

    def add_value(self, key: Key, value: object, place: Place, name: str) -> None:
        """Set the value of a key. The environment comes last and replaces the value in the file."""
        self.values[key] = value
        self.places[key] = (place, name)
        self.unknown.discard(key)

    def add_conflict(self, conflict: conflicts.Conflict) -> None:
        """Add a conflict at the place of its first key, or of the other key if the first has its default."""
        if not {conflict.key, conflict.other} & self.unknown:
            place, _ = self.places.get(conflict.key) or self.places.get(conflict.other) or (Place(0, 0), "")
            self.add_problem(place, f"{'.'.join(conflict.key)}: {conflict.problem}")

    def reject(self, key: Key, problem: str) -> None:
        """Add a problem with the value of a key, and remove the value."""
        place, name = self.places[key]
        self.add_problem(place, f"{name}: {problem}")
        self.values.pop(key, None)
        self.unknown.add(key)


def _read_file(path: Path, draft: _Draft) -> None:
    try:
        root = plain_yaml.compose(plain_yaml.read(path))
        if not isinstance(root, yaml.MappingNode) and (value := plain_yaml.node_value(root)) is not None:
            raise YamlProblem(Place(1, 1), f"must hold sections with keys, not {plain_yaml.describe(value)}")
    except YamlProblem as error:
        draft.add_problem(error.place, error.problem)
        draft.unknown.update(_SCHEMA)
        return
    if isinstance(root, yaml.MappingNode):
        _read_sections(root, draft)


def _read_sections(root: yaml.MappingNode, draft: _Draft) -> None:
    sections, mistakes = plain_yaml.entries(root)
    for mistake in mistakes:
        draft.add_problem(mistake.place, mistake.problem)
    for name, place, node in sections:
        if name not in Config.model_fields:
            shown = plain_yaml.describe_key(name)
            draft.add_problem(place, f"{shown}: unknown section{_suggestion(name, Config.model_fields)}")
        elif ("", name) in _SCHEMA:
            draft.add_value(("", name), plain_yaml.node_value(node), place, name)
        elif isinstance(node, yaml.MappingNode):
            _read_keys(name, node, draft)
        elif (value := plain_yaml.node_value(node)) is not None:
            draft.add_problem(place, f"{name}: must hold keys with values, not {plain_yaml.describe(value)}")
            draft.unknown.update(key for key in _SCHEMA if key[0] == name)


def _read_keys(section: str, mapping: yaml.MappingNode, draft: _Draft) -> None:
    keys, mistakes = plain_yaml.entries(mapping)
    for mistake in mistakes:
        draft.add_problem(mistake.place, f"{section}.{mistake.problem}")
    for key, place, node in keys:
        if (section, key) in _SCHEMA:
            draft.add_value((section, key), plain_yaml.node_value(node), place, f"{section}.{key}")
        else:
            known = [name for owner, name in _SCHEMA if owner == section]
            shown = plain_yaml.describe_key(key)
            draft.add_problem(place, f"{section}.{shown}: unknown key{_suggestion(key, known)}")


def _read_environment(environ: Mapping[str, str], draft: _Draft) -> None:
    """Read the variables ``MEDNET_SECTION__KEY``.

    A value that starts like a list, a mapping or quoted text is parsed as YAML. Other variables that start with
    ``MEDNET_`` are ignored, unless they have two underscores, or would be ours with two in place of one.
    """
    ours = {*_VARIABLES, *(name.replace("__", "_") for name in _VARIABLES)}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or ("__" not in name and name not in ours):
            continue
        if name not in _VARIABLES:
            shown = plain_yaml.describe_key(name)
            draft.add_problem(_ENVIRONMENT, f"{shown}: unknown name{_suggestion(name, _VARIABLES)}")
            continue
        key = _VARIABLES[name]
        draft.add_value(key, None, _ENVIRONMENT, name)
        try:
            if text.startswith(("[", "{", '"', "'")):
                draft.values[key] = plain_yaml.node_value(plain_yaml.compose(text))
            else:
                draft.values[key] = plain_yaml.word_value(text)
        except YamlProblem as error:
            draft.reject(key, error.problem)


def _suggestion(wrong: str, known: Iterable[str]) -> str:
    """Return the end of a message with the likely name: the same name in another section, or a similar one here."""
    elsewhere = [".".join(filter(None, (section, key))) for section, key in _SCHEMA if key == wrong]
    similar = elsewhere or difflib.get_close_matches(wrong, known, n=1)
    return f", did you mean `{similar[0]}`?" if similar else ""


def _validate(draft: _Draft) -> Config:
    """Build the settings. Defaults take the place of values of the wrong type, which become problems."""
    try:
        return Config.model_validate(_nested(draft.values))
    except ValidationError as error:
        for mistake in error.errors():
            section, key, *item = mistake["loc"] if len(mistake["loc"]) > 1 else ("", *mistake["loc"])
            expected = _expected({"type": "string"} if item else _SCHEMA[str(section), str(key)])
            problem = f"must be {expected}, not {plain_yaml.describe(mistake['input'])}"
            if "error" in (context := mistake.get("ctx", {})):  # raised in settings.py, with its own text
                problem = str(context["error"])
            prefix = "".join(f"item {int(number) + 1} " for number in item if isinstance(number, int))
            draft.reject((str(section), str(key)), prefix + problem)
    return Config.model_validate(_nested(draft.values))


def _nested(values: Mapping[Key, object]) -> dict[str, object]:
    """Return the values as a mapping of sections, in which keys without a section stand beside the sections."""
    nested: dict[str, dict[str, object]] = {section: {} for section, _ in values}
    for (section, key), value in values.items():
        nested[section][key] = value
    return {**nested.pop("", {}), **nested}


def _expected(schema: Mapping[str, Any]) -> str:
    """Describe in words the values that the JSON schema of a key allows."""
    if "anyOf" in schema:
        return " or ".join(_expected(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema["type"] == "string":
        return "a path in quotes" if schema.get("format") == "path" else "text in quotes"
    names = {"null": "null", "array": "a list of texts", "boolean": "true or false"}
    names |= {"integer": "a whole number", "number": "a number"}
    low, high, above = (schema.get(bound) for bound in ("minimum", "maximum", "exclusiveMinimum"))
    if low is not None:
        bounds = f" from {low} to {high}" if high is not None else f" greater than or equal to {low}"
    else:
        bounds = f" greater than {above}" if above is not None else ""
    return names[schema["type"]] + bounds
