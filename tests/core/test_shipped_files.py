"""A checkout and a wheel: what the product needs at run time is found in both, and nothing of it elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.support.repository import TOP

PROGRAM = """
import sys, time
from pathlib import Path

top, images = map(Path, sys.argv[1:])
sys.path.insert(0, str(top))

from watcher.core import shipped_files
from watcher.images.decoder_pool import DecoderPool
from watcher.ledger.writer import Ledger

for path in (shipped_files.weights(), shipped_files.config(), shipped_files.systemd("mednet-watcher.service")):
    assert path.is_file() and path.is_relative_to(top), path
Ledger(images / "state" / "ledger.sqlite3").close()
pool = DecoderPool(images, {"max_bytes": 1 << 20, "max_pixels": 1 << 20, "memory_mb": 1024}, 60)
pool.submit("a.png")
results = []
while not results:
    time.sleep(0.01)
    results = list(pool.collect())
[child] = Path(f"/proc/self/task/{__import__('os').getpid()}/children").read_text().split()
environ = dict(entry.split("=", 1) for entry in Path(f"/proc/{child}/environ").read_text().split(chr(0)) if entry)
pool.close()
print(*{module.__file__ for name, module in sys.modules.items() if name == "watcher"})
print(results[0].digest, environ["PYTHONPATH"].split(":")[0])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked wheel, as an installation has it."""
    root = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root)]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True)
    [built] = root.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(root / "unpacked")
    return root / "unpacked"


@pytest.mark.parametrize("place", ["checkout", "wheel"])
def test_weights_config_schema_and_decoders_are_found(
    tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    """All come from the same place, although it is not installed.

    The base Python, which has no editable installation to fall back on, runs it with this environment's packages.
    """
    top = TOP if place == "checkout" else request.getfixturevalue("wheel")
    Image.new("L", (64, 64), 100).save(tmp_path / "a.png")
    environ = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    command = [sys._base_executable, "-c", PROGRAM, str(top), str(tmp_path)]  # type: ignore[attr-defined]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    package, decoded = ended.stdout.splitlines()
    assert package == str(top / "watcher" / "__init__.py")
    digest, decoders_path = decoded.split()
    assert (len(digest), decoders_path) == (64, str(top)), "only the directory that holds the package is on its path"
