"""``generalise`` from end to end on a few drawn images, and what its figures mean."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from watcher.cli import main
from watcher.config.settings import Review
from watcher.model import checkpoint, classifier, out_of_distribution, thresholds
from watcher.training.multi_source import generalisation_report, novelty_scores, seed_spread, unseen_sources
from watcher.training.site import rehearsal

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
    folds = {
        "one": {"sources": ["north"], "kinds": ["knee"]},
        "two": {"sources": ["south"], "kinds": ["photo"], "more_seeds": [1]},
    }
    plan = {
        "seed": 0,
        "steps": 2,
        "shipped": {"steps": 3, "without_grades": ["B"], "more_seeds": [1, 2]},
        "folds": folds,
    }
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
    return main.main([*map(str, words), *more])


def _judged(home: Path) -> dict[str, dict[str, object]]:
    return dict(json.loads((home / "study" / "judged.json").read_text()))


def test_every_image_is_judged_by_a_network_that_never_saw_it(home: Path) -> None:
    """Over the folds, each source counts with all its images (HU in the three ways that files come), each kind too."""
    folds = {name: found for name, found in _judged(home).items() if name in ("one", "two")}
    assert [(row["class"], row["origin"], row["images"]) for row in generalisation_report.sources(folds)] == [
        ("BreastMRI", "north", 36),
        ("BreastMRI", "south", 12),
        ("ChestCT", "north", 36),
        ("ChestCT", "south", 12),
    ]
    assert [(row["kind"], row["images"]) for row in generalisation_report.outlier_kinds(folds)] == [
        ("knee", 9),
        ("photo", 9),
    ]


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
    net = classifier.build(weights)
    assert (weights.classes, net.config.classes, net.config.batch_norm) == (CLASSES, 7, False)
    assert out_of_distribution.from_tensors(weights.tensors) is not None
    assert thresholds.policy(Review(accept_rate=0.95), weights).max_distance <= 2
    assert rehearsal.load(home / "out" / "rehearsal.safetensors").trunk == rehearsal.trunk(net)
    assert set(weights.training["validation"]["class_mix"]) == set(CLASSES)
    assert weights.training["pool_images"] == 48 + 16, "without the two images of grade B"


def test_training_again_does_nothing_more(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished runs are left as they are, also where nothing is kept of them but the network."""
    before = {path: path.read_bytes() for path in (home / "runs").rglob("net.safetensors")}
    (home / "runs" / "one" / "last.pt").unlink()
    assert _call(home, "train") == 0
    assert "step" not in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}


def test_report_is_made_of_the_figures_alone(home: Path) -> None:
    """The page has each part, and comes out the same without any image at hand."""
    page = (home / "study" / "report.md").read_text()
    parts = ("Right, before", "thresholds on", "operating point", "recognises outliers", "Hounsfield", "Where it fails")
    for part in (*parts, "verdicts change", "that is shipped", "recipe with other seeds", "Small sources"):
        assert part in page
    assert "2 networks were trained on" in page, "those with other seeds are not counted"
    assert main.main(["generalise", "report", "--folds", str(home / "study" / "folds.yaml")]) == 0
    assert (home / "study" / "report.md").read_text() == page
    assert (home / "study" / "general.svg").stat().st_size > 1000


def test_an_unfinished_run_is_not_judged_and_not_shipped(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of a training that was cut off is never taken for the finished one: it is told, or refused."""
    before = _judged(home)
    plan = home / "study" / "folds.yaml"
    text = plan.read_text()
    try:
        plan.write_text(text.replace("steps: 2", "steps: 9").replace("steps: 3", "steps: 9"))
        assert _call(home, "judge") == 0
        assert "one: not judged" in capsys.readouterr().out
        assert _judged(home) == before
        assert _call(home, "ship") == 5
        assert "3 of 9 steps" in capsys.readouterr().err
    finally:
        plan.write_text(text)


def seeds_of(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "runs").glob("shipped*") if path.is_dir())


def test_other_seeds_are_judged_beside(home: Path) -> None:
    """The shipped recipe's other seeds are other networks, judged on the same images, and in no fold's figures."""
    judged = _judged(home)
    several = [judged[name] for name in ("shipped", "shipped-seed1", "shipped-seed2")]
    assert [each["seed"] for each in several] == [0, 1, 2]
    networks = {(home / "runs" / name / "net.safetensors").read_bytes() for name in seeds_of(home)}
    assert len(networks) == 3
    for each in several:
        valid: dict[str, Any] = each["valid"]  # type: ignore[assignment]
        assert valid["images"] == 24 and valid["errors"] == sum(valid["errors_by_class"].values())
    assert set(judged) == {"one", "two", "two-seed1", "shipped", "shipped-seed1", "shipped-seed2"}


def test_seeds_side_by_side() -> None:
    """Each seed has a line, each recipe the mean of its seeds, each class its own column; one seed makes no table."""

    def valid(seed: int, errors: int) -> dict[str, Any]:
        by_class = {"CXR": errors - 1, "Hand": 1}
        return {"seed": seed, "errors": errors, "errors_by_class": by_class, "sure_errors": 0, "ece": 0.001}

    def row(seed: int, errors: int) -> dict[str, Any]:
        found = valid(seed, errors)  # the studies' rows have their keys in another order
        return {**found, "errors_by_class": dict(reversed(found["errors_by_class"].items()))}

    judged = {name: {"seed": n, "valid": valid(n, n + 1)} for n, name in enumerate(("shipped", "shipped-seed1"))}
    judged["a"] = {"seed": 0, "valid": valid(0, 99)}
    table = seed_spread.shipped_recipe(judged, [row(0, 4), row(1, 7)])[-1].splitlines()
    assert table[2:] == [
        "| improved recipe | 0 | 4 | 3 | 1 | 0 | 0.10% |",
        "| improved recipe | 1 | 7 | 6 | 1 | 0 | 0.10% |",
        "| **improved recipe** | mean of 2, sd 2.1 | 5.5 | 4.5 | 1.0 | 0.0 | 0.10% |",
        "| as shipped | 0 | 1 | 0 | 1 | 0 | 0.10% |",
        "| as shipped | 1 | 2 | 1 | 1 | 0 | 0.10% |",
        "| **as shipped** | mean of 2, sd 0.7 | 1.5 | 0.5 | 1.0 | 0.0 | 0.10% |",
    ]
    assert table[0].count("|") == table[1].count("|") == table[2].count("|")
    assert seed_spread.shipped_recipe({"shipped": judged["shipped"]}, []) == []


def test_small_sources_have_the_mean_of_their_seeds() -> None:
    """Each source of a fold with several seeds has the counts of each and their mean share; other folds have no row."""

    def found(seed: int, right: int) -> dict[str, Any]:
        row = {"class": "Hand", "origin": "south", "view": unseen_sources.VIEWS[0], "images": 5, "right": right}
        return {"seed": seed, "sources": [row, {**row, "view": unseen_sources.VIEWS[1], "right": 0}]}

    judged = {"a": found(0, 1), "b-seed2": found(2, 3), "b": found(0, 4), "b-seed1": found(1, 5)}
    table = seed_spread.small_sources(judged)[-1].splitlines()
    assert table[2:] == ["| b | Hand | south | 5 | 4, 5, 3 | 80.0% |"]
    assert seed_spread.small_sources({"a": found(0, 1)}) == []


def test_without_data_it_says_what_it_needs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that needs images and has none is refused with advice."""
    assert main.main(["generalise", "train", "--folds", str(home / "study" / "folds.yaml")]) == 2
    assert "--pool" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("known", "outliers", "expected"),
    [([1, 2, 3], [4, 5], 1.0), ([4, 5], [1, 2, 3], 0.0), ([1, 1], [1, 1], 0.5), ([1, 3], [2, 4], 0.75)],
)
def test_auroc(known: list[float], outliers: list[float], expected: float) -> None:
    """The share of pairs in which the outlier scores higher; ties count half."""
    assert novelty_scores.auroc(np.array(known, float), np.array(outliers, float)) == pytest.approx(expected)


def test_mahalanobis_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is (x - m)' S^-1 (x - m) for the nearest mean m and the covariance S within groups."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(50, 3)) + shift for shift in (0.0, 6.0)]
    monkeypatch.setattr(novelty_scores, "RIDGE", 0.0)
    found = novelty_scores.fit_gaussians([np.concatenate(groups)], [np.repeat([0, 1], 50)])
    within = np.concatenate([group - group.mean(axis=0) for group in groups])
    inverse = np.linalg.inv(within.T @ within / len(within))
    x = np.array([[1.0, 2, 3]])
    apart = x - np.stack([group.mean(axis=0) for group in groups])
    np.testing.assert_allclose(found.distance(x), min(d @ inverse @ d for d in apart), rtol=1e-6)


def test_damaged_judgements_are_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damaged judgements are told in words, and neither replaced by none nor told by a traceback."""
    place = home / "study" / "judged.json"
    place.write_text("{")
    assert main.main(["generalise", "report", "--folds", str(home / "study" / "folds.yaml")]) == 5
    assert "judged.json is damaged" in capsys.readouterr().err and place.read_text() == "{"
