"""``generalise`` from end to end on a few drawn images, and what its figures mean."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from watcher import checkpoint, classify, cli, ood, operating
from watcher.settings import Review
from watcher.training import general_report, rehearsal, strange

CLASSES = ("ChestCT", "BreastMRI", "CXR", "AbdomenCT", "HeadCT", "Hand")


def drawn(kind: int, number: int, side: int = 64) -> np.ndarray:
    """One bright bar at a place that tells the kind."""
    image = np.random.default_rng([kind, number]).integers(0, 40, (side, side))
    image[:, kind * side // 8 : (kind + 1) * side // 8] += 180
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base data set, a pool of two sources and two kinds, and folds that leave each out once."""
    root = tmp_path_factory.mktemp("generalise")
    rows = [("path", "class", "split")]
    for number, label in enumerate(CLASSES):
        (root / "base" / label).mkdir(parents=True)
        for image in range(12):
            path = f"{label}/{image}.png"
            Image.fromarray(drawn(number, image)).save(root / "base" / path)
            rows.append((path, label, "valid" if image >= 8 else "train"))
    _write(root / "split.csv", rows)
    rows = [("path", "class", "kind", "source", "rendering", "licence_conf", "split_suggestion")]
    (root / "pool").mkdir()
    for source in ("north", "south"):
        for number in range(24):
            kind, path = number % 2, f"pool/{source}-{number}.png"
            deep = source == "north"
            image = drawn(kind, 100 + number, 80).astype(np.uint16) * (12 if deep else 1)
            Image.fromarray(image if deep else image.astype(np.uint8)).save(root / path)
            rows.append((path, CLASSES[kind], "", source, "hu" if deep else "as_exported", "A", "train"))
    for kind in ("knee", "photo"):
        for number in range(9):
            path = f"pool/{kind}-{number}.png"
            Image.fromarray(drawn(7, number)).save(root / path)
            rows.append((path, "outlier", kind, f"{kind}s", "as_exported", "B" if number == 8 else "A", "train"))
    _write(root / "pool.csv", rows)
    (root / "study").mkdir()
    folds = {"one": {"sources": ["north"], "kinds": ["knee"]}, "two": {"sources": ["south"], "kinds": ["photo"]}}
    plan = {"seed": 0, "steps": 2, "shipped": {"steps": 3, "without_grades": ["B"]}, "folds": folds}
    (root / "study" / "folds.yaml").write_text(yaml.safe_dump(plan))
    threads = torch.get_num_threads()
    for step in ("train", "judge", "ship", "report"):
        assert _call(root, step) == 0
    torch.set_num_threads(threads)
    return root


def _write(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _call(root: Path, step: str, *more: str) -> int:
    data = [
        "--data",
        root / "base",
        "--split",
        root / "split.csv",
        "--pool",
        root / "pool.csv",
        "--runs",
        root / "runs",
    ]
    words = [
        "generalise",
        step,
        "--folds",
        root / "study" / "folds.yaml",
        *data,
        "--out",
        root / "out" / "w.safetensors",
    ]
    return cli.main([*map(str, words), *more])


def _judged(home: Path) -> dict[str, dict[str, object]]:
    return dict(json.loads((home / "study" / "judged.json").read_text()))


def test_every_image_is_judged_by_a_network_that_never_saw_it(home: Path) -> None:
    """Over the folds, each source counts with all its images (HU in the three ways that files come), each kind too."""
    folds = {name: found for name, found in _judged(home).items() if name != "shipped"}
    assert [(row["class"], row["origin"], row["images"]) for row in general_report.sources(folds)] == [
        ("BreastMRI", "north", 36),
        ("BreastMRI", "south", 12),
        ("ChestCT", "north", 36),
        ("ChestCT", "south", 12),
    ]
    assert [(row["kind"], row["images"]) for row in general_report.kinds(folds)] == [("knee", 9), ("photo", 9)]


def test_counts_add_up(home: Path) -> None:
    """Of each row no more are filed than there are, and the confusion matrix has every image of the first view."""
    for found in _judged(home).values():
        for row in found["sources"]:  # type: ignore[attr-defined]
            assert 0 <= row["filed_right"] <= row["right"] <= row["images"]
            assert row["filed_right"] + row["filed_wrong"] <= row["images"]
    one = _judged(home)["one"]
    assert np.sum(one["confusion"]) == 24 + 9  # type: ignore[arg-type]


def test_shipped_weights_are_whole(home: Path) -> None:
    """They load, know what is near, carry their operating points, and their rehearsal belongs to them."""
    weights = checkpoint.load(home / "out" / "w.safetensors")
    net = classify.build(weights)
    assert (weights.classes, net.config.classes, net.config.batch_norm) == (CLASSES, 7, False)
    assert ood.of(weights.tensors) is not None
    assert operating.policy(Review(accept_rate=0.95), weights).max_distance <= 2
    assert rehearsal.load(home / "out" / "rehearsal.safetensors").trunk == rehearsal.trunk(net)
    assert set(weights.training["validation"]["class_mix"]) == set(CLASSES)
    assert weights.training["pool_images"] == 48 + 16, "without the two images of grade B"


def test_training_again_does_nothing_more(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished runs are left as they are."""
    before = {path: path.read_bytes() for path in (home / "runs").rglob("net.safetensors")}
    assert _call(home, "train") == 0
    assert "step" not in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}


def test_report_is_made_of_the_figures_alone(home: Path) -> None:
    """The page has each part, and comes out the same without any image at hand."""
    page = (home / "study" / "report.md").read_text()
    parts = ("Right, before", "thresholds on", "operating point", "tells strangers", "Hounsfield", "Where it fails")
    for part in (*parts, "verdicts change", "that is shipped"):
        assert part in page
    assert cli.main(["generalise", "report", "--folds", str(home / "study" / "folds.yaml")]) == 0
    assert (home / "study" / "report.md").read_text() == page
    assert (home / "study" / "general.svg").stat().st_size > 1000


def test_without_data_it_says_what_it_needs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that needs images and has none is refused with advice."""
    assert cli.main(["generalise", "train", "--folds", str(home / "study" / "folds.yaml")]) == 2
    assert "--pool" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("known", "strangers", "expected"),
    [([1, 2, 3], [4, 5], 1.0), ([4, 5], [1, 2, 3], 0.0), ([1, 1], [1, 1], 0.5), ([1, 3], [2, 4], 0.75)],
)
def test_auroc(known: list[float], strangers: list[float], expected: float) -> None:
    """The share of pairs in which the stranger scores higher; ties count half."""
    assert strange.auroc(np.array(known, float), np.array(strangers, float)) == pytest.approx(expected)


def test_mahalanobis_is_its_definition() -> None:
    """The score is (x - m)' S^-1 (x - m) for the nearest mean m and the covariance S within groups."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(50, 3)) + shift for shift in (0.0, 6.0)]
    found = strange.spread([np.concatenate(groups)], [np.repeat([0, 1], 50)], ridge=0.0)
    within = np.concatenate([group - group.mean(axis=0) for group in groups])
    inverse = np.linalg.inv(within.T @ within / len(within))
    x = np.array([[1.0, 2, 3]])
    apart = x - np.stack([group.mean(axis=0) for group in groups])
    np.testing.assert_allclose(found.distance(x), min(d @ inverse @ d for d in apart), rtol=1e-6)
