"""Skips what needs torch where it is not installed, as in the environments of ``make test-python``."""

from __future__ import annotations

import importlib.abc
import importlib.util

import pytest

INSTALLED = importlib.util.find_spec("torch") is not None


needs_torch = pytest.mark.skipif(not INSTALLED, reason="torch is not installed")


def skip_without_torch() -> None:
    """Skip the test, or the module that is being imported, unless torch is installed."""
    if not INSTALLED:
        pytest.skip("torch is not installed", allow_module_level=True)


class SkipImports(importlib.abc.MetaPathFinder):
    """Skips whatever imports torch where it is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            skip_without_torch()
