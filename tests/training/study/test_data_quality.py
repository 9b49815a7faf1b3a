"""The audit of the data: copies and near-duplicates are found, and labels are suspected only with reason."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from watcher.cli import main
from watcher.core import shipped_files
from watcher.training.data import near_duplicates, synthetic_images
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import result_rows
from watcher.training.study import data_quality, study_plan


def drawn(count: int, seed: int = 0) -> Examples:
    """Synthetic images, as many of each class."""
    artist, rng = synthetic_images.Sketch.load(shipped_files.weights("sketch.safetensors")), np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(artist.classes)
    images = np.stack([artist.sample(artist.classes[label], rng) for label in labels])
    return Examples(
        artist.classes, tuple(f"{artist.classes[n]}/{seed}-{i}" for i, n in enumerate(labels)), images, labels
    )


class TestTwins:
    def test_copies(self) -> None:
        """Equal images are one group, in order; one grey level in one pixel makes another image."""
        images = drawn(6).images[[0, 1, 0, 2, 3, 0, 1, 4]]
        images[7] = images[3]
        images[7, 5, 5] ^= 1
        assert near_duplicates.exact_copies(images) == [[0, 2, 5], [1, 6]]

    def test_hash_survives_what_a_neighbouring_slice_changes(self) -> None:
        """A little noise, brightness or a shift by a pixel leaves a hash near; another image is far."""
        data = drawn(60)
        rng = np.random.default_rng(0)
        noisy = np.clip(data.images + rng.normal(0, 3, data.images.shape), 0, 255).astype(np.uint8)
        for changed, most in ((noisy, 6), ((data.images * 0.9).astype(np.uint8), 6), (np.roll(data.images, 1, 2), 16)):
            bits = np.bitwise_count(near_duplicates.hashes(changed) ^ near_duplicates.hashes(data.images)).sum(axis=1)
            assert np.median(bits) <= most
        shuffled = np.bitwise_count(
            near_duplicates.hashes(data.images) ^ np.roll(near_duplicates.hashes(data.images), 1, 0)
        ).sum(axis=1)
        assert np.median(shuffled) > 20

    def test_hash_has_so_many_bits(self) -> None:
        """All bits that can be set are counted in BITS, no others are ever set."""
        ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8) * 2
        assert np.bitwise_count(near_duplicates.hashes(ramp[None])).sum() == near_duplicates.BITS
        assert near_duplicates.hashes(np.zeros((1, 64, 64), np.uint8)).sum() == 0

    def test_nearest_is_the_least_of_all_distances(self) -> None:
        """For each image the nearest of its class and of the others, as comparing one by one finds them."""
        asked, among = drawn(30, 1), drawn(200, 2)
        own, other = near_duplicates.nearest_distances(asked, among)
        mine, theirs = near_duplicates.hashes(asked.images), near_duplicates.hashes(among.images)
        for number, label in enumerate(asked.labels):
            bits = np.bitwise_count(mine[number] ^ theirs).sum(axis=1)
            assert own[number] == bits[among.labels == label].min()
            assert other[number] == bits[among.labels != label].min()

    def test_nothing_to_compare_with(self) -> None:
        """A class without any image to compare with has no near one."""
        asked = drawn(6)
        few = Examples(asked.classes, asked.paths[:1], asked.images[:1], asked.labels[:1])
        own, other = near_duplicates.nearest_distances(asked, few)
        assert own[0] == 0 and (own[1:] == near_duplicates.NO_NEIGHBOUR).all()
        assert other[0] == near_duplicates.NO_NEIGHBOUR and (other[1:] < near_duplicates.NO_NEIGHBOUR).all()

    @given(st.lists(st.integers(0, near_duplicates.BITS), min_size=1, max_size=300), st.sampled_from([0.0, 0.005, 0.1]))
    def test_reach_is_the_most_that_chance_allows(self, other: list[int], chance: float) -> None:
        """At the reach at most that share has an image of another class as near, one bit further more has."""
        found = near_duplicates.largest_distance(other, chance)
        near = np.array(other)
        assert (near <= found).mean() <= chance or found == near_duplicates.BITS
        assert (near <= found + 1).mean() > chance or found == near_duplicates.BITS


class TestCounts:
    def test_copies_across_the_split(self) -> None:
        """Validation images that are trained on are counted, and groups with two labels are named."""
        train, valid = drawn(12, 1), drawn(6, 2)
        valid.images[0], valid.images[1] = train.images[0], train.images[2]
        found = data_quality.count_exact_copies(train, valid)
        assert (found.groups, found.surplus, found.across) == (2, 2, 2)
        assert found.by_class == {train.classes[0]: 1, train.classes[1]: 1}
        assert found.contradictions == ((train.paths[2], valid.paths[1]),)

    def test_near_is_within_reach(self) -> None:
        """With a reach given, near are those of the own class within it."""
        train, valid = drawn(60, 1), drawn(12, 2)
        valid.images[3] = train.images[3]
        found = data_quality.find_near_duplicates(valid, train, max_distance=0)
        assert found.near[3] and (found.near == (found.own == 0)).all()

    def test_interval(self) -> None:
        """The upper end of Wilson's interval: 4 of 100 are at most 9.84%; of nothing everything can be wrong."""
        assert data_quality.wilson_upper_bound(4, 100) == pytest.approx(0.0984, abs=1e-4)
        assert 0 < data_quality.wilson_upper_bound(0, 100) < 0.04
        assert data_quality.wilson_upper_bound(0, 0) == 1


def run(*wrong: tuple[str, str, float], errors: int = 10) -> result_rows.Row:
    return {"errors": errors, "judged": 1000, "wrong": [list(each) for each in wrong]}


def test_study_by_near_duplicates() -> None:
    """Errors are told apart by whether the image has a near-duplicate; a run that does not list them is left out."""
    judged = drawn(12)
    near = data_quality.NearDuplicates(5, np.arange(12) < 4, np.zeros(12, np.uint8), np.zeros(12, np.uint8))
    wrong = [(judged.paths[number], "Other", 0.9) for number in (1, 5, 7)]
    told = data_quality.about_study(judged, near, {"a": [run(*wrong, errors=3), run(errors=9)], "b": [run(errors=9)]})
    assert told[-1] == "| `a` | 1.0 of 4 (25.00%) | 2.0 of 8 (25.00%) | 1 |"


class TestSuspects:
    SURE = ("AbdomenCT/1.jpeg", "ChestCT", 0.99)

    def test_doubted_by_most_and_surely(self) -> None:
        """Half of the runs or more, always the same other class, a mean confidence of 0.9 or more."""
        runs = [
            run(self.SURE, ("Hand/1.jpeg", "CXR", 0.6), ("Hand/2.jpeg", "CXR", 0.99), ("Hand/3.jpeg", "CXR", 0.99)),
            run(self.SURE, ("Hand/1.jpeg", "CXR", 0.6), ("Hand/3.jpeg", "HeadCT", 0.99)),
            run(("Hand/1.jpeg", "CXR", 0.6)),
            run(),
        ]
        assert data_quality.suspected_labels(runs) == [
            data_quality.SuspectedLabel("AbdomenCT/1.jpeg", "AbdomenCT", "ChestCT", 2, 4, pytest.approx(0.99))
        ]

    def test_bad_runs_have_no_say(self) -> None:
        """A run with many errors doubts much; too few good runs doubt nothing."""
        assert data_quality.suspected_labels([run(self.SURE)] * 2 + [run(self.SURE, errors=100)]) == []
        [found] = data_quality.suspected_labels([run(self.SURE)] * 3 + [run(self.SURE, errors=100)])
        assert (found.runs, found.of) == (3, 3)

    def test_cost(self) -> None:
        """The share of a run's errors that are suspects', on average."""
        found = data_quality.suspected_labels([run(self.SURE)] * 3)
        told = data_quality.cost_of_suspects(found, [run(self.SURE, errors=6), run(errors=4)])
        assert told == "0.5 of 5.0 errors"


@pytest.mark.parametrize(
    "budget",
    [{"train_images": 24, "watch_images": 6, "judge_images": 12, "epochs": {"improved": 1}}, {"judge_part": "valid"}],
)
def test_page(tmp_path: Path, budget: dict[str, Any]) -> None:
    """The command counts what was put in, writes it down, and takes the study's runs into account.

    A study that asks for more images than there are takes no part, and the page says so.
    """
    data, lines = tmp_path / "data", ["path,class,split"]
    images = drawn(60)
    for number, (path, image) in enumerate(zip(images.paths, images.images, strict=True)):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(data / f"{path}.png")
        lines.append(f"{path}.png,{path.split('/')[0]},{'valid' if number % 5 == 0 else 'train'}")
    Image.fromarray(images.images[1]).save(data / f"{images.paths[5]}.png")  # a validation image is a training image
    split, plan = tmp_path / "split.csv", tmp_path / "study.yaml"
    lines.append(f"{images.paths[0].split('/')[0]}/secret.png,{images.paths[0].split('/')[0]},test")
    split.write_text("\n".join(lines) + "\n")
    settings: dict[str, Any] = {
        "seeds": [0, 1, 2],
        "budget": budget,
        "variants": [{"name": "improved", "recipe": "improved"}],
    }
    plan.write_text(yaml.safe_dump(settings))
    found = study_plan.read(plan)
    sample = study_plan.sample(data, split, found.budget)
    doubted = sample.judge.paths[0]
    for task in study_plan.tasks(found, sample):
        row = {
            "variant": "improved", "recipe": "improved", "change": {}, "seed": task.seed, "digest": task.digest,
            "errors": 0, "train_images": len(sample.train.paths), "judged": 12, "precision": task.recipe.precision,
            "epochs": task.recipe.max_epochs, "finished": "2026-11-25", "versions": {}, "classes": images.classes,
            "wrong": [[doubted, "Other", 0.98]],
        }  # fmt: skip
        result_rows.append(tmp_path / "runs.jsonl", row)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        words = ["--data", str(data), "--split", str(split), "--study", str(plan), "--out", str(tmp_path / "out")]
        assert main.main(["audit-data", *words]) == 0
    page = (tmp_path / "out" / "audit.md").read_text()
    assert page == printed.getvalue()[:-1]
    assert "Of 60 images at hand (48 for training, 12 for validation), 1 are exact copies" in page
    assert "1 validation images are copies of a training image" in page
    assert f"| {doubted} | Other | 3 of 3 | 0.980 |" in page
    assert page.endswith("What these images cost, mean over seeds:\n\n- `improved`: 1.0 of 0.0 errors\n")
    assert "The split's other 1 images have no part in this" in page
    assert page.count("Of a study's 12 judged images ") == 1
    (tmp_path / "two").mkdir()
    for name in ("study.yaml", "runs.jsonl"):
        shutil.copy(tmp_path / name, tmp_path / "two")
    with contextlib.redirect_stdout(io.StringIO()) as both:
        assert main.main(["audit-data", *words, "--study", str(plan), str(tmp_path / "two" / "study.yaml")]) == 0
    assert both.getvalue().count("Of a study's 12 judged images ") == 2, "each study has its own fold of the images"
    plan.write_text(yaml.safe_dump({**settings, "budget": {"train_images": 4000}}))
    with contextlib.redirect_stdout(io.StringIO()):
        assert main.main(["audit-data", *words]) == 0
    page = (tmp_path / "out" / "audit.md").read_text()
    assert "1 are exact copies" in page and "can not be of these images, and takes no part: " in page
    plan.unlink()
    before = sorted(tmp_path.rglob("*"))
    with contextlib.redirect_stdout(io.StringIO()) as only:
        assert main.main(["audit-data", *words[:6]]) == 0
    assert "none of their labels is judged" in only.getvalue()
    assert "1 are exact copies" in only.getvalue() and sorted(tmp_path.rglob("*")) == before, "no study: printed alone"
