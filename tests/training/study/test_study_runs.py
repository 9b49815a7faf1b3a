"""Studies: what is run, on which images, that no run is lost or done twice, and that a kill costs an epoch at most."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.support import fork_server, waiting
from tests.support.daemon import mednet
from tests.support.repository import TOP
from watcher.cli import main
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.training.data import synthetic_images
from watcher.training.fit import recipe_training, recipes, result_rows
from watcher.training.fit.training_loop import Epoch
from watcher.training.study import study_plan, study_runs

SMALL = {"filters": [2, 3], "pool": 4, "hidden": [12, 8], "batch_size": 8, "learning_rate": 0.02}
STUDY: dict[str, Any] = {
    "seeds": [0, 1],
    "budget": {"train_images": 48, "watch_images": 12, "judge_images": 24, "epochs": {"improved": 2}},
    "variants": [
        {"name": "small", "recipe": "improved", "change": SMALL},
        {"name": "rich", "recipe": "improved", "against": "small",
         "change": {**SMALL, "dropout": 0.5, "momentum": 0.9, "averaging": "ema", "augment": {"shift": {"all": 2}}}},
    ],
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen synthetic images of each class, two of them in the part ``valid``, and split.csv."""
    root = tmp_path_factory.mktemp("images")
    artist, rng = synthetic_images.Sketch.load(shipped_files.weights("sketch.safetensors")), np.random.default_rng(0)
    lines = ["path,class,split"]
    for name in artist.classes:
        (root / name).mkdir()
        for number in range(16):
            Image.fromarray(artist.sample(name, rng)).save(root / name / f"{number}.png")
            lines.append(f"{name}/{number}.png,{name},{'valid' if number > 13 else 'train'}")
    (root / "split.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "study" / "study.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(STUDY))
    return path


def drawn(data: Path, **budget: Any) -> study_plan.Sample:
    return study_plan.sample(data, data / "split.csv", study_plan.Budget(**{**STUDY["budget"], **budget}))


def planned(plan: Path, data: Path) -> tuple[study_plan.Study, list[study_plan.Task]]:
    found = study_plan.read(plan)
    return found, study_plan.tasks(found, drawn(data))


def timeless(row: result_rows.Row) -> result_rows.Row:
    """A row without what tells of the clock."""
    history = [{k: v for k, v in epoch.items() if k not in ("seconds", "cpu_seconds")} for epoch in row["history"]]
    return {**{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "finished")}, "history": history}


class TestStudy:
    def test_the_screen_covers_what_the_issue_names(self) -> None:
        """The study in docs has every change that the proof of concept names, and those it never tried."""
        screen = study_plan.read(TOP / "docs" / "study" / "study.yaml")
        assert len(screen.seeds) >= 3
        changes = [variant.change for variant in screen.variants]
        expected: list[dict[str, Any]] = [
            {"activation": "elu"}, {"activation": "relu"}, {"filters": [5, 10]}, {"filters": [10, 20]},
            {"kernels": [7, 7]}, {"kernels": [5, 5]}, {"batch_norm": True}, {"batch_norm": False},
            {"dropout": 0.2}, {"dropout": 0.5}, {"pool": 2}, {"learning_rate": 0.01}, {"learning_rate": 0.05},
            {"batch_size": 300}, {"batch_size": 64}, {"momentum": 0.9}, {"schedule": "cosine"},
            {"averaging": "ema"}, {"averaging": "swa"},
        ]  # fmt: skip
        assert [change for change in expected if change not in changes] == []
        keys = {key for change in changes for key in change}
        assert keys >= {"hidden", "class_factors", "resample", "weight_decay", "augment", "label_smoothing"}
        assert any(len(change.get("filters", ())) == 3 for change in changes)
        stops = [(change.get("t2v_ratio"), change.get("t2v_epochs")) for change in changes]
        assert (1.2, 3) in stops and (1.5, 4) in stops
        kinds = {kind for change in changes for kind in change.get("augment", ())}
        assert kinds == {"shift", "flip", "rotation", "contrast", "inversion"}

    def test_a_variant_can_have_seeds_of_its_own(self, data: Path) -> None:
        """It is trained with those instead of the study's; all variants still come with a seed before the next one."""
        variants = (
            study_plan.Variant(name="improved", recipe="improved", seeds=(0, 1, 5)),
            study_plan.Variant(name="elu", recipe="improved", change={"activation": "elu"}),
        )
        plan = study_plan.Study(seeds=(0, 1), budget=study_plan.Budget(), variants=variants)
        tasks = [(task.seed, task.variant.name) for task in study_plan.tasks(plan, drawn(data))]
        assert tasks == [(0, "improved"), (0, "elu"), (1, "improved"), (1, "elu"), (5, "improved")]

    def test_the_full_study_trains_by_the_recipes(self, data: Path) -> None:
        """Without a budget of epochs each run is the recipe's own, on all images, its best epoch judged."""
        full = study_plan.read(TOP / "docs" / "study" / "full" / "study.yaml")
        assert {variant.name for variant in full.variants} >= {"baseline", "improved"}
        assert full.budget.keep == "best" and full.budget.judge_part == "valid"
        parts = study_plan.sample(data, data / "split.csv", full.budget)
        assert [len(part.paths) for part in (parts.train, parts.watch, parts.judge)] == [84, 12, 12]
        for task in study_plan.tasks(full, parts):
            own = replace(recipes.RECIPES[task.variant.recipe], precision=full.budget.precision)
            assert task.variant.change or task.recipe == own

    def test_the_screen_looks_at_training_images_only(self) -> None:
        """So many looks at the validation part would choose what suits it by chance."""
        budget = study_plan.read(TOP / "docs" / "study" / "study.yaml").budget
        assert budget.train_part == budget.judge_part == "train"

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"seeds": []}, "seeds"),
            ({"sedes": [1]}, "sedes"),
            ({"variants": [{"name": "a", "recipe": "none"}]}, "no recipe none"),
            ({"variants": [{"name": "a", "recipe": "baseline"}]}, "there are no epochs for the recipe baseline"),
            ({"variants": [{"name": "a", "recipe": "improved", "change": {"lr": 1}}]}, "no setting lr"),
            ({"variants": [{"name": "a", "recipe": "improved", "change": {"dropout": "much"}}]}, "dropout"),
            ({"variants": [{"name": "a", "recipe": "improved"}] * 2}, "two variants"),
            ({"variants": [{"name": "a", "recipe": "improved", "against": "b"}]}, "no variant b"),
            ({"variants": [{"name": "../a", "recipe": "improved"}]}, "variants.0.name"),
            (
                {"variants": [{"name": "a", "recipe": "improved", "change": {"batch_size": 0}}]},
                "a: batch_size: 0 is less",
            ),
            ({"seeds": [-1]}, "seeds.0"),
            ({"seeds": [1, 1]}, "1 is there twice"),
            (
                {"variants": [{"name": "improved", "recipe": "improved", "seeds": [2, 2]}]},
                "improved: seeds: 2 is there",
            ),
            ({"variants": [{"name": "improved", "recipe": "improved", "seeds": []}]}, "variants.0.seeds"),
            ({"budget": {"epochs": {"improved": 0}}}, "budget.epochs.improved"),
        ],
    )
    def test_mistakes_are_named(self, plan: Path, change: dict[str, Any], says: str) -> None:
        """A study with a mistake ends the command with exit code 3 and the mistake's place."""
        plan.write_text(yaml.safe_dump({**STUDY, **change}))
        with pytest.raises(Fatal, match=says) as caught:
            study_plan.read(plan)
        assert caught.value.code is Exit.CONFIG

    @pytest.mark.parametrize("text", [None, "seeds: [", "\xff", "- 1"])
    def test_no_study_at_all(self, plan: Path, text: str | None) -> None:
        """A file that is absent, or no YAML, or another thing, is exit code 3 too."""
        plan.unlink()
        if text is not None:
            plan.write_text(text, "latin-1")
        with pytest.raises(Fatal) as caught:
            study_plan.read(plan)
        assert caught.value.code is Exit.CONFIG

    @pytest.mark.parametrize("change", [{"resample": {"Hnad": 2}}, {"augment": {"shift": {"Hnad": 2, "all": 1}}}])
    def test_a_class_that_there_is_not_is_told(self, data: Path, change: dict[str, Any]) -> None:
        """A mistyped class would change nothing, and the table would say that the change makes no difference."""
        variants = (study_plan.Variant(name="a", recipe="improved", change=change),)
        with pytest.raises(Fatal, match="a: no image is of the class Hnad") as caught:
            study_plan.tasks(study_plan.Study(seeds=(0,), budget=study_plan.Budget(), variants=variants), drawn(data))
        assert caught.value.code is Exit.CONFIG

    def test_seed_major(self, plan: Path, data: Path) -> None:
        """All variants run with the first seed before any runs with the second."""
        _, tasks = planned(plan, data)
        assert [(task.seed, task.variant.name) for task in tasks] == [
            (0, "small"), (0, "rich"), (1, "small"), (1, "rich"),
        ]  # fmt: skip

    def test_budget_takes_the_early_stop_away(self) -> None:
        """With a budget of epochs every run has as many, unless the variant itself says otherwise."""
        budget = study_plan.Budget(epochs={"improved": 5})
        variant = study_plan.Variant(name="a", recipe="improved")
        fixed = study_plan.planned_recipe(variant, budget)
        assert fixed.max_epochs == 5 and fixed.t2v_epochs > 5
        own = variant.model_copy(update={"change": {"t2v_epochs": 3, "t2v_ratio": 1.2}})
        assert study_plan.planned_recipe(own, budget).t2v_epochs == 3
        assert study_plan.planned_recipe(variant, study_plan.Budget()) == recipes.RECIPES["improved"]

    def test_budget_says_the_precision(self, data: Path) -> None:
        """Runs compute as the budget says, unless the variant says otherwise; another precision is another run."""
        budget = study_plan.Budget(precision="bfloat16")
        variants = (
            study_plan.Variant(name="a", recipe="improved"),
            study_plan.Variant(name="b", recipe="improved", change={"precision": "float32"}),
        )
        tasks = study_plan.tasks(study_plan.Study(seeds=(0,), budget=budget, variants=variants), drawn(data))
        assert [task.recipe.precision for task in tasks] == ["bfloat16", "float32"]
        plain = study_plan.tasks(
            study_plan.Study(seeds=(0,), budget=study_plan.Budget(), variants=variants[:1]), drawn(data)
        )
        assert tasks[0].digest != tasks[1].digest == plain[0].digest

    def test_digest_is_of_what_the_result_depends_on(self, data: Path) -> None:
        """Another setting, seed or image is another run; another name or explanation is not."""
        parts = drawn(data)

        def digest(seed: int = 0, sample: study_plan.Sample = parts, says: str = "", **change: Any) -> str:
            variant = study_plan.Variant(name=f"v{len(says)}", recipe="improved", change=change, says=says)
            plan = study_plan.Study(seeds=(seed,), budget=study_plan.Budget(), variants=(variant,))
            return study_plan.tasks(plan, sample)[0].digest

        assert digest() == digest(says="words") == digest(dropout=0.0)
        other = [
            digest(seed=1),
            digest(dropout=0.1),
            digest(learning_rate=0.1),
            digest(sample=drawn(data, sample_seed=2)),
        ]
        assert len({digest(), *other}) == 5

    def test_a_new_setting_at_its_default_changes_no_digest(self) -> None:
        """Only settings that differ from the defaults count for a training's digest."""
        told = recipes.RECIPES["improved"].non_default()
        assert told == {
            "learning_rate": 0.05, "batch_size": 64, "t2v_ratio": 1.5, "t2v_epochs": 4, "network": {},
        }  # fmt: skip


class TestSample:
    def test_no_image_has_two_uses(self, data: Path) -> None:
        """Training, watched and judged images are different ones, as many as asked for, the same each time."""
        parts = drawn(data)
        sets = [set(part.paths) for part in (parts.train, parts.watch, parts.judge)]
        assert [len(each) for each in sets] == [48, 12, 24]
        assert len(set.union(*sets)) == 84
        assert parts == drawn(data)
        assert parts != drawn(data, sample_seed=1)

    def test_every_beginning_has_each_class_in_its_share(self) -> None:
        """However many images are taken, no class has more than two of them too many or too few."""
        labels = (0,) * 300 + (1,) * 100 + (2,) * 30
        order = study_plan.stratified(labels, 0)
        assert sorted(order) == list(range(430))
        for count in range(1, 430):
            found = np.bincount(np.array(labels)[order[:count]], minlength=3)
            assert np.abs(found - np.array([300, 100, 30]) * count / 430).max() <= 2

    def test_another_part_can_be_judged(self, data: Path) -> None:
        """A full training watches and judges the whole of another part, as ``train`` does."""
        parts = study_plan.sample(data, data / "split.csv", study_plan.Budget(judge_part="valid"))
        assert (len(parts.train.paths), len(parts.judge.paths)) == (84, 12)
        assert parts.watch == parts.judge

    @pytest.mark.parametrize(
        "budget", [{"train_images": 85}, {"judge_images": 25}, {"judge_images": None, "watch_images": 36}]
    )
    def test_too_few_images(self, data: Path, budget: dict[str, Any]) -> None:
        """A budget that the data can not serve is refused, not served with fewer."""
        with pytest.raises(Fatal) as caught:
            drawn(data, **budget)
        assert caught.value.code is Exit.CONFIG


class TestRows:
    def test_each_run_once(self, tmp_path: Path) -> None:
        """Rows of several files are read together; a run that is in two of them comes once."""
        one, other = tmp_path / "1", tmp_path / "2"
        result_rows.append(one, {"digest": "a", "errors": 1})
        result_rows.append(one, {"digest": "b", "errors": 2})
        result_rows.append(other, {"digest": "a", "errors": 3})
        assert [row["errors"] for row in result_rows.read(one, other, tmp_path / "absent")] == [1, 2]

    def test_a_torn_last_line_is_not_there(self, tmp_path: Path) -> None:
        """A crash while a row is written loses that row only, and the next one takes its place."""
        path = tmp_path / "runs"
        result_rows.append(path, {"digest": "a"})
        whole = path.read_bytes()
        for cut in range(len(whole)):
            path.write_bytes(whole + whole[:cut])
            assert len(result_rows.read(path)) == 1
            result_rows.append(path, {"digest": "b"})
            assert [row["digest"] for row in result_rows.read(path)] == ["a", "b"]

    @pytest.mark.parametrize("line", ["{}", "[]", "word", '{"digest": '])
    def test_a_spoilt_line_is_named(self, tmp_path: Path, line: str) -> None:
        """Anything else that is no row ends the command and names the line."""
        path = tmp_path / "runs"
        path.write_text(f'{{"digest": "a"}}\n{line}\n{{"digest": "b"}}\n')
        with pytest.raises(Fatal, match="runs:2"):
            result_rows.read(path)


class TestAblate:
    def test_row_tells_what_came_out(self, plan: Path, data: Path, tmp_path: Path) -> None:
        """A row has the variant, its errors by class, loss, calibration, time and versions, and agrees with itself."""
        found, tasks = planned(plan, data)
        row = study_runs.perform(
            tasks[0], found.budget, study_runs.images(drawn(data), tmp_path), tmp_path, lambda epoch: None
        )
        assert result_rows.read(tmp_path / "runs.jsonl") == [json.loads(json.dumps(row))]
        assert (row["variant"], row["seed"], row["digest"]) == ("small", 0, tasks[0].digest)
        assert (row["epochs"], len(row["history"]), row["judged"], row["train_images"]) == (2, 2, 24, 48)
        assert row["errors"] == sum(row["errors_by_class"].values()) == len(row["wrong"])
        confusion = np.array(row["confusion"])
        assert confusion.sum() - np.trace(confusion) == row["errors"]
        assert row["accuracy"] == pytest.approx(1 - row["errors"] / 24, abs=1e-4)
        assert sum(row["bins"][0]) == 24 and sum(row["bins"][2]) == 24 - row["errors"]
        assert row["loss"] > 0 and 0 <= row["ece"] <= 1
        assert row["versions"].keys() >= {"mednet-watcher", "torch", "numpy", "python"}
        assert not (tmp_path / "work" / tasks[0].digest).exists()

    @pytest.mark.parametrize("number", [0, 1])
    def test_interrupted_run_ends_as_one_that_was_not(
        self, plan: Path, data: Path, tmp_path: Path, number: int
    ) -> None:
        """A run that dies after an epoch goes on from there, to the very row of one that went through."""
        found, tasks = planned(plan, data)
        images = study_runs.images(drawn(data), tmp_path)

        class Died(Exception):
            pass

        def die(epoch: Epoch) -> None:
            raise Died

        with pytest.raises(Died):
            study_runs.perform(tasks[number], found.budget, images, tmp_path / "a", die)
        epochs: list[int] = []
        row = study_runs.perform(tasks[number], found.budget, images, tmp_path / "a", lambda e: epochs.append(e.epoch))
        assert epochs == [2]
        straight = study_runs.perform(tasks[number], found.budget, images, tmp_path / "b", lambda e: None)
        assert timeless(row) == timeless(straight)

    def test_bfloat16_is_for_the_training_alone(self, plan: Path, data: Path, tmp_path: Path) -> None:
        """In bfloat16 the network trains on coarser numbers to other weights, which stay float32, as does judging."""
        _, tasks = planned(plan, data)
        seen: dict[str, list[torch.dtype]] = {"float32": [], "bfloat16": []}
        results = {}
        for precision in seen:
            task = replace(tasks[0], recipe=recipes.with_changes(tasks[0].recipe, {"precision": precision}))
            run = recipe_training.prepare(
                task.recipe, *[study_runs.images(drawn(data), tmp_path).train] * 2, tmp_path / precision, 0
            )
            for layer in run.learner.net.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.register_forward_hook(lambda _, __, y, kept=seen[precision]: kept.append(y.dtype))
            run.epoch()
            results[precision] = run.learner.result.state_dict()
            assert all(value.dtype != torch.bfloat16 for value in results[precision].values())
        assert set(seen["float32"]) == {torch.float32}
        assert set(seen["bfloat16"]) == {torch.float32, torch.bfloat16}
        assert any(not torch.equal(a, b) for a, b in zip(*(r.values() for r in results.values()), strict=True))

    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
    def test_a_training_that_diverges_is_a_row_too(
        self, plan: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Losses that are no numbers any more end as a bad row that can be read, its errors counted, not listed."""
        monkeypatch.setattr(study_runs, "MAX_LISTED", 3)
        found, tasks = planned(plan, data)
        task = replace(tasks[0], recipe=replace(tasks[0].recipe, learning_rate=1e30))
        study_runs.perform(task, found.budget, study_runs.images(drawn(data), tmp_path), tmp_path, lambda e: None)
        [row] = result_rows.read(tmp_path / "runs.jsonl")
        assert row["errors"] > 3 and row["wrong"] == []

    def test_best_epoch_can_be_judged_and_kept(self, plan: Path, data: Path, tmp_path: Path) -> None:
        """With ``keep: best`` the weights of the best epoch are judged, and stay."""
        found, tasks = planned(plan, data)
        budget = found.budget.model_copy(update={"keep": "best"})
        spoilt = replace(tasks[0].recipe, max_epochs=6, learning_rate=0.3, schedule="constant")
        data_ = replace(study_runs.images(drawn(data), tmp_path), watch=study_runs.images(drawn(data), tmp_path).judge)
        row = study_runs.perform(replace(tasks[0], recipe=spoilt), budget, data_, tmp_path, lambda e: None)
        watched = [epoch["valid_errors"] for epoch in row["history"]]
        assert row["errors"] == min(watched) < watched[-1]
        assert [path.name for path in (tmp_path / "weights").iterdir()] == ["small-seed0.safetensors"]

    def test_images_are_decoded_once(self, data: Path, tmp_path: Path) -> None:
        """The second start takes the decoded images from the output directory, the same ones."""
        first = study_runs.images(drawn(data), tmp_path)
        [kept] = tmp_path.glob("images-*.npz")
        stamp = kept.stat().st_mtime_ns
        again = study_runs.images(drawn(data), tmp_path)
        assert kept.stat().st_mtime_ns == stamp
        np.testing.assert_array_equal(first.judge.images, again.judge.images)
        assert first.train.paths == again.train.paths

    @pytest.mark.parametrize("damage", ["cut short", "empty", "no such file format", "a bit"])
    def test_damaged_decoded_images_are_told(self, data: Path, tmp_path: Path, damage: str) -> None:
        """Nothing is learnt from them, and the message says to remove the file; then they are decoded anew."""
        whole = study_runs.images(drawn(data), tmp_path)
        [kept] = tmp_path.glob("images-*.npz")
        good = kept.read_bytes()
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        kept.write_bytes(
            {"cut short": good[:middle], "empty": b"", "no such file format": b"images", "a bit": flipped}[damage]
        )
        with pytest.raises(Fatal, match="is damaged") as caught:
            study_runs.images(drawn(data), tmp_path)
        assert caught.value.code is Exit.DIRECTORY
        kept.unlink()
        np.testing.assert_array_equal(study_runs.images(drawn(data), tmp_path).train.images, whole.train.images)

    def test_a_run_has_one_owner(self, plan: Path, data: Path, tmp_path: Path) -> None:
        """Two processes never do the same run at once; a run that was given up can be taken."""
        _, tasks = planned(plan, data)
        with study_runs.claimed(tasks[0], tmp_path) as ours, study_runs.claimed(tasks[0], tmp_path) as theirs:
            assert (ours, theirs) == (True, False)
        with study_runs.claimed(tasks[0], tmp_path) as again:
            assert again


def words(plan: Path, data: Path, out: Path) -> list[str]:
    return ["ablate", "--study", str(plan), "--data", str(data), "--split", str(data / "split.csv"), "--out", str(out)]


@pytest.mark.slow
def test_killed_study_goes_on(plan: Path, data: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a study loses no row: the next start does the rest, and then there is nothing to do."""
    out, other = tmp_path / "out", tmp_path / "other"
    with open(os.devnull, "w") as nowhere:
        dying = fork_server.start(
            "watcher.cli.main:main",
            words(plan, data, out),
            stdout=nowhere.fileno(),
            stderr=nowhere.fileno(),
            environ=os.environ,
            modules=fork_server.TRAINING,
        )
    waiting.until(lambda: result_rows.read(out / "runs.jsonl"))
    dying.kill()
    assert dying.wait() == -signal.SIGKILL
    before = len(result_rows.read(out / "runs.jsonl"))
    assert 0 < before < 4
    told = mednet(*words(plan, data, out)).stdout
    assert f"{before} of them done before" in told and "all runs done" in told
    assert len((out / "runs.jsonl").read_text().splitlines()) == 4
    assert mednet(*words(plan, data, other)).returncode == 0
    killed, straight = (
        {row["digest"]: timeless(row) for row in result_rows.read(place / "runs.jsonl")} for place in (out, other)
    )
    assert killed == straight
    assert mednet(*words(plan, data, out), "--collect").returncode == 0
    assert mednet(*words(plan, data, tmp_path / "new")).stdout == "4 runs, 4 of them done before\n"


def test_collecting_from_a_place_without_rows_is_told(
    plan: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped --out is no "0 new rows"."""
    assert main.main([*words(plan, data, tmp_path / "typo"), "--collect"]) == Exit.DIRECTORY
    assert "no run has ended there" in capsys.readouterr().err and not (plan.parent / "runs.jsonl").exists()
