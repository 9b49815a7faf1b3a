"""Names of modules and files in strings and settings: each is there, since nobody imports them to find out."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import TOP

SETTINGS: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text())
_MODULE = re.compile(r"(?:watcher|tests)(?:\.\w+)+(?::\w+)?")


def modules() -> set[str]:
    """Return the names of all modules and packages of the product."""
    paths = (path.relative_to(TOP).with_suffix("") for path in (TOP / "watcher").rglob("*.py"))
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}


def exists(name: str) -> bool:
    """Return True if there is a module of that name, or what is named after the last dot (or colon) in a module."""
    parent, _, last = name.replace(":", ".").rpartition(".")
    try:
        if importlib.util.find_spec(name.replace(":", ".")) is not None:
            return True
    except ModuleNotFoundError:
        pass
    try:
        if importlib.util.find_spec(parent) is None:
            return False
    except ModuleNotFoundError:
        return "." in parent and hasattr(_imported(parent), last)
    return hasattr(importlib.import_module(parent), last)


def _imported(name: str) -> object:
    """Return a class, or whatever else is named by a module and a name in it; None if there is none."""
    parent, _, last = name.rpartition(".")
    return getattr(importlib.import_module(parent), last, None) if parent in modules() else None


def strings() -> Iterator[tuple[str, str]]:
    """Give every string that could name a module of ours, with its place."""
    for path in sorted(path for folder in ("watcher", "tests") for path in (TOP / folder).rglob("*.py")):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
                yield f"{path.relative_to(TOP)}:{node.lineno}", node.value


def test_modules_named_in_strings_exist() -> None:
    """Names given to ``python -m``, to a lazy import, to ``monkeypatch`` or to a child process are those of today."""
    found = dict(strings())
    assert {"watcher.images.decoder_process", "watcher.cli.benchmark.simple_loop"} <= set(found.values())
    assert {place: name for place, name in found.items() if not exists(name)} == {}


def test_a_name_that_is_gone_is_noticed() -> None:
    """The search can fail: neither a module nor a name that is not there passes."""
    assert exists("watcher.cli.main") and exists("watcher.cli.main:main") and exists("watcher.core.lock.Lock.acquire")
    gone = ("watcher.decoder_child", "watcher.cli.main:mane", "watcher.gone.module", "watcher.core.lock.Lock.acquired")
    assert not any(map(exists, gone))


def test_the_console_script_names_a_function() -> None:
    """``mednet-watcher`` of an installation calls what there is."""
    [target] = SETTINGS["project"]["scripts"].values()
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_contracts_name_modules_that_exist() -> None:
    """import-linter is silent about a wildcard that matches nothing, and about some modules that are gone."""
    there = modules()

    def matches(pattern: str) -> bool:
        return bool(fnmatch.filter(there, pattern.replace("**", "*")))

    named = []
    for contract in SETTINGS["tool"]["importlinter"]["contracts"]:
        named += contract.get("modules", []) + contract.get("source_modules", []) + contract.get("containers", [])
        named += [name for name in contract.get("forbidden_modules", []) if name.startswith("watcher")]
        named += [name for line in contract.get("ignore_imports", []) for name in line.split(" -> ")]
        layers = [name.strip(" ()") for layer in contract.get("layers", []) for name in re.split("[|:]", layer)]
        named += [f"{container}.{name}" for container in contract.get("containers", []) for name in layers]
    assert len(named) > 50
    assert [name for name in named if not matches(name)] == []


def test_what_contracts_forbid_is_installed() -> None:
    """A misspelt package is forbidden in vain."""
    contracts = SETTINGS["tool"]["importlinter"]["contracts"]
    forbidden = {name for contract in contracts for name in contract.get("forbidden_modules", ())}
    outside = {name for name in forbidden if not name.startswith("watcher")}
    assert outside >= {"torch", "structlog"}
    assert [name for name in outside if importlib.util.find_spec(name) is None] == []


def test_settings_of_ruff_name_what_exists() -> None:
    """Files with rules of their own, and classes whose instances are immutable."""
    rules = SETTINGS["tool"]["ruff"]["lint"]
    assert [pattern for pattern in rules["per-file-ignores"] if not any(TOP.glob(pattern.removesuffix("/**")))] == []
    assert [name for name in rules["flake8-bugbear"]["extend-immutable-calls"] if not exists(name)] == []


def test_settings_of_the_build_name_what_exists() -> None:
    """The version's file, what a wheel takes in, and what a source distribution takes in."""
    hatch = SETTINGS["tool"]["hatch"]
    paths = [hatch["version"]["path"], *hatch["build"]["targets"]["wheel"]["force-include"]]
    paths += [path.lstrip("/") for path in hatch["build"]["targets"]["sdist"]["include"]]
    assert [path for path in paths if not (TOP / path).exists()] == []


@pytest.mark.parametrize("pattern", [r"-m (tests\.[\w.]+)", r"(tests/[\w/]+\.py)", r"(docs/[\w/]+\.\w+)"])
def test_the_makefile_names_what_exists(pattern: str) -> None:
    """Proofs, test files and pages that a target of the Makefile runs or writes."""
    found = re.findall(pattern, (TOP / "Makefile").read_text())
    assert found
    paths = [TOP / (name if "/" in name else f"{name.replace('.', '/')}.py") for name in found]
    assert [str(path) for path in paths if not path.exists()] == []
