"""The demo behind ``make run``, as a newcomer runs it."""

from __future__ import annotations

from pathlib import Path

from tests.support.daemon import mednet


def test_demo_sorts_and_accounts_for_every_file(tmp_path: Path) -> None:
    """With no data at hand: every file dropped lies in exactly one place, most in their class, and a picture shows it.

    The network may find a sample unlike anything it knows, and leave it to a person; it files none as another class.
    """
    ended = mednet("demo", "--images", "18", "--dir", str(tmp_path / "demo"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all 22 files dropped lie in exactly one place each" in ended.stdout
    assert "synthetic" in ended.stdout.lower()
    assert (tmp_path / "demo" / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")
    images = [path for path in (tmp_path / "demo" / "sorted").rglob("*") if path.is_file()]
    assert all(path.parent.name.lower() in path.name for path in images)
    assert len(images) >= 12


def test_demo_touches_no_directory_it_did_not_make(tmp_path: Path) -> None:
    """A directory with somebody's files is refused and left as it is, with exit code 5."""
    (tmp_path / "precious").write_text("mine")
    ended = mednet("demo", "--dir", str(tmp_path))
    assert (ended.returncode, (tmp_path / "precious").read_text()) == (5, "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
