"""The sampler of synthetic images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.training.data import synthetic_images

CLASSES = ("ChestCT", "BreastMRI", "CXR", "AbdomenCT", "HeadCT", "Hand")
SHIPPED = shipped_files.weights("sketch.safetensors")


def some_images(count: int = 12, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64), dtype=np.uint8)


@pytest.fixture
def small() -> synthetic_images.Sketch:
    return synthetic_images.fit({"a": some_images(seed=1), "b": some_images(seed=2)}, components=3, views=2)


def test_sample_is_one_grey_image(small: synthetic_images.Sketch) -> None:
    """A sample is what the decoder gives for a file: (64, 64), 8-bit."""
    image = small.sample("a", np.random.default_rng(0))
    assert image.shape == (64, 64)
    assert image.dtype == np.uint8


def test_same_seed_same_image(small: synthetic_images.Sketch) -> None:
    """The generator's state alone decides which image is drawn."""
    first, again, other = (small.sample("b", np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fit_is_deterministic() -> None:
    """Equal images and an equal seed give an equal sketch, to the last bit."""
    images = {"a": some_images(40)}
    first, again = (synthetic_images.fit(images, 4, 3, np.random.default_rng(5)).by_class["a"] for _ in range(2))
    for name, value in vars(first).items():
        assert np.array_equal(value, getattr(again, name)), name


def test_round_trip(small: synthetic_images.Sketch, tmp_path: Path) -> None:
    """A saved sketch loads with its classes in order, its provenance, and the same statistics to 16 bits."""
    path = tmp_path / "new" / "sketch.safetensors"
    small.save(path)
    loaded = synthetic_images.Sketch.load(path)
    assert loaded.classes == ("a", "b")
    assert dict(loaded.provenance) == synthetic_images.PROVENANCE
    for label in loaded.classes:
        for name, value in vars(small.by_class[label]).items():
            assert np.allclose(getattr(loaded.by_class[label], name), value, rtol=1e-3, atol=1e-3), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_views_are_never_few_images() -> None:
    """A view stands for at least a quarter of a small class: no image is stored as the mean of itself."""
    images = some_images(12)
    images[0] = 255  # far from all others: k-means would leave it alone in a cluster
    portrait = synthetic_images.fit({"a": images}, components=3, views=8).by_class["a"]
    assert portrait.shares.min() * 12 >= 3
    assert portrait.shares.sum() == pytest.approx(1)


def test_components_are_orthonormal_and_bounded(small: synthetic_images.Sketch) -> None:
    """No more components than asked for, at right angles and of length one."""
    basis = small.by_class["a"].components
    assert basis.shape == (3, 64 * 64)
    assert np.allclose(basis @ basis.T, np.eye(3), atol=1e-3)


def test_samples_resemble_their_class() -> None:
    """Bright at the left stays bright at the left."""
    images = np.random.default_rng(3).integers(0, 40, (60, 64, 64), dtype=np.uint8)
    images[:, :, :32] += 180
    fitted = synthetic_images.fit({"left": images}, components=4, views=2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        image = fitted.sample("left", rng).astype(int)
        assert image[:, :32].mean() > image[:, 32:].mean() + 100


def test_unknown_class_is_a_key_error(small: synthetic_images.Sketch) -> None:
    """Asking for a class that the sketch lacks is the caller's mistake."""
    with pytest.raises(KeyError):
        small.sample("Foot", np.random.default_rng(0))


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_not_a_sketch(tmp_path: Path, content: bytes | None) -> None:
    """A missing, damaged or foreign file is refused with exit code 4 and a way out."""
    path = tmp_path / "sketch.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Fatal) as caught:
        synthetic_images.Sketch.load(path)
    assert caught.value.code == Exit.MODEL
    assert str(path) in caught.value.problem


def test_cut_short(small: synthetic_images.Sketch, tmp_path: Path) -> None:
    """A sketch that was not copied whole is refused."""
    path = tmp_path / "sketch.safetensors"
    small.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Fatal):
        synthetic_images.Sketch.load(path)


def test_shipped_sketch() -> None:
    """The shipped sketch knows the six classes, names its source and licence, and is under 4 MB."""
    assert SHIPPED.stat().st_size < 4_000_000
    shipped = synthetic_images.Sketch.load(SHIPPED)
    assert shipped.classes == CLASSES
    assert "CC BY-SA 4.0" in shipped.provenance["licence"]
    assert "Erickson" in shipped.provenance["source"]


@pytest.mark.parametrize("label", CLASSES)
def test_shipped_samples_vary(label: str) -> None:
    """Every shipped class gives images that are not blank and not twice the same."""
    shipped, rng = synthetic_images.Sketch.load(SHIPPED), np.random.default_rng(1)
    first, second = shipped.sample(label, rng), shipped.sample(label, rng)
    assert first.min() < first.max()
    assert not np.array_equal(first, second)


def test_shipped_views_stand_for_many_images() -> None:
    """No view of the shipped sketch is a mean over less than a fortieth of its class's 7,100 to 8,000 images."""
    for portrait in synthetic_images.Sketch.load(SHIPPED).by_class.values():
        assert portrait.shares.min() >= 1 / 40


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """The error says which file could not be written, and nothing is left of it."""
    known = synthetic_images.Sketch.load(shipped_files.weights("sketch.safetensors"))
    with pytest.raises(OSError) as caught:
        known.save(tmp_path / "s.safetensors")
    assert caught.value.filename == str(tmp_path / "s.safetensors") and list(tmp_path.iterdir()) == []
