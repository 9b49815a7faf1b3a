"""Training on several sources: what is drawn, and that a run resumes where it was cut off."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from watcher.core.errors import Exit, Fatal
from watcher.core.records import Outcome, Scored
from watcher.model import checkpoint, mednet
from watcher.model.decision import Policy, decide
from watcher.training.data import multi_source_pool
from watcher.training.data.labelled_images import Examples
from watcher.training.data.multi_source_pool import OUTLIER, Pool
from watcher.training.fit import calibration
from watcher.training.multi_source import left_out_folds, mixture_training
from watcher.training.multi_source.mixture_training import MixtureRecipe

CLASSES = ("ChestCT", "Hand")
SMALL = MixtureRecipe(
    network=mednet.MedNetConfig(classes=3, none=True, filters=(2, 3), kernels=(5, 5), pool=4, hidden=(8, 6)),
    steps=4,
    base=6,
    pooled=5,
    foreign=3,
    near=2,
    far=2,
    class_shares={"ChestCT": 0.5, "Hand": 0.5},
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps an epoch."""
    monkeypatch.setattr(mixture_training, "STEPS_AN_EPOCH", 2)


@pytest.fixture
def base() -> Examples:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1] * 5)
    return Examples(CLASSES, tuple("abcdefghij"), rng.integers(0, 256, (10, 64, 64), np.uint8), labels)


@pytest.fixture
def mixed() -> Pool:
    rng = np.random.default_rng(1)
    return Pool(
        CLASSES,
        tuple(f"{n}.png" for n in range(8)),
        rng.integers(0, 3000, (8, 128, 128)).astype(np.uint16),
        np.array([0, 0, 0, 0, 1, 1, OUTLIER, OUTLIER]),
        ("ChestCT",) * 4 + ("Hand",) * 2 + ("knee", "photo"),
        ("north",) * 3 + ("south",) + ("west",) * 2 + ("north", "web"),
        ("hu", "hu", "hu", "raw16", "as_exported", "as_exported", "raw16", "as_exported"),
        ("A",) * 8,
    )


class TestSampler:
    def test_a_step_has_what_the_recipe_says(self, base: Examples, mixed: Pool) -> None:
        """So many of the base, of the pool and of outliers; outliers have the label after the last class."""
        images, labels = mixture_training.Sampler(SMALL, base, mixed, torch.Generator().manual_seed(0)).draw()
        assert images.shape == (6 + 5 + 3 + 2 + 2, 1, 64, 64)
        assert (labels[:11] < 2).all()
        assert (labels[11:] == 2).all()

    def test_clean_images_are_as_they_are(self, base: Examples, mixed: Pool) -> None:
        """With clean at 1 the base images are just those of the data set, standardised."""
        recipe = replace(SMALL, clean=1.0, base=20)
        images, labels = mixture_training.Sampler(recipe, base, mixed, torch.Generator().manual_seed(0)).draw()
        known = {row.numpy().tobytes(): label for row, label in zip(_all(base), base.labels, strict=True)}
        assert [known[image.numpy().tobytes()] for image in images[:20]] == labels[:20].tolist()

    def test_origins_share_by_the_root_of_their_size(self, base: Examples, mixed: Pool) -> None:
        """A source three times as large comes sqrt(3) times as often; what has no share never does."""
        recipe = replace(SMALL, class_shares={"ChestCT": 1.0})
        weights = mixture_training.Sampler(recipe, base, mixed, torch.Generator()).inside
        assert weights.sum() == pytest.approx(1)
        assert weights[:3].sum() / weights[3] == pytest.approx(np.sqrt(3))
        assert weights[4:].sum() == 0


def _all(base: Examples) -> torch.Tensor:
    from watcher.training.data import hospital_renderings

    return hospital_renderings.standardised(torch.from_numpy(base.images).float() / 255)


class TestRun:
    def test_resumes_as_if_never_stopped(self, tmp_path: Path, base: Examples, mixed: Pool) -> None:
        """A run cut off after any epoch ends with the weights of one that was not, number for number."""
        straight = mixture_training.prepare(SMALL, base, mixed, tmp_path / "straight", 3, "x")
        while not straight.finished():
            straight.epoch()
        mixture_training.prepare(SMALL, base, mixed, tmp_path / "cut", 3, "x").epoch()
        resumed = mixture_training.prepare(SMALL, base, mixed, tmp_path / "cut", 3, "x")
        resumed.resume()
        assert len(resumed.history) == 1
        resumed.epoch()
        assert resumed.finished()
        one, other = (checkpoint.load(tmp_path / name / "net.safetensors") for name in ("straight", "cut"))
        assert one.digest == other.digest
        assert (one.classes, one.training["steps"]) == (CLASSES, 4)

    def test_refuses_to_go_on_with_another(self, tmp_path: Path, base: Examples, mixed: Pool) -> None:
        """A directory of another recipe or seed is refused, never trained over."""
        mixture_training.prepare(SMALL, base, mixed, tmp_path, 3, "x").epoch()
        with pytest.raises(Fatal) as caught:
            mixture_training.prepare(SMALL, base, mixed, tmp_path, 4, "x").resume()
        assert caught.value.code is Exit.USAGE

    def test_refuses_to_go_on_with_other_images(self, tmp_path: Path, base: Examples, mixed: Pool) -> None:
        """One level of one image, or what the table says of it, is another pool, and other base data are others."""
        mixture_training.prepare(SMALL, base, mixed, tmp_path, 3, "x").epoch()
        levels = mixed.levels.copy()
        levels[0, 0, 0] ^= 1
        others = [replace(mixed, levels=levels), replace(mixed, origins=("south", *mixed.origins[1:]))]
        for data, pool in [*((base, pool) for pool in others), (replace(base, labels=1 - base.labels), mixed)]:
            with pytest.raises(Fatal, match="on other images") as caught:
                mixture_training.prepare(SMALL, data, pool, tmp_path, 3, "x").resume()
            assert caught.value.code is Exit.USAGE

    def test_learns(self, tmp_path: Path, base: Examples, mixed: Pool) -> None:
        """Steps change the network, and the rate rises before it falls."""
        run = mixture_training.prepare(SMALL, base, mixed, tmp_path, 0, "x")
        before = run.learner.net.fc3.weight.detach().clone()
        assert np.isfinite(run.epoch().train_loss)
        assert not torch.equal(before, run.learner.net.fc3.weight)
        assert mixture_training.rate(SMALL, 2) > mixture_training.rate(SMALL, 0)


class TestPool:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        deep = (np.arange(100 * 50).reshape(100, 50) % 4096).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / "deep.png")
        Image.new("RGB", (128, 128), (250, 250, 250)).save(tmp_path / "photo.png")
        rows = [
            "path,class,kind,source,rendering,licence_conf,split_suggestion",
            "deep.png,ChestCT,,ucsf_nact,hu,A,dev",
            "photo.png,outlier,photo,web,as_exported,B,train",
        ]
        (tmp_path / "pool.csv").write_text("\n".join(rows) + "\n")
        return tmp_path / "pool.csv"

    def test_keeps_all_levels_and_fills_up_to_a_square(self, tmp_path: Path, table: Path) -> None:
        """Deep images keep their levels; what is no square is filled up with its edges, like in the daemon."""
        found = multi_source_pool.load(tmp_path, table, CLASSES)
        assert found.levels.shape == (2, 128, 128)
        assert found.levels[0].max() > 4000
        assert (found.levels[0, :, 0] == found.levels[0, :, 31]).all()
        assert (found.levels[1] == 250).all()
        assert found.labels.tolist() == [0, OUTLIER]
        assert found.kinds == ("ChestCT", "photo")
        assert found.origins == ("ucsf_nact/dev", "web")

    def test_chooses(self, tmp_path: Path, table: Path) -> None:
        """A part of it has its own rows in every column."""
        part = multi_source_pool.load(tmp_path, table, CLASSES).subset(np.array([False, True]))
        assert (len(part), part.kinds, part.grades) == (1, ("photo",), ("B",))

    def test_image_that_is_missing(self, tmp_path: Path, table: Path) -> None:
        """A table without its images is told as such, with advice."""
        (tmp_path / "deep.png").unlink()
        with pytest.raises(Fatal) as caught:
            multi_source_pool.load(tmp_path, table, CLASSES)
        assert caught.value.code is Exit.DIRECTORY


PLAN = {
    "seed": 0,
    "steps": 4,
    "shipped": {"steps": 8, "without_grades": ["B"]},
    "folds": {
        "a": {"sources": ["north"], "kinds": ["photo"]},
        "b": {"sources": ["south", "west"], "kinds": ["knee"]},
    },
}


class TestFolds:
    def read(self, tmp_path: Path, mixed: Pool, **changes: object) -> left_out_folds.Folds:
        (tmp_path / "folds.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))
        return left_out_folds.read(tmp_path / "folds.yaml", mixed)

    def test_nothing_is_trained_and_judged_on(self, tmp_path: Path, mixed: Pool) -> None:
        """A fold judges on its sources and kinds, and trains on neither them nor outliers of its sources."""
        plan = self.read(tmp_path, mixed)
        judged = {name: left_out_folds.left_out(fold, mixed) for name, fold in plan.folds.items()}
        trained = {name: left_out_folds.trained_on(fold, mixed) for name, fold in plan.folds.items()}
        assert judged["a"].tolist() == [True] * 3 + [False] * 4 + [True]
        assert trained["a"].tolist() == [False] * 3 + [True] * 3 + [False, False]  # the knee is of the north, too
        assert not any((judged[name] & trained[name]).any() for name in judged)

    def test_every_image_is_judged_once(self, tmp_path: Path, mixed: Pool) -> None:
        """Over all folds, each image of the pool is left out exactly once."""
        plan = self.read(tmp_path, mixed)
        times = Counter(
            int(n) for fold in plan.folds.values() for n in np.flatnonzero(left_out_folds.left_out(fold, mixed))
        )
        assert times == Counter(range(len(mixed)))

    @pytest.mark.parametrize(
        ("fold", "says"),
        [
            ({"sources": ["north", "south", "west", "east"], "kinds": ["photo", "knee"]}, "no east"),
            ({"sources": ["north", "south"], "kinds": ["photo", "knee"]}, "west is in no fold"),
            ({"sources": ["north", "south", "west", "north"], "kinds": ["photo", "knee"]}, "north is in two"),
        ],
    )
    def test_folds_that_do_not_cover_the_pool(self, tmp_path: Path, mixed: Pool, fold: object, says: str) -> None:
        """A source in no fold would never be judged, one in two folds would count twice: both are refused."""
        with pytest.raises(Fatal, match=says) as caught:
            self.read(tmp_path, mixed, folds={"a": fold})
        assert caught.value.code is Exit.CONFIG


class TestCalibration:
    def test_temperature_finds_what_logits_were_multiplied_by(self) -> None:
        """Logits that are right in the share they claim have temperature 1, three times as sure ones 3."""
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(20_000, 3)).astype(np.float32) * 2
        shares = calibration.probabilities(logits)
        labels = (shares.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
        assert calibration.temperature(logits, labels) == pytest.approx(1, abs=0.05)
        assert calibration.temperature(3 * logits, labels) == pytest.approx(3, abs=0.15)

    def test_doubt_is_shared_by_the_other_classes(self) -> None:
        """With a share in doubt the temperature found is that at which the answers give the label the rest of it."""
        labels = np.zeros(50, np.int64)
        logits = np.tile(np.array([[4.0, 0.0, 0.0, 0.0, 0.0]], np.float32), (50, 1))
        sure = calibration.probabilities(logits, calibration.temperature(logits, labels, smoothing=0.1))
        np.testing.assert_allclose(sure[0], [0.9, 0.025, 0.025, 0.025, 0.025], atol=1e-3)

    def test_being_right_each_time_is_not_certainty(self) -> None:
        """With no label missed, confidence stays below that of one miss among as many images, and never becomes 1."""
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, 400)
        logits = (np.eye(3)[labels] * rng.uniform(2, 9, (400, 1))).astype(np.float32)
        assert calibration.temperature(logits, labels) == pytest.approx(0.1, abs=0.001)  # the least that is looked at
        sure = calibration.probabilities(
            logits, calibration.temperature(logits, labels, calibration.platt_smoothing(labels))
        )
        assert 0.98 < sure.max(axis=1).mean() < 1 - 1 / 402 and sure.max(axis=1).min() < 0.95

    @pytest.mark.parametrize("rate", [0.5, 0.9, 0.995, 1.0])
    def test_thresholds_accept_what_was_asked(self, rate: float) -> None:
        """At least the wanted share passes both; of what may be sent away, hardly any is wasted."""
        rng = np.random.default_rng(0)
        confidence, distance = 0.5 + rng.random(4000) / 2, rng.random(4000)
        found = calibration.thresholds(confidence, distance, rate)
        passed = found.accept(confidence[:, None], distance, 1).mean()
        assert rate <= passed <= rate + 0.001

    def test_what_computes_a_little_otherwise_accepts_the_same(self) -> None:
        """The distance is midway between the last that is accepted and the first that is not."""
        distance = np.array([0.1, 0.2, 0.3, 0.5])
        found = calibration.thresholds(np.ones(4), distance, 0.75)
        assert found.max_distance == pytest.approx(0.4, abs=2e-6)
        assert calibration.thresholds(np.ones(4), distance, 1.0).max_distance == pytest.approx(0.5, abs=2e-6)

    def test_never_accept_what_is_less_than_half_sure(self) -> None:
        """Asked to accept all, images with a confidence below a half are still left to a person."""
        found = calibration.thresholds(np.array([0.2, 0.4, 0.9, 0.8]), np.array([0.1, 0.1, 0.3, 0.2]), 1.0)
        assert (found.min_confidence, found.max_distance) == (0.5, pytest.approx(0.3))

    def test_accepts_as_the_daemon_does(self) -> None:
        """Training's thresholds file what decide files with the same numbers, and nothing else."""
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(500, 3)).astype(np.float32) * 3
        distance = rng.random(500).astype(np.float32)
        limits = calibration.Thresholds(0.6, 0.7)
        policy = Policy(CLASSES, 0.6, 2.0, 0.7)
        decisions = decide(Scored(logits, distance), [False] * 500, policy)
        shares = calibration.probabilities(logits, 2.0)
        filed = [decision.outcome is Outcome.SORTED for decision in decisions]
        assert limits.accept(shares, distance, 2).tolist() == filed
        assert 50 < sum(filed) < 450

    def test_remembers_some_of_every_class_and_origin(self) -> None:
        """A large source does not crowd out a small one, and outliers are not remembered as known."""
        labels = np.array([0] * 50 + [1] * 3 + [OUTLIER] * 5)
        origins = ["north"] * 50 + ["north", "south", "south"] + ["web"] * 5
        chosen = calibration.sample_per_group(labels, origins, 2)
        assert Counter((int(labels[n]), origins[n]) for n in chosen) == {
            (0, "north"): 2,
            (1, "north"): 1,
            (1, "south"): 2,
        }
