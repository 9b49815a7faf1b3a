"""Small real things that several tests need."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, settings
from PIL import Image

from tests.support import event_catalogue, torch_missing
from watcher.core.records import Identity

Encoded = Callable[..., bytes]

_SHM = Path("/dev/shm")

sys.meta_path.insert(0, torch_missing.SkipImports())

# Nothing is judged by the clock: on a busy machine an example may take long.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def _encoded(kind: str) -> Encoded:
    def make(seed: int = 0, width: int = 64, height: int = 64, mode: str = "L", **options: Any) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(autouse=True)
def as_catalogued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that a test makes this process log is held against the catalogue; `harness` does so for daemons."""
    render = structlog.processors.JSONRenderer.__call__

    def checked(self: Any, logger: Any, name: str, line: Any) -> str | bytes:
        written = render(self, logger, name, line)
        event_catalogue.check_line(json.loads(written))
        return written

    monkeypatch.setattr(structlog.processors.JSONRenderer, "__call__", checked)


@pytest.fixture(scope="session")
def jpeg() -> Encoded:
    """Makes the bytes of a JPEG of noise: ``jpeg(seed, width, height, mode, **options of Pillow)``."""
    return _encoded("JPEG")


@pytest.fixture(scope="session")
def png() -> Encoded:
    """Makes the bytes of a PNG of noise, with the arguments of ``jpeg``."""
    return _encoded("PNG")


@pytest.fixture(scope="session")
def identify() -> Callable[[Path], Identity]:
    """Tells which file a path stands for just now, as the stations see it."""

    def look(path: Path) -> Identity:
        found = os.lstat(path)
        return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    return look


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch use one thread: networks this small are faster so, on a busy machine most of all.

    Not imported above: most tests do without torch.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than the inbox."""
    if not _SHM.is_dir() or os.stat(_SHM).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    path = Path(tempfile.mkdtemp(dir=_SHM))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 4 KiB, as on a disk that is full: a write fails, by ``EFBIG``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
