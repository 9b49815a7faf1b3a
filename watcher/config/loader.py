"""What the operator can set: ``config.yaml``, overlaid by ``MEDNET_SECTION__KEY``.

Every mistake is reported at once, each with its place, so that a file is mended
in one go.
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

from watcher.config import conflicts, loader, plain_yaml
from watcher.config.plain_yaml import Place, Unusable
from watcher.config.settings import Config, Key
from watcher.core.errors import Exit, Fatal

__all__ = ["Config", "ConfigError", "load"]

DEFAULT = Path("config.yaml")
"""Where `run` looks when it is not told."""

SERVICE = Path("/etc/mednet-watcher/config.yaml")
"""The config of the service, see `install-service`."""

PREFIX = "MEDNET_"


class ConfigError(Fatal):
    """The settings can not be used. ``problems`` holds one line for each mistake."""

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
_NAMES = {f"{PREFIX}{'__'.join(filter(None, key))}".upper(): key for key in _SCHEMA}
_AFTER_FILE = Place(2**62, 0)  # problems of the environment come after those of the file


def default() -> Path:
    """Where other commands look when they are not told: in this directory, else where the service has it."""
    return SERVICE if os.path.exists(SERVICE) and not os.path.exists(DEFAULT) else DEFAULT


def load(path: Path, environ: Mapping[str, str], *, optional: bool = False) -> Config:
    """Read the settings in ``path``, overlaid by the ``MEDNET_SECTION__KEY`` in ``environ``.

    Relative paths, from either, are resolved against the directory of ``path``.
    With ``optional``, a file that is not there is as good as an empty one.

    Raises:
        ConfigError: with every problem found, those of the file in its order.
    """
    draft = _Draft(str(path))
    if path.exists() or not optional:
        _read_file(path, draft)
    _read_environment(environ, draft)
    config = _validated(draft).below(Path(os.path.abspath(path)).parent)
    for clash in conflicts.found(config):
        draft.clash(clash)
    if draft.problems:
        raise ConfigError(path, tuple(text for _, text in sorted(draft.problems, key=lambda problem: problem[0])))
    return config


@dataclass
class _Draft:
    """What was read so far. The value of a ``doubtful`` key is not known: its default is no evidence."""

    file: str
    values: dict[Key, object] = field(default_factory=dict)
    places: dict[Key, tuple[Place, str]] = field(default_factory=dict)  # and the name the operator gave it
    problems: list[tuple[Place, str]] = field(default_factory=list)
    doubtful: set[Key] = field(default_factory=set)

    def say(self, place: Place, problem: str) -> None:
        """Note a problem."""
        in_file = f"{self.file}:{place.line}:{place.column}" if place.line else self.file
        self.problems.append((place, f"{'environment' if place == _AFTER_FILE else in_file}: {problem}"))

    def put(self, key: Key, value: object, place: Place, name: str) -> None:
        """Note a value. A later one, from the environment, replaces an earlier."""
        self.values[key] = value
        self.places[key] = (place, name)
        self.doubtful.discard(key)

    def clash(self, clash: conflicts.Clash) -> None:
        """Note what can not be had together, at the first key's place, or the other's where it has its default."""
        if not {clash.key, clash.other} & self.doubtful:
            place, _ = self.places.get(clash.key) or self.places.get(clash.other) or (Place(0, 0), "")
            self.say(place, f"{'.'.join(clash.key)}: {clash.problem}")

    def refuse(self, key: Key, problem: str) -> None:
        """Note a problem with a value that was put, and forget the value."""
        place, name = self.places[key]
        self.say(place, f"{name}: {problem}")
        self.values.pop(key, None)
        self.doubtful.add(key)


def _read_file(path: Path, draft: _Draft) -> None:
    try:
        root = plain_yaml.compose(plain_yaml.read(path))
        if not isinstance(root, yaml.MappingNode) and (value := plain_yaml.plain(root)) is not None:
            raise Unusable(Place(1, 1), f"must hold sections with keys, not {plain_yaml.shown(value)}")
    except Unusable as error:
        draft.say(error.place, error.problem)
        draft.doubtful.update(_SCHEMA)
        return
    if isinstance(root, yaml.MappingNode):
        _read_sections(root, draft)


def _read_sections(root: yaml.MappingNode, draft: _Draft) -> None:
    sections, mistakes = plain_yaml.entries(root)
    for mistake in mistakes:
        draft.say(mistake.place, mistake.problem)
    for name, place, node in sections:
        if name not in Config.model_fields:
            draft.say(place, f"{plain_yaml.word(name)}: unknown section{_suggest(name, Config.model_fields)}")
        elif ("", name) in _SCHEMA:
            draft.put(("", name), plain_yaml.plain(node), place, name)
        elif isinstance(node, yaml.MappingNode):
            _read_keys(name, node, draft)
        elif (value := plain_yaml.plain(node)) is not None:
            draft.say(place, f"{name}: must hold keys with values, not {plain_yaml.shown(value)}")
            draft.doubtful.update(key for key in _SCHEMA if key[0] == name)


def _read_keys(section: str, mapping: yaml.MappingNode, draft: _Draft) -> None:
    keys, mistakes = plain_yaml.entries(mapping)
    for mistake in mistakes:
        draft.say(mistake.place, f"{section}.{mistake.problem}")
    for key, place, node in keys:
        if (section, key) in _SCHEMA:
            draft.put((section, key), plain_yaml.plain(node), place, f"{section}.{key}")
        else:
            known = [name for owner, name in _SCHEMA if owner == section]
            draft.say(place, f"{section}.{plain_yaml.word(key)}: unknown key{_suggest(key, known)}")


def _read_environment(environ: Mapping[str, str], draft: _Draft) -> None:
    """Take ``MEDNET_SECTION__KEY``; a value that starts like a YAML list or quoted text is parsed as such.

    Other names are left alone, but for those that an underscore makes one of ours.
    """
    ours = {*_NAMES, *(name.replace("__", "_") for name in _NAMES)}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or ("__" not in name and name not in ours):
            continue
        if name not in _NAMES:
            draft.say(_AFTER_FILE, f"{plain_yaml.word(name)}: unknown name{_suggest(name, _NAMES)}")
            continue
        draft.put(_NAMES[name], None, _AFTER_FILE, name)
        try:
            parsed = text.startswith(("[", "{", '"', "'"))
            draft.values[_NAMES[name]] = (
                plain_yaml.plain(plain_yaml.compose(text)) if parsed else plain_yaml.scalar(text)
            )
        except Unusable as error:
            draft.refuse(_NAMES[name], error.problem)


def _suggest(wrong: str, known: Iterable[str]) -> str:
    """Guess what was meant: the same name in another section, or else a like one here."""
    elsewhere = [".".join(filter(None, (section, key))) for section, key in _SCHEMA if key == wrong]
    near = elsewhere or difflib.get_close_matches(wrong, known, n=1)
    return f", did you mean `{near[0]}`?" if near else ""


def _validated(draft: _Draft) -> Config:
    """Build the settings. Values of the wrong kind are refused, and defaults stand in for them."""
    try:
        return Config.model_validate(_nested(draft.values))
    except ValidationError as error:
        for mistake in error.errors():
            section, key, *item = mistake["loc"] if len(mistake["loc"]) > 1 else ("", *mistake["loc"])
            wanted = _wanted({"type": "string"} if item else _SCHEMA[str(section), str(key)])
            problem = f"must be {wanted}, not {plain_yaml.shown(mistake['input'])}"
            if "error" in (context := mistake.get("ctx", {})):  # raised above, in words
                problem = str(context["error"])
            prefix = "".join(f"item {int(number) + 1} " for number in item if isinstance(number, int))
            draft.refuse((str(section), str(key)), prefix + problem)
    return Config.model_validate(_nested(draft.values))


def _nested(values: Mapping[Key, object]) -> dict[str, object]:
    nested: dict[str, dict[str, object]] = {section: {} for section, _ in values}
    for (section, key), value in values.items():
        nested[section][key] = value
    return {**nested.pop("", {}), **nested}


def _wanted(schema: Mapping[str, Any]) -> str:
    """Say in words what a key's JSON schema asks for."""
    if "anyOf" in schema:
        return " or ".join(_wanted(choice) for choice in schema["anyOf"])
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


def optional_config(path: Path | None) -> loader.Config:
    """The settings of a file, or the defaults where none is given and none lies here."""
    return loader.load(path or loader.default(), os.environ, optional=path is None)
