"""A file is written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from watcher.core import atomic_write

DIES = """
import os, signal, sys
from pathlib import Path
from watcher.core import atomic_write
with atomic_write.replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    """The directory is made, the file is readable by all, and nothing else is left."""
    place = tmp_path / "new" / "a.json"
    for text in ("one", "two"):
        with atomic_write.replacing(place) as partial:
            assert partial.suffix == place.suffix and partial.name.startswith("."), "for writers that look at the name"
            partial.write_text(text)
            partial.chmod(0o600)
        assert place.read_text() == text
    assert place.stat().st_mode & 0o777 == 0o644
    assert list(place.parent.iterdir()) == [place]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """An error while writing, and a writer that wrote nothing, leave the old file and nothing beside it."""
    place = tmp_path / "a"
    place.write_text("old")
    with pytest.raises(ValueError), atomic_write.replacing(place) as partial:
        partial.write_text("half")
        raise ValueError
    with pytest.raises(FileNotFoundError), atomic_write.replacing(place):
        pass
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_killed_while_writing(tmp_path: Path) -> None:
    """After SIGKILL the old file is whole; the next writing takes away what was left beside it."""
    place = tmp_path / "a"
    place.write_text("old")
    ended = subprocess.run([sys.executable, "-c", DIES, str(place)], env={**os.environ}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert place.read_text() == "old"
    with atomic_write.replacing(place) as partial:
        partial.write_text("new")
    assert place.read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def test_several_at_once(tmp_path: Path) -> None:
    """Two processes that write the same file do not write into each other's: each has a name of its own."""
    place = tmp_path / "a"
    with atomic_write.replacing(place, concurrent=True) as mine:
        mine.write_text("mine")
        told = "from watcher.core import atomic_write; from pathlib import Path; import sys\n"
        told += "with atomic_write.replacing(Path(sys.argv[1]), concurrent=True) as p: p.write_text('theirs')"
        subprocess.run([sys.executable, "-c", told, str(place)], check=True)
        assert (place.read_text(), mine.read_text()) == ("theirs", "mine")
    assert place.read_text() == "mine"


@pytest.mark.usefixtures("full_disk")
def test_the_error_names_the_file(tmp_path: Path) -> None:
    """A disk that fills while one writes fails a write, which knows no name: the error has that of the file."""
    with pytest.raises(OSError) as caught, atomic_write.replacing(tmp_path / "a") as partial:
        partial.write_bytes(bytes(9000))
    assert caught.value.filename == str(tmp_path / "a") and list(tmp_path.iterdir()) == []
