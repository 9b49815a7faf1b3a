"""Training: the recipes, the data, a run that can be interrupted, and its judgement."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from watcher.cli import judge_weights, main
from watcher.core.errors import Exit, Fatal
from watcher.images import decode
from watcher.model import checkpoint, classifier, mednet
from watcher.training.data import labelled_images
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import calibration, compression, evaluation, recipe_training, recipes, resume
from watcher.training.fit.training_loop import EarlyStop, TrainingRun

SMALL = mednet.MedNetConfig(side=16, classes=3, filters=(2, 3), kernels=(5, 3), hidden=(12, 8))
RECIPE = recipes.Recipe("small", SMALL, learning_rate=0.05, batch_size=8, t2v_ratio=1e9, t2v_epochs=3, max_epochs=4)

pytestmark = pytest.mark.usefixtures("one_thread")


def examples(seed: int = 0, count: int = 42) -> Examples:
    """Three classes that differ in where they are bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, 16, 16), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label * 5 : label * 5 + 5] += 100
    return Examples(("a", "b", "c"), tuple(f"{i}.png" for i in range(count)), images, labels.astype(np.int64))


def run(out: Path, recipe: recipes.Recipe = RECIPE, seed: int = 1) -> TrainingRun:
    return recipe_training.prepare(recipe, examples(0), examples(9, 15), out, seed)


def same(one: mednet.MedNet, other: mednet.MedNet) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


class TestRecipes:
    def test_baseline(self) -> None:
        """NVIDIA's MedNet: 5/10 filters of 7 x 7, no batch norm, ELU, rate 0.01, batches of 300, stop 1.2/3."""
        assert recipes.RECIPES["baseline"] == recipes.Recipe(
            name="baseline",
            network=mednet.MedNetConfig(
                classes=6,
                side=64,
                filters=(5, 10),
                kernels=(7, 7),
                batch_norm=False,
                hidden=(400, 80),
                activation="elu",
            ),
            learning_rate=0.01,
            batch_size=300,
            t2v_ratio=1.2,
            t2v_epochs=3,
            max_epochs=20,
        )

    def test_improved(self) -> None:
        """The improved MedNet: 10/20 filters of 5 x 5, batch norm, ReLU, rate 0.05, batches of 64, stop 1.5/4."""
        assert recipes.RECIPES["improved"] == recipes.Recipe(
            name="improved",
            network=mednet.MedNetConfig(
                classes=6,
                side=64,
                filters=(10, 20),
                kernels=(5, 5),
                batch_norm=True,
                hidden=(400, 80),
                activation="relu",
            ),
            learning_rate=0.05,
            batch_size=64,
            t2v_ratio=1.5,
            t2v_epochs=4,
            max_epochs=20,
        )

    def test_there_is_no_other(self) -> None:
        """Each recipe goes by its own name, and these are all."""
        assert {name: recipe.name for name, recipe in recipes.RECIPES.items()} == {
            "baseline": "baseline",
            "improved": "improved",
            "plus": "plus",
        }

    def test_plus(self) -> None:
        """Three pooled convolutions, a cosine, labels smoothed, augmented by class: as the study judged it."""
        plus = recipes.RECIPES["plus"]
        assert plus.network == mednet.MedNetConfig(filters=(16, 32, 96), kernels=(5, 5, 3), pool=2, batch_norm=True)
        assert (plus.learning_rate, plus.batch_size, plus.max_epochs, plus.schedule) == (0.05, 64, 12, "cosine")
        assert plus.label_smoothing == 0.02
        trunk = {kind for kind, by_class in plus.augment.items() if {"ChestCT", "AbdomenCT", "CXR"} & set(by_class)}
        assert trunk == set(), "a trunk has its organs on their sides, and gamma tells chest from abdomen"
        assert set(plus.augment) == {"shift", "flip", "rotation"}


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_class_weights_are_inverse_to_counts(counts: list[int]) -> None:
    """A class with half the images weighs twice as much; the weights average 1."""
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = recipe_training.class_weights(labels, len(counts)).numpy()
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(weights * counts, weights[0] * counts[0], rtol=1e-5)


class TestBatches:
    def test_order_and_remainder(self) -> None:
        """Every image comes once, standardised, in the order given; the last batch may be smaller."""
        data = examples()
        order = np.random.default_rng(0).permutation(42)
        parts = list(recipe_training.batches(data, 8, order))
        assert [len(labels) for _, labels in parts] == [8, 8, 8, 8, 8, 2]
        np.testing.assert_array_equal(torch.cat([labels for _, labels in parts]), data.labels[order])
        np.testing.assert_array_equal(torch.cat([i for i, _ in parts]), decode.standardise(data.images[order]))


class TestRun:
    def test_learns(self, tmp_path: Path) -> None:
        """Gradient descent goes down: the losses of training and validation fall."""
        fresh = run(tmp_path)
        rows = [fresh.epoch() for _ in range(4)]
        assert rows[-1].train_loss < rows[0].train_loss
        assert rows[-1].valid_loss < rows[0].valid_loss
        assert [row.epoch for row in rows] == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("after", "recipe"),
        [
            (1, RECIPE),
            (3, RECIPE),
            (3, replace(RECIPE, averaging="swa", schedule="cosine", resample={"a": 3.0})),
            (1, replace(RECIPE, averaging="ema", momentum=0.9, network=replace(SMALL, dropout=0.5))),
            (2, replace(RECIPE, augment={"shift": {"all": 2.0}, "flip": {"a": 0.5}}, schedule="steps")),
        ],
    )
    def test_resumed_run_is_bit_identical(self, tmp_path: Path, after: int, recipe: recipes.Recipe) -> None:
        """A run interrupted after any epoch ends with the very weights and losses of one that was not."""
        straight = run(tmp_path / "straight", recipe)
        for _ in range(4):
            straight.epoch()
        first = run(tmp_path / "resumed", recipe)
        for _ in range(after):
            first.epoch()
        torch.manual_seed(12345)
        second = run(tmp_path / "resumed", recipe)
        second.resume()
        assert len(second.history) == after
        for _ in range(4 - after):
            second.epoch()
        assert same(straight.learner.net, second.learner.net) and same(straight.learner.result, second.learner.result)
        losses = [[replace(row, seconds=0, cpu_seconds=0) for row in each.history] for each in (straight, second)]
        assert losses[0] == losses[1]
        best = [checkpoint.load(tmp_path / name / "best.safetensors") for name in ("straight", "resumed")]
        assert all(np.array_equal(best[0].tensors[name], best[1].tensors[name]) for name in best[0].tensors)

    def test_seed_is_what_decides(self, tmp_path: Path) -> None:
        """A seed always gives the same weights, another one others."""
        one, again, other = run(tmp_path / "1"), run(tmp_path / "2"), run(tmp_path / "3", seed=2)
        for each in (one, again, other):
            each.epoch()
        assert same(one.learner.net, again.learner.net)
        assert not same(one.learner.net, other.learner.net)

    def test_nothing_to_resume(self, tmp_path: Path) -> None:
        """Without an earlier run a resume begins at the beginning."""
        fresh = run(tmp_path)
        fresh.resume()
        assert fresh.history == []

    @pytest.mark.parametrize(("recipe", "seed"), [(replace(RECIPE, learning_rate=0.1), 1), (RECIPE, 2)])
    def test_another_run_is_not_resumed(self, tmp_path: Path, recipe: recipes.Recipe, seed: int) -> None:
        """A run of another recipe or seed is refused, not silently continued."""
        run(tmp_path).epoch()
        with pytest.raises(Fatal) as caught:
            run(tmp_path, recipe, seed).resume()
        assert caught.value.code is Exit.USAGE

    def test_a_run_on_other_images_is_not_resumed(self, tmp_path: Path) -> None:
        """Other images or labels under the same directory are refused: half of the run would be on each."""
        run(tmp_path).epoch()
        images = examples(0).images.copy()
        images[0, 0, 0] ^= 1
        other = [
            (replace(examples(0), images=images), examples(9, 15)),
            (examples(0), examples(9, 12)),
            (replace(examples(0), classes=("b", "a", "c")), examples(9, 15)),
        ]
        for parts in other:
            with pytest.raises(Fatal, match="on other images") as caught:
                recipe_training.prepare(RECIPE, *parts, tmp_path, 1).resume()
            assert caught.value.code is Exit.USAGE

    @pytest.mark.parametrize("classes", [("a", "b", "c", "d"), ("a", "b", "c", "d", "e", "f", "g")])
    def test_as_many_classes_as_the_data_has(self, tmp_path: Path, classes: tuple[str, ...]) -> None:
        """The network has an output for each class of the data, whatever the recipe's own data had."""
        data = examples()
        data = replace(data, classes=classes, labels=np.arange(42, dtype=np.int64) % len(classes))
        recipe_training.prepare(RECIPE, data, data, tmp_path, 1).epoch()
        kept = checkpoint.load(tmp_path / "best.safetensors")
        assert kept.classes == classes and classifier.build(kept).config.classes == len(classes)

    def test_early_stop_counts_epochs_that_are_not_in_a_row(self, tmp_path: Path) -> None:
        """Epochs with too high a validation loss add up; a good one between does not start the count again."""
        always, never = EarlyStop(0.0, 3), EarlyStop(1e9, 3)
        going = run(tmp_path, replace(RECIPE, max_epochs=99))
        counts = []
        for stop in (always, never, always, never, always):
            assert going.finished() is None
            going.plan = replace(going.plan, early_stop=stop)
            counts.append(going.epoch().overfit_epochs)
        assert counts == [1, 1, 2, 2, 3]
        assert "early stop" in str(going.finished())

    def test_ends_after_max_epochs(self, tmp_path: Path) -> None:
        """After the last epoch of the recipe the run is over."""
        going = run(tmp_path, replace(RECIPE, max_epochs=2))
        going.epoch()
        assert going.finished() is None
        going.epoch()
        assert "2 epochs" in str(going.finished())

    def test_best_is_the_epoch_with_the_fewest_errors(self, tmp_path: Path) -> None:
        """The weights kept are of the epoch with the fewest validation errors, the lower loss breaking a tie."""
        going = run(tmp_path, replace(RECIPE, learning_rate=0.02))
        rows = [going.epoch() for _ in range(4)]
        best = min(rows, key=lambda row: (row.valid_errors, row.valid_loss))
        kept = checkpoint.load(tmp_path / "best.safetensors")
        assert (kept.training["epoch"], kept.training["valid_errors"]) == (best.epoch, best.valid_errors)
        loss = torch.nn.CrossEntropyLoss(recipe_training.class_weights(examples(0).labels, 3))
        assert recipe_training.judge(classifier.build(kept), examples(9, 15), loss)[1] == best.valid_errors

    def test_story_is_on_disk(self, tmp_path: Path) -> None:
        """losses.jsonl has a line for each epoch, and every image of an epoch is counted."""
        going = run(tmp_path)
        seen: list[int] = []
        going.epoch(seen.append)
        going.epoch()
        lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
        assert sum(seen) == 42


class TestSettings:
    """Settings that a recipe can have beside those of the two recipes that there are."""

    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [("constant", [1, 1, 1, 1]), ("cosine", [1, 0.5, 0.25, 0]), ("steps", [1, 1, 0.1, 0.1])],
    )
    def test_schedules(self, schedule: Any, rates: list[float]) -> None:
        """Constant; half a cosine from the whole rate to none; a tenth of it in the last third."""
        recipe = replace(RECIPE, learning_rate=2.0, schedule=schedule)
        found = [recipe_training.rate(recipe, share) for share in (0, 1 / 2, 2 / 3, 1)]
        assert found == pytest.approx([2 * rate for rate in rates])

    def test_resampling_keeps_the_length_of_an_epoch(self) -> None:
        """A class at 3 comes three times as often as one at 1, one at 0 never; as many images are drawn."""
        data = examples(count=3000)
        order = recipe_training.drawn(data, {"a": 3.0, "c": 0.0}, np.random.default_rng(0))
        counts = np.bincount(data.labels[order], minlength=3)
        assert counts.sum() == 3000 and counts[2] == 0
        assert counts[0] / counts[1] == pytest.approx(3, rel=0.15)
        assert sorted(recipe_training.drawn(data, {}, np.random.default_rng(0))) == list(range(3000))

    def test_class_factors_weigh_errors(self, tmp_path: Path) -> None:
        """A class's weight in the loss is multiplied; the weights still average 1."""
        weights = run(tmp_path, replace(RECIPE, class_factors={"b": 2.0})).learner.loss.weight
        assert isinstance(weights, torch.Tensor)
        assert weights.tolist() == pytest.approx([0.75, 1.5, 0.75])

    def test_exponential_mean(self, tmp_path: Path) -> None:
        """The judged weights are 0.99 of the mean before and 0.01 of the weights, from the first step's weights on."""
        going = run(tmp_path, replace(RECIPE, averaging="ema", batch_size=21))
        seen: list[torch.Tensor] = []
        going.learner.optimizer.register_step_post_hook(
            lambda *_: seen.append(going.learner.net.fc3.weight.detach().clone())
        )
        going.epoch()
        going.epoch()
        mean = seen[0]
        for weights in seen[1:]:
            mean = 0.99 * mean + 0.01 * weights
        torch.testing.assert_close(going.learner.result.fc3.weight.detach(), mean)

    @pytest.mark.parametrize("averaging", ["ema", "swa"])
    def test_averaged_weights_have_statistics_of_their_own(self, tmp_path: Path, averaging: str) -> None:
        """The averaged network normalises by what it computes itself, not by a mean of what others did."""
        going = run(tmp_path, replace(RECIPE, averaging=averaging, max_epochs=2))
        going.epoch()
        going.epoch()
        net = going.learner.result
        assert net is not going.learner.net
        with torch.no_grad():
            computed = net.convs[0](torch.from_numpy(decode.standardise(examples(0).images)))
        torch.testing.assert_close(net.convs[1].running_mean, computed.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.convs[1].running_var, computed.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)

    def test_mean_of_the_last_epochs(self, tmp_path: Path) -> None:
        """The judged weights are the mean over the epochs' ends of the second half, before them the network's."""
        going = run(tmp_path, replace(RECIPE, averaging="swa"))
        ends = []
        for number in range(1, 5):
            going.epoch()
            ends.append(going.learner.net.fc3.weight.detach().clone())
            assert (going.learner.result is going.learner.net) == (number < 3)
        torch.testing.assert_close(going.learner.result.fc3.weight.detach(), (ends[2] + ends[3]) / 2)
        kept = checkpoint.load(tmp_path / "best.safetensors")
        assert kept.training["recipe"]["averaging"] == "swa"

    def test_augmentation_is_for_training_only(self, tmp_path: Path) -> None:
        """The images themselves stay, and what is judged is judged as it is."""
        data = examples(0)
        recipe = replace(RECIPE, augment={"inversion": {"all": 1.0}})
        going = recipe_training.prepare(recipe, data, examples(9, 15), tmp_path, 1)
        row = going.epoch()
        np.testing.assert_array_equal(data.images, examples(0).images)
        assert row.valid_loss == pytest.approx(
            recipe_training.judge(going.learner.net, examples(9, 15), going.learner.loss)[0]
        )

    def test_changed_recipe(self) -> None:
        """Settings of the training and of the network are changed alike, lists as YAML has them; the rest stays."""
        improved = recipes.RECIPES["improved"]
        found = recipes.with_changes(improved, {"filters": [5, 10], "momentum": 0.9})
        assert found == replace(improved, network=replace(improved.network, filters=(5, 10)), momentum=0.9)

    @pytest.mark.parametrize(
        "change", [{"lr": 1}, {"classes": 5}, {"name": "x"}, {"momentum": "much"}, {"schedule": "ad hoc"}, {"pool": []}]
    )
    def test_change_that_is_none(self, change: dict[str, Any]) -> None:
        """A setting that there is not, or a value that is none for it, is refused."""
        with pytest.raises(ValueError):
            recipes.with_changes(recipes.RECIPES["improved"], change)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"batch_size": 0}, "batch_size: 0 is less than 1"),
            ({"max_epochs": 0}, "max_epochs"),
            ({"learning_rate": -1}, "learning_rate"),
            ({"learning_rate": float("nan")}, "learning_rate"),
            ({"momentum": 1}, "momentum: 1.0 is not below 1"),
            ({"dropout": 2}, "dropout"),
            ({"label_smoothing": 3}, "label_smoothing"),
            ({"resample": {"Hand": -1}}, "resample"),
            ({"augment": {"shfit": {"all": 2}}}, "no kind shfit; there are shift"),
            ({"kernels": [5]}, "2 filters and 1 kernels"),
            ({"kernels": [60, 60]}, "leave nothing of an image"),
            ({"pool": 40}, "leave nothing of an image"),
            ({"filters": [], "kernels": []}, "filters"),
            ({"side": 32}, "no setting side"),
        ],
    )
    def test_change_that_nothing_can_be_trained_with(self, change: dict[str, Any], says: str) -> None:
        """A change that would end a study in the middle, hours later, is refused before it begins, in words."""
        with pytest.raises(ValueError, match=says):
            recipes.with_changes(recipes.RECIPES["improved"], change)


class TestCompress:
    def test_at_full_rank_agrees_with_the_trained_network(self, tmp_path: Path) -> None:
        """Folded and factored at full rank, and stored in half precision, the network decides as the trained one."""
        trained = run(tmp_path)
        for _ in range(3):
            trained.epoch()
        net = trained.learner.net.eval()
        slim, steps = compression.compress(net, examples(0), examples(9, 15), compression.Tuning(rank=12, epochs=0))
        assert (slim.config.batch_norm, slim.config.rank) == (False, 12)
        batch = torch.from_numpy(decode.standardise(examples(5).images))
        with torch.inference_mode():
            torch.testing.assert_close(slim(batch).logits, net(batch).logits, atol=2e-2, rtol=2e-2)
        assert [step.epoch for step in steps] == [0]

    def test_keeps_the_best_step(self, tmp_path: Path) -> None:
        """The network given back is the one of the step with the fewest errors, and the trained one is not touched."""
        trained = run(tmp_path)
        trained.epoch()
        before = {name: value.clone() for name, value in trained.learner.net.state_dict().items()}
        tuning = compression.Tuning(rank=2, epochs=3, batch_size=8, learning_rate=0.05)
        slim, steps = compression.compress(trained.learner.net, examples(0), examples(9, 15), tuning)
        loss = torch.nn.CrossEntropyLoss(recipe_training.class_weights(examples(0).labels, 3))
        found_loss, found_errors = recipe_training.judge(slim, examples(9, 15), loss)
        assert (found_errors, found_loss) == min((step.valid_errors, step.valid_loss) for step in steps)
        assert [step.epoch for step in steps] == [0, 1, 2, 3]
        assert all(torch.equal(value, before[name]) for name, value in trained.learner.net.state_dict().items())

    def test_numbers_fit_half_precision(self, tmp_path: Path) -> None:
        """The judged weights are those that are stored: every number survives the trip through half precision."""
        slim = compression.in_half_precision(run(tmp_path).learner.net)
        assert all(torch.equal(value, value.half().float()) for value in slim.parameters())


def test_two_processes_do_not_train_in_one_directory(
    tmp_path: Path, png: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused before it writes anything, with exit code 6: each would overwrite the other's epochs."""
    pytest.importorskip("rich")
    (tmp_path / "Hand").mkdir()
    lines = ["path,class,split"]
    for number, part in enumerate(("train", "valid")):
        (tmp_path / "Hand" / f"{number}.png").write_bytes(png(number))
        lines.append(f"Hand/{number}.png,Hand,{part}")
    split, out = tmp_path / "split.csv", tmp_path / "out"
    split.write_text("\n".join(lines) + "\n")
    with resume.claimed(out / "lock"):
        code = main.main(["train", "--data", str(tmp_path), "--split", str(split), "--out", str(out)])
    assert code == Exit.ALREADY_RUNNING and "another process trains in" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in out.iterdir()] == ["lock"]


def test_a_recipe_that_names_classes_wants_them(
    tmp_path: Path, png: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """``plus`` augments by class: on data with other names it would be another recipe, and is refused (code 5)."""
    pytest.importorskip("rich")
    lines = ["path,class,split"]
    for number, (name, part) in enumerate(itertools.product(("Hand", "Knee"), ("train", "valid"))):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{number}.png").write_bytes(png(number))
        lines.append(f"{name}/{number}.png,{name},{part}")
    split = tmp_path / "split.csv"
    split.write_text("\n".join(lines) + "\n")
    call = ["train", "--recipe", "plus", "--data", str(tmp_path), "--split", str(split), "--out", str(tmp_path / "out")]
    assert main.main(call) == Exit.DIRECTORY
    told = " ".join(capsys.readouterr().err.split())
    assert "settings for BreastMRI, HeadCT, which are no classes" in told


class TestCompressCommand:
    @pytest.fixture
    def home(self, tmp_path: Path, png: Callable[..., bytes]) -> Path:
        """Two classes, three hands to judge on, and weights whose order of the classes is not the split's."""
        lines = ["path,class,split"]
        for number in range(9):
            name = ("Hand", "CXR")[number % 2]
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").write_bytes(png(number))
            lines.append(f"{name}/{number}.png,{name},{'valid' if number in (4, 6, 8) else 'train'}")
        (tmp_path / "split.csv").write_text("\n".join(lines) + "\n")
        self.save(
            tmp_path / "full.safetensors", mednet.MedNetConfig(classes=2, filters=(2,), kernels=(5,), hidden=(8, 4))
        )
        return tmp_path

    def save(self, path: Path, config: mednet.MedNetConfig) -> None:
        torch.manual_seed(3)
        tensors = {name: value.numpy() for name, value in mednet.MedNet(config).state_dict().items()}
        checkpoint.save(checkpoint.Checkpoint("small", config.to_dict(), ("CXR", "Hand"), tensors), path)

    def call(self, home: Path, *more: str, weights: str = "full.safetensors") -> int:
        data = ["--data", str(home), "--split", str(home / "split.csv")]
        return main.main(
            ["compress", *data, "--weights", str(home / weights), "--out", str(home / "slim.safetensors"), *more]
        )

    def test_labels_are_told_by_name(self, home: Path) -> None:
        """The order of the classes in the split is not that of the weights: what is tuned and judged is the class."""
        assert self.call(home, "--rank", "8", "--epochs", "0") == 0
        [step] = checkpoint.load(home / "slim.safetensors").training["compressed"]["steps"]
        assert step["valid_errors"] == checkpoint.load(home / "slim.safetensors").training["valid_errors_shipped"]

    def test_confidence_is_calibrated(self, home: Path) -> None:
        """The temperature stored is the one for the validation labels, in doubt as Platt has it; judging uses it."""
        split = home / "split.csv"  # with an X-ray among them, which these weights take for a hand
        split.write_text(split.read_text().replace("7.png,CXR,train", "7.png,CXR,valid"))
        assert self.call(home, "--rank", "8", "--epochs", "0") == 0
        slim = checkpoint.load(home / "slim.safetensors")
        valid = judge_weights.relabelled(
            labelled_images.load(labelled_images.listing(home, home / "split.csv", "valid")), ("CXR", "Hand")
        )
        logits, _ = calibration.predict(classifier.build(slim), valid.images)

        heat = slim.thresholds["temperature"]
        assert heat == calibration.temperature(logits, valid.labels, smoothing=1 / 6)
        shares = calibration.probabilities(logits, heat)[np.arange(4), valid.labels]
        assert judge_weights.evaluate(slim, valid).loss == pytest.approx(-np.log(shares).mean(), rel=1e-4)

    def test_the_threshold_is_that_of_what_is_stored(self, home: Path) -> None:
        """Fitted on the confidences of the compressed network at its temperature: no right answer lies below it."""
        split = home / "split.csv"
        split.write_text(split.read_text().replace("7.png,CXR,train", "7.png,CXR,valid"))
        assert self.call(home, "--rank", "1", "--epochs", "0") == 0
        slim = checkpoint.load(home / "slim.safetensors")
        valid = labelled_images.load(labelled_images.listing(home, split, "valid"))
        judged = judge_weights.evaluate(slim, valid)
        least = judged.confidences[judged.right].min()
        assert slim.thresholds["min_confidence"] == pytest.approx(np.floor(least * 1e4) / 1e4)
        full = judge_weights.evaluate(checkpoint.load(home / "full.safetensors"), valid)
        assert abs(full.confidences[full.right].min() - least) > 1e-3, "else it says nothing"

    @pytest.mark.parametrize(
        ("change", "rank", "code", "says"),
        [
            ({"rank": 4}, "4", Exit.MODEL, "compressed already"),
            ({"classes": 3, "none": True}, "4", Exit.MODEL, "none of the classes"),
            ({}, "0", Exit.USAGE, "no rank 0"),
            ({}, "9", Exit.USAGE, "no rank 9 of a layer of rank 8"),
        ],
    )
    def test_what_nothing_can_be_made_of(
        self, home: Path, change: dict[str, Any], rank: str, code: Exit, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Weights that are compressed, or of another kind, and a rank that there is not, are refused in words."""
        config = mednet.MedNetConfig(classes=2, filters=(2,), kernels=(5,), hidden=(8, 4))
        self.save(home / "other.safetensors", replace(config, **change))
        assert self.call(home, "--rank", rank, weights="other.safetensors") == code
        assert says in capsys.readouterr().err and not (home / "slim.safetensors").exists()

    def test_another_class_is_named(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Images of a class that the weights do not know are refused."""
        split = home / "split.csv"
        split.write_text(split.read_text().replace(",Hand,", ",Knee,"))
        assert self.call(home, "--rank", "4") == Exit.DIRECTORY
        assert "do not know the classes Knee" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path, png: Callable[..., bytes], jpeg: Callable[..., bytes]) -> Path:
    """Two classes, three files, one of them broken."""
    root = tmp_path / "data"
    for name, content in {"Hand/1.png": png(1), "Hand/0.jpeg": jpeg(2), "CXR/0.png": png(3)[:-20]}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


class TestDataset:
    def test_directories_are_classes(self, folder: Path) -> None:
        """Classes and files come sorted by name; hidden ones and stray files are left out."""
        (folder / ".git").mkdir()
        (folder / ".git" / "x.png").touch()
        (folder / "Hand" / ".DS_Store").touch()
        (folder / "README").touch()
        files = labelled_images.listing(folder)
        assert files == labelled_images.Listing(
            folder, ("CXR", "Hand"), ("CXR/0.png", "Hand/0.jpeg", "Hand/1.png"), (0, 1, 1)
        )

    def test_split_gives_order_and_classes(self, folder: Path, tmp_path: Path) -> None:
        """A split's rows of one part come in the file's order; all parts agree on the classes."""
        split = tmp_path / "split.csv"
        split.write_text(
            "path,class,split\nHand/1.png,Hand,train\nCXR/0.png,CXR,test\nHand/0.jpeg,Hand,train\n", "utf-8"
        )
        found = labelled_images.listing(folder, split, "train")
        assert found == labelled_images.Listing(folder, ("Hand", "CXR"), ("Hand/1.png", "Hand/0.jpeg"), (0, 0))
        assert labelled_images.listing(folder, split, "test").labels == (1,)
        assert len(labelled_images.listing(folder, split).paths) == 3

    @pytest.mark.parametrize(
        ("text", "part", "says"),
        [
            ("path,class,split\nHand/9.png,Hand,train\n", "train", "Hand/9.png"),
            ("path,class,split\nHand/1.png,Hand,train\n", "valid", "valid"),
            ("file,label\nHand/1.png,Hand\n", "train", "class"),
            ("class,path,split\nHand\n", None, "split.csv"),
            ("", "train", "split.csv"),
            ("path,class,split\nHand/1.png,Hand,train\nHand/1.png,Hand,valid\n", "train", "1 files more than once"),
            ("path,class,split\nHand/1.png,Hand/left,train\n", "train", "'Hand/left'"),
            ("path,class,split\nHand/1.png,,train\n", "train", "''"),
        ],
    )
    def test_split_that_does_not_serve_is_fatal(
        self, folder: Path, tmp_path: Path, text: str, part: str | None, says: str
    ) -> None:
        """Missing files, rows, columns or fields end the command with exit code 5 and what is missing."""
        split = tmp_path / "split.csv"
        split.write_text(text)
        with pytest.raises(Fatal, match=says) as caught:
            labelled_images.listing(folder, split, part)
        assert caught.value.code is Exit.DIRECTORY

    def test_split_as_a_spreadsheet_writes_it(self, folder: Path, tmp_path: Path) -> None:
        """A byte order mark before the first column's name is no part of the name."""
        split = tmp_path / "split.csv"
        split.write_text("path,class,split\nHand/1.png,Hand,train\n", "utf-8-sig")
        assert labelled_images.listing(folder, split, "train").paths == ("Hand/1.png",)

    def test_class_without_training_images_is_fatal(self) -> None:
        """Training stops for a class that it could never learn, by name."""
        data = examples()
        labelled_images.refuse_unseen(data)
        with pytest.raises(Fatal, match="is of d:"):
            labelled_images.refuse_unseen(replace(data, classes=(*data.classes, "d")))

    def test_nothing_there_is_fatal(self, tmp_path: Path) -> None:
        """An absent or empty directory ends the command with exit code 5."""
        (tmp_path / "empty" / "Hand").mkdir(parents=True)
        for root in (tmp_path / "nowhere", tmp_path / "empty"):
            with pytest.raises(Fatal) as caught:
                labelled_images.listing(root)
            assert caught.value.code is Exit.DIRECTORY

    def test_load_decodes_as_the_daemon_does(self, folder: Path) -> None:
        """Images come through the daemon's decoder, with their labels; what is broken is told apart, with why."""
        data = labelled_images.load(labelled_images.listing(folder))
        assert data.classes == ("CXR", "Hand")
        assert (data.paths, data.labels.tolist()) == (("Hand/0.jpeg", "Hand/1.png"), [1, 1])
        np.testing.assert_array_equal(data.images[1], decode.grey64((folder / "Hand/1.png").read_bytes()))
        [(path, label, why)] = data.broken
        assert (path, label) == ("CXR/0.png", 0) and "truncated" in why

    def test_all_broken(self, folder: Path) -> None:
        """With nothing left to decode there are no images, but every file is told of."""
        data = labelled_images.load(labelled_images.Listing(folder, ("CXR",), ("CXR/0.png",), (0,)))
        assert data.images.shape == (0, 64, 64) and len(data.broken) == 1

    def test_training_refuses_broken_images(self, folder: Path) -> None:
        """A broken image stops the training, by name; without one nothing happens."""
        data = labelled_images.load(labelled_images.listing(folder))
        with pytest.raises(Fatal, match=r"CXR/0\.png"):
            labelled_images.refuse_broken(replace(data, broken=()), data)
        labelled_images.refuse_broken(replace(data, broken=()))


class TestEvaluate:
    @pytest.fixture
    def judged(self) -> evaluation.Evaluation:
        """Four images of two classes, one taken for the other, and one file that could not be decoded."""
        data = Examples(
            ("CXR", "Hand"),
            ("0", "1", "2", "3"),
            np.zeros((4, 64, 64), np.uint8),
            np.array([0, 0, 1, 1]),
            (("4", 1, "truncated"),),
        )
        return evaluation.evaluate(data, np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.05, 0.95]]))

    def test_counts(self, judged: evaluation.Evaluation) -> None:
        """Right of total, the confusion with true rows, and each error by file; a broken file is an error too."""
        assert (judged.correct, judged.total) == (3, 5)
        assert judged.confusion.tolist() == [[1, 1], [0, 2]]
        assert judged.loss == pytest.approx(-np.log([0.9, 0.3, 0.8, 0.95]).mean())
        assert judged.errors == (evaluation.Error("1", "CXR", "Hand", 0.7), evaluation.Error("4", "Hand", None, 0.0))

    def test_errors_that_were_given_as_sure(self) -> None:
        """An error counts as sure from 99 % on; calibration is over 15 bins, as in the papers."""
        data = Examples(("a", "b"), ("0", "1", "2"), np.zeros((3, 64, 64), np.uint8), np.array([0, 0, 0]), ())
        judged = evaluation.evaluate(data, np.array([[0.01, 0.99], [0.011, 0.989], [0.999, 0.001]]))
        assert (len(judged.errors), judged.sure_errors) == (2, 1)
        assert (evaluation.BINS, evaluation.HIGH_CONFIDENCE) == (15, 0.99)

    def test_json_is_a_contract(self, judged: evaluation.Evaluation) -> None:
        """The object of ``evaluate --json`` is plain JSON with exactly these keys."""
        assert json.loads(json.dumps(judged.to_dict())) == {
            "total": 5,
            "correct": 3,
            "errors": [
                {"path": "1", "true": "CXR", "predicted": "Hand", "confidence": 0.7},
                {"path": "4", "true": "Hand", "predicted": None, "confidence": 0.0},
            ],
            "classes": ["CXR", "Hand"],
            "confusion": [[1, 1], [0, 2]],
            "calibration_error": pytest.approx((0.1 + 0.7 + 0.2 + 0.05) / 4),
            "sure_errors": 0,
        }

    def test_table_reads_as_the_matrix(self, judged: evaluation.Evaluation) -> None:
        """Each row of the text has the true class, the counts in the order of the head, and the share that is right."""
        head, *rows = (line.split() for line in evaluation.confusion_table(judged).splitlines())
        assert head == ["CXR", "Hand", "right"]
        assert rows == [["CXR", "1", "1", "50.00%"], ["Hand", "0", "2", "100.00%"]]

    def test_picture_is_drawn(self, judged: evaluation.Evaluation, tmp_path: Path) -> None:
        """The matrix is drawn as a PNG, directories made as needed."""
        pytest.importorskip("matplotlib")
        evaluation.draw_confusion(judged, tmp_path / "docs" / "confusion.png", "title")
        assert (tmp_path / "docs" / "confusion.png").read_bytes().startswith(b"\x89PNG")


class TestCalibration:
    @staticmethod
    def measured(confidences: list[float], right: list[bool]) -> evaluation.Reliability:
        return evaluation.reliability(np.array(confidences), np.array(right, bool))

    def test_perfect_and_boastful(self) -> None:
        """Right as often as confident is no error; sure and wrong is an error of 1."""
        assert self.measured([0.75] * 4, [True, True, True, False]).error == 0
        assert self.measured([1.0] * 4, [False] * 4).error == 1

    def test_bins_are_weighed_by_their_images(self) -> None:
        """Two bins: |0.5 - 0.7| on two images and |1 - 0.9| on two give 0.15."""
        found = self.measured([0.7, 0.7, 0.9, 0.9], [True, False, True, True])
        assert found.error == pytest.approx(0.15)
        assert [count for count, _, _ in found.bins if count] == [2, 2]

    @pytest.mark.filterwarnings("error")
    def test_a_training_that_diverged(self) -> None:
        """A confidence that is no number counts as none, without a warning; the error is a number."""
        assert self.measured([float("nan")] * 2, [True, False]).error == 0.5

    def test_edges(self) -> None:
        """Confidence 0 and 1 belong to the first and last bin, an inner edge to the bin below; no image, no error."""
        found = self.measured([0.0, 0.2, 1.0], [True] * 3)
        assert [place for place, (count, _, _) in enumerate(found.bins) if count] == [0, 2, 14]
        assert self.measured([], []).error == 0


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.001, 0.01, 0.25, 0.5, 1.0]),
)
def test_fitted_threshold_gives_up_no_more_than_asked(rows: list[tuple[int, bool]], give_up: float) -> None:
    """At most the given share of the rightly recognised goes to review, and a threshold just above sends more."""
    confidences = np.array([value / 10_000 for value, _ in rows])
    right = np.array([flag for _, flag in rows])
    judged = evaluation.Evaluation(("a",), len(rows), (), np.zeros((1, 1), np.int64), confidences, right)
    fitted = evaluation.fit_min_confidence(judged, give_up)
    assert 0 <= fitted <= 1
    if right.any():
        assert (confidences[right] < fitted).sum() <= give_up * right.sum()
        if give_up < 1:
            assert (confidences[right] < fitted + 2e-4).sum() > give_up * right.sum()
    else:
        assert fitted == 1.0
