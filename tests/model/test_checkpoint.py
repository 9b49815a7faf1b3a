"""A weights file: whole, ours and for this preprocessing, or a clear refusal."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint
from watcher.model.checkpoint import Checkpoint


@pytest.fixture
def small() -> Checkpoint:
    rng = np.random.default_rng(0)
    return Checkpoint(
        name="mednet-test",
        architecture={"filters": [2, 3], "batch_norm": True, "rank": None},
        classes=("Hand", "CXR"),
        tensors={"w": rng.normal(size=(2, 3)).astype(np.float32), "n": np.array(7), "h": np.zeros(3, np.float16)},
        thresholds={"min_confidence": 0.9, "temperature": 1.5},
        training={"seed": 1, "note": "ä"},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "weights.safetensors"


def refused(path: Path) -> str:
    """Return what loading says. It must be exit code 4, with the path and advice."""
    with pytest.raises(Fatal) as caught:
        checkpoint.load(path)
    assert caught.value.code is Exit.MODEL
    assert caught.value.advice
    assert str(path) in caught.value.problem
    return caught.value.problem


def test_round_trip(small: Checkpoint, path: Path) -> None:
    """Everything comes back as it was saved, tensors bit for bit with their types, and nothing else is left there."""
    saved = checkpoint.save(small, path)
    found = checkpoint.load(path)
    assert replace(found, tensors={}, digest="") == replace(small, tensors={})
    assert found.digest == saved.digest
    assert set(found.tensors) == set(small.tensors)
    for name, value in small.tensors.items():
        assert found.tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(found.tensors[name], value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_strided_tensors_are_saved_right(small: Checkpoint, path: Path) -> None:
    """A transposed or sliced tensor is saved with the values that it shows, not in its memory's order."""
    tensors = {"t": np.arange(6.0).reshape(2, 3).T, "s": np.arange(10.0)[::2]}
    checkpoint.save(replace(small, tensors=tensors), path)
    found = checkpoint.load(path)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value)


def test_digest_stands_for_content(small: Checkpoint, path: Path) -> None:
    """Equal content has one digest wherever it lies; any change of tensors, classes or thresholds alters it."""
    digest = checkpoint.save(small, path).digest
    assert checkpoint.save(small, path.with_name("other")).digest == digest
    changed = [
        replace(small, tensors={**small.tensors, "w": small.tensors["w"] + 1}),
        replace(small, tensors={**small.tensors, "w": small.tensors["w"].reshape(3, 2)}),
        replace(small, classes=("CXR", "Hand")),
        replace(small, thresholds={"min_confidence": 0.8}),
        replace(small, name="x"),
    ]
    assert len({digest, *(checkpoint.save(other, path).digest for other in changed)}) == len(changed) + 1


def test_failed_save_keeps_the_old_file(small: Checkpoint, path: Path) -> None:
    """A save that fails leaves the file that was there."""
    checkpoint.save(small, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r".+"):
        checkpoint.save(replace(small, tensors={"x": np.array(["no", "numbers"])}), path)
    assert path.read_bytes() == before


def test_missing_file(path: Path) -> None:
    """A file that is not there is told as such."""
    assert "does not exist" in refused(path)


def test_directory(tmp_path: Path) -> None:
    """A directory is no weights file."""
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"garbage " * 1000, b"\xff" * 64, b"PK\x03\x04" + b"\0" * 100])
def test_garbage(path: Path, content: bytes) -> None:
    """Any file that is no safetensors file is refused, also a pickle of old torch."""
    path.parent.mkdir()
    path.write_bytes(content)
    refused(path)


def test_every_truncation(small: Checkpoint, path: Path) -> None:
    """A weights file cut short at any byte is refused."""
    checkpoint.save(small, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize("flip", [0x01, 0x20])
def test_every_flipped_byte(small: Checkpoint, path: Path, flip: int) -> None:
    """A weights file with one byte changed anywhere is refused, or else it means exactly the same."""
    digest = checkpoint.save(small, path).digest
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            found = checkpoint.load(path)
        except Fatal as error:
            assert error.code is Exit.MODEL
        else:
            assert found.digest == digest
            assert all(np.array_equal(found.tensors[name], value) for name, value in small.tensors.items())


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"format": "pt"}, *({"mednet": text, "digest": "0"} for text in ("{", "{}", "[]", "1", "null", '"x"'))],
)
def test_foreign_safetensors_file(path: Path, metadata: dict[str, str] | None) -> None:
    """A safetensors file of another product is refused as such, whatever stands in its metadata."""
    path.parent.mkdir()
    save_file({"w": np.zeros(3, np.float32)}, path, metadata=metadata)
    assert "no weights file of mednet-watcher" in refused(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_foreign_file_of_types_that_numpy_lacks(path: Path, dtype: torch.dtype) -> None:
    """A file of a language model, say, whose number types numpy does not know, is refused like any other."""
    path.parent.mkdir()
    save_torch({"w": torch.zeros(3).to(dtype)}, path)
    refused(path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("format", "mednet-watcher/2", "another format"),
        ("preprocessing", "whatever", "preprocessing"),
        ("classes", None, "metadata"),
        ("surprise", 1, "metadata"),
    ],
)
def test_other_header(small: Checkpoint, path: Path, key: str, value: object, says: str) -> None:
    """Another format, another preprocessing and unknown keys are refused, each with what is the matter."""
    header = {**checkpoint._header(small), key: value}
    path.parent.mkdir()
    digest = checkpoint._digest(header, small.tensors)
    save_file(small.tensors, path, metadata={"mednet": json.dumps(header), "digest": digest})
    assert says in refused(path)


def test_not_ours_to_read(small: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights are said to be missing, not the file."""
    checkpoint.save(small, path)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refused(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ()}, "no classes"),
        ({"classes": ("Hand", "Hand")}, "two with the same name"),
        ({"classes": ("Hand", 7)}, "can not be the name of a directory"),
        ({"thresholds": [0.9]}, "not numbers"),
        ({"thresholds": {"min_confidence": "0.9"}}, "not numbers"),
        ({"thresholds": {"min_confidence": float("nan")}}, "not numbers"),
        ({"thresholds": {"min_confidence": True}}, "not numbers"),
        ({"thresholds": {"temperature": 0}}, "not above 0"),
    ],
)
def test_what_no_decision_could_be_taken_by(small: Checkpoint, path: Path, change: dict[str, Any], says: str) -> None:
    """Whole and ours, but its classes or thresholds can not be: refused when loaded, not at the first image."""
    checkpoint.save(replace(small, **change), path)
    assert says in refused(path)


@pytest.mark.parametrize("name", ["", "..", "../../etc", "a/b"])
def test_class_that_is_no_directory_name_is_refused(small: Checkpoint, path: Path, name: str) -> None:
    """Classes become directories: a name that leads elsewhere is refused, so files never land outside."""
    checkpoint.save(replace(small, classes=("Hand", name)), path)
    assert "directory" in refused(path)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    """The weights before stay, and the error says which file could not be written."""
    place = tmp_path / "a.safetensors"
    place.write_bytes(b"before")
    with pytest.raises(Fatal, match=str(place)):
        checkpoint.save(Checkpoint("x", {}, ("a",), {"w": np.zeros(9000, np.float32)}), place)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_what_can_not_be_written(small: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, told by safetensors in its own way, and a directory in its place: exit code 5, with the path."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(Fatal, match="No space left") as caught:
            checkpoint.save(small, path)
        assert caught.value.code is Exit.DIRECTORY
    path.mkdir()
    with pytest.raises(Fatal, match=str(path)):
        checkpoint.save(small, path)
    assert list(path.parent.iterdir()) == [path]
