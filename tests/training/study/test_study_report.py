"""The report: every figure comes from the rows, and no image of a data set is where it would be committed."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.support.repository import TOP
from watcher.cli import main
from watcher.core.errors import Exit
from watcher.training.fit import result_rows
from watcher.training.study import earlier_claims, significance, study_plan, study_report

CLASSES = ["CXR", "Hand"]


def row(variant: str, seed: int, errors: int, change: dict[str, Any] | None = None, **more: Any) -> result_rows.Row:
    return {
        "variant": variant, "recipe": "improved", "change": change or {}, "seed": seed,
        "digest": f"{variant}-{seed}-{errors}", "classes": CLASSES, "train_images": 60, "judged": 1000,
        "errors": errors, "errors_by_class": {"CXR": errors - 1, "Hand": 1}, "accuracy": 1 - errors / 1000,
        "loss": 0.0125, "ece": 0.0021, "sure_errors": 2, "confusion": [[500 - errors + 1, errors - 1], [1, 499]],
        "bins": [[0] * 14 + [1000], [0] * 14 + [990.0], [0] * 14 + [1000 - errors]], "wrong": [],
        "parameters": 25_100_000, "epochs": 2,
        "history": [{"epoch": n, "train_loss": 0.1 / n, "valid_loss": 0.2 / n, "cpu_seconds": 45.0} for n in (1, 2)],
        "seconds": 190.0, "cpu_seconds": 90.0, "finished": f"2026-11-2{seed}T10:00:00+00:00",
        "versions": {"torch": "2.13.0", "numpy": "2.4.0"}, **more,
    }  # fmt: skip


ELU = {"activation": "elu"}
POOL = {"pool": 2}
PLAN: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "budget": {"epochs": {"improved": 2}},
    "variants": [
        {"name": "improved", "recipe": "improved"},
        {"name": "elu", "recipe": "improved", "change": ELU, "says": "ELU for ReLU"},
        {"name": "pool", "recipe": "improved", "change": POOL, "against": "elu"},
        {"name": "absent", "recipe": "improved", "change": {"pool": 4}},
    ],
}
RUNS = [
    *(row("improved", seed, 50 + seed) for seed in (2, 0, 1)),
    *(row("elu", seed, 90 + seed, ELU) for seed in range(3)),
    *(row("pool", seed, 20 + seed, POOL) for seed in range(2)),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(PLAN))
    result_rows.write(tmp_path / "runs.jsonl", RUNS)
    return tmp_path


def told(*words: str) -> str:
    """Return what a command that goes well prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main.main(list(words)) == 0
    return printed.getvalue()


def lines(runs: list[result_rows.Row]) -> dict[str, study_report.VariantResult]:
    return {line.variant.name: line for line in study_report.results(study_plan.Study.model_validate(PLAN), runs)}


class TestLines:
    def test_each_against_its_control(self) -> None:
        """A variant is compared with the one it names, else with its recipe's own; the control with none."""
        table = lines(RUNS)
        assert list(table) == ["improved", "elu", "pool"]
        assert table["improved"].errors == [50, 51, 52] and table["improved"].verdict is None
        elu, pool = table["elu"].verdict, table["pool"].verdict
        assert elu and (elu.word, elu.difference) == ("hurt", 40)
        assert pool and (pool.word, pool.difference) == ("helped", 20.5 - 91)

    def test_rows_of_another_form_of_a_variant_do_not_count(self) -> None:
        """Rows from before a variant was changed, or of a seed that is not planned, are left out."""
        old = [row("elu", 0, 1, {**ELU, "dropout": 0.5}), row("elu", 7, 1, ELU)]
        assert lines([*old, *RUNS])["elu"].errors == [90, 91, 92]

    @pytest.mark.parametrize(
        "other", [{"train_images": 30}, {"judged": 500}, {"epochs": 1}, {"epochs": 3}, {"versions": {"form": 0}}]
    )
    def test_rows_of_another_budget_do_not_count(self, other: dict[str, Any]) -> None:
        """Rows of fewer images, of other epochs or of another form of training never make one mean with the others."""
        sizes = {"train_images": 60, "judge_images": 1000}
        plan = study_plan.Study.model_validate({**PLAN, "budget": {**PLAN["budget"], **sizes}})
        table = {
            line.variant.name: line for line in study_report.results(plan, [*RUNS, row("elu", 0, 1, ELU, **other)])
        }
        assert table["elu"].errors == [90, 91, 92]

    def test_a_run_that_stopped_early_counts(self) -> None:
        """Fewer epochs than the budget's are another budget, unless the variant's own early stop ended the run."""
        change = {"max_epochs": 9, "t2v_epochs": 1}
        variants = [{"name": "stop", "recipe": "improved", "change": change}]
        plan = study_plan.Study.model_validate({**PLAN, "variants": variants})
        run = row("stop", 0, 5, change)
        assert study_report.results(plan, [run]) == []
        run["history"][-1]["overfit_epochs"] = 1
        assert [line.errors for line in study_report.results(plan, [run])] == [[5]]

    def test_of_two_rows_of_a_seed_the_newest_counts(self) -> None:
        """Done anew on other images, a run does not count twice."""
        again = row("elu", 0, 70, ELU, finished="2026-11-29T10:00:00+00:00")
        assert lines([again, *RUNS])["elu"].errors == lines([*RUNS, again])["elu"].errors == [70, 91, 92]

    @pytest.mark.parametrize("other", [{"judged": 60}, {"train_images": 7}, {"classes": ["CXR", "Knee"]}])
    def test_rows_of_another_data_set_do_not_count(self, other: dict[str, Any]) -> None:
        """Errors on one data set are never compared with errors on another: the newest rows say which one it is."""
        mine = [row(name, 0, 7, change, **other) for name, change in (("improved", {}), ("elu", ELU))]
        newest = [{**run, "finished": "2026-12-01T10:00:00+00:00"} for run in mine]
        table = lines([*RUNS, *newest])
        assert {name: line.errors for name, line in table.items()} == {"improved": [7], "elu": [7]}

    def test_a_renamed_variant_keeps_its_runs(self) -> None:
        """``ablate`` does not do them again, so the page has to find them; so it does for a second name of one."""
        variants = [{"name": "elu-units", "recipe": "improved", "change": {**ELU, "dropout": 0}}, *PLAN["variants"][:2]]
        plan = study_plan.Study.model_validate({**PLAN, "variants": variants})
        table = {line.variant.name: line.errors for line in study_report.results(plan, RUNS)}
        assert table["elu-units"] == table["elu"] == [90, 91, 92]

    def test_only_the_planned_seeds_count(self) -> None:
        """Rows of other seeds than the study's, or the variant's own, are left out; the page counts what is planned."""
        variants = [{**PLAN["variants"][0], "seeds": [0, 1, 2]}, PLAN["variants"][1]]
        plan = study_plan.Study.model_validate({**PLAN, "seeds": [0, 7], "variants": variants})
        table = {line.variant.name: line.errors for line in study_report.results(plan, RUNS)}
        assert table == {"improved": [50, 51, 52], "elu": [90]}
        assert "4 of 5 runs are finished" in study_report.page(plan, study_report.results(plan, RUNS), [])

    def test_rows_of_another_precision_do_not_count(self) -> None:
        """Trainings in bfloat16 and in float32, which rows without the word are, never make one mean."""
        half = {"budget": {**PLAN["budget"], "precision": "bfloat16"}}
        plan = study_plan.Study.model_validate({**PLAN, **half})
        assert study_report.results(plan, RUNS) == []
        table = study_report.results(plan, [*RUNS, row("elu", 0, 7, ELU) | {"precision": "bfloat16"}])
        assert [(line.variant.name, line.errors) for line in table] == [("elu", [7])]

    def test_without_its_control_a_variant_has_no_verdict(self) -> None:
        """A variant whose control is not finished yet has no verdict."""
        line = lines(RUNS[3:6])["elu"]
        assert line.verdict is None and not line.is_control
        page = study_report.page(study_plan.Study.model_validate(PLAN), [line], [])
        assert "| no control yet |" in page

    def test_a_recipe_can_be_held_against_another(self) -> None:
        """It stands in the table of what it is compared with, and has a verdict by the noise of both."""
        variants = [*PLAN["variants"][:1], {"name": "baseline", "recipe": "baseline", "against": "improved"}]
        plan = study_plan.Study.model_validate(
            {**PLAN, "budget": {"epochs": {"improved": 2, "baseline": 2}}, "variants": variants}
        )
        runs = [*RUNS[:3], *(row("baseline", seed, 500 + seed) | {"recipe": "baseline"} for seed in range(3))]
        table = study_report.results(plan, runs)
        assert table[1].verdict is not None
        assert (table[1].verdict.word, table[1].verdict.difference) == ("hurt", 450)
        page = study_report.page(plan, table, [])
        assert page.count("## Changes to the recipe") == 1 and "| `baseline` | - | 500, 501, 502 |" in page

    def test_the_noise_is_that_of_the_table(self) -> None:
        """Two recipes held together have the noise of both: seeds that happen to agree prove nothing."""
        variants = [*PLAN["variants"][:1], {"name": "baseline", "recipe": "baseline", "against": "improved"}]
        budget = {"epochs": {"improved": 2, "baseline": 2}}
        plan = study_plan.Study.model_validate({**PLAN, "budget": budget, "variants": variants})
        runs = [
            *(row("improved", seed, errors) for seed, errors in enumerate((20, 60, 100))),
            *(row("baseline", seed, 90) | {"recipe": "baseline"} for seed in range(3)),
        ]
        verdict = study_report.results(plan, runs)[1].verdict
        assert verdict is not None and verdict.word == "no difference"

    def test_work_counts_only_where_it_was_counted_throughout(self) -> None:
        """A run that was begun before CPU time was counted has no part in the mean."""
        half = row("elu", 1, 90, ELU, cpu_seconds=45.0)
        half["history"][0].pop("cpu_seconds")
        plan = study_plan.Study.model_validate(PLAN)
        assert "| 90 |\n" in study_report.page(plan, study_report.results(plan, [row("elu", 0, 90, ELU), half]), [])
        assert "| - |\n" in study_report.page(plan, study_report.results(plan, [half]), [])


class TestReport:
    def test_page_and_figures(self, home: Path) -> None:
        """One command writes the page; what it says is what the rows say, and its pictures are there."""
        pytest.importorskip("matplotlib")
        assert "3 of 4 variants" in told("report", "--study", str(home / "study.yaml"))
        page = (home / "report.md").read_text()
        assert "8 of 12 runs are finished, trained on 60 images, judged on 1,000 others" in page
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "`elu`" in line]
        assert table[0][:5] == ["`elu`", "ELU for ReLU", "90, 91, 92", "91.0 ± 1.0", "+40.0"]
        assert table[0][5].startswith("hurt [")
        assert table[0][6:] == ["0.0125", "0.21%", "2.0", "25.1 M", "90"]
        assert table[1] == ["`elu`", "90.0", "1.0"]
        for name in ("confusion.svg", "reliability.svg", "curves.svg"):
            assert f"]({name})" in page and "<svg" in (home / name).read_text()

    def test_figures_are_of_every_recipe(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also of one that is held against another: side by side is what they are for."""
        pytest.importorskip("matplotlib")
        from watcher.training.study import study_charts

        variants = [*PLAN["variants"][:2], {"name": "baseline", "recipe": "baseline", "against": "improved"}]
        budget = {"epochs": {"improved": 2, "baseline": 2}}
        (home / "study.yaml").write_text(yaml.safe_dump({**PLAN, "budget": budget, "variants": variants}))
        result_rows.write(home / "runs.jsonl", [*RUNS, row("baseline", 0, 500) | {"recipe": "baseline"}])
        drawn: list[list[str]] = []
        for name in ("confusions", "reliability", "curves"):
            monkeypatch.setattr(study_charts, name, lambda of, path: drawn.append(list(of)))
        told("report", "--study", str(home / "study.yaml"))
        assert drawn == [["improved", "baseline"]] * 3

    def test_same_rows_give_the_same_bytes(self, home: Path) -> None:
        """Made again, nothing changes: what is committed changes only with its rows."""
        pytest.importorskip("matplotlib")
        names = ("report.md", "confusion.svg", "reliability.svg", "curves.svg")
        found = []
        for _ in range(2):
            told("report", "--study", str(home / "study.yaml"))
            found.append([(home / name).read_bytes() for name in names])
        assert found[0] == found[1]

    def test_audit_is_taken_in(self, home: Path) -> None:
        """The text that the audit of the data wrote beside the page is the page's last part."""
        pytest.importorskip("matplotlib")
        (home / "audit.md").write_text("## Audit\n\nwords\n")
        told("report", "--study", str(home / "study.yaml"))
        assert (home / "report.md").read_text().endswith("\n## Audit\n\nwords\n")

    def test_no_row_yet(self, home: Path) -> None:
        """A study that has not begun has a page that says so."""
        pytest.importorskip("matplotlib")
        (home / "runs.jsonl").unlink()
        told("report", "--study", str(home / "study.yaml"))
        assert "No run of 12 is finished." in (home / "report.md").read_text()

    def test_rows_that_do_not_count_are_told(self, home: Path) -> None:
        """Rows of another study are not left out in silence."""
        pytest.importorskip("matplotlib")
        result_rows.append(home / "runs.jsonl", row("other", 0, 3, {"pool": 7}))
        assert "9 rows read, 1 of them of other studies" in told("report", "--study", str(home / "study.yaml"))

    def test_rows_that_were_named_and_are_not_there(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A mistyped --runs never replaces the page by one that says that nothing is done."""
        (home / "report.md").write_text("before")
        code = main.main(["report", "--study", str(home / "study.yaml"), "--runs", str(home / "rums.jsonl")])
        assert (code, (home / "report.md").read_text()) == (Exit.DIRECTORY, "before")
        assert "rums.jsonl does not exist" in capsys.readouterr().err

    def test_a_place_that_can_not_be_written_is_told(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit code 5 and the file's name, no traceback."""
        pytest.importorskip("matplotlib")
        words = ["--study", str(home / "study.yaml"), "--out", str(home / "study.yaml" / "page")]
        assert main.main(["report", *words]) == Exit.DIRECTORY
        assert "study.yaml/page can not be read or written: Not a directory" in capsys.readouterr().err

    def test_misclassified_images_are_for_those_with_the_data(self, home: Path) -> None:
        """With the data at hand a sheet shows each error; the page does not have it."""
        pytest.importorskip("matplotlib")
        (home / "data" / "Hand").mkdir(parents=True)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(home / "data" / "Hand" / "0.png")  # blank: called HeadCT
        split = home / "split.csv"
        split.write_text("path,class,split\nHand/0.png,Hand,valid\n")
        data = ("--data", str(home / "data"), "--split", str(split))
        said = told("report", "--study", str(home / "study.yaml"), *data)
        assert "1 of 1 wrong" in said
        with Image.open(home / "misclassified-mednet-general.png") as sheet:
            assert sheet.width > 100
        page = (home / "report.md").read_text()
        assert "misclassified" not in page
        assert "](shipped.svg)" in page and "mednet-general (ECE" in (home / "shipped.svg").read_text()

    def test_misclassified_validation_images_are_named(self) -> None:
        """Of a study judged on the validation part the page names each image, for what it is taken, and how often."""
        plan = study_plan.Study.model_validate({**PLAN, "budget": {**PLAN["budget"], "judge_part": "valid"}})
        wrong = ["Hand/1.png", "CXR", 0.9], ["CXR/2.png", None, 0.0]
        runs = [
            *(row("improved", seed, 50, wrong=wrong[: seed + 1]) for seed in range(2)),
            row("elu", 0, 90, ELU, wrong=[wrong[0]]),
        ]
        page = study_report.page(plan, study_report.results(plan, runs), [])
        assert "| Hand/1.png | CXR | 2 of 2 | 1 of 1 |\n| CXR/2.png | broken | 1 of 2 | 0 of 1 |" in page
        assert "Hand/1.png" not in study_report.page(
            study_plan.Study.model_validate(PLAN), study_report.results(study_plan.Study.model_validate(PLAN), runs), []
        )

    @pytest.mark.parametrize(
        ("claim", "word", "says"),
        [
            ("step", "helped", "**holds**"), ("step", "no difference", "can not be told"),
            ("undone", "hurt", "**holds**"), ("undone", "unstable", "can not be told"),
            ("tried", "helped", "**does not hold**: it helps"), ("tried", "no difference", "nothing against it"),
            ("step", "too few seeds", "can not be told"),
        ],
    )  # fmt: skip
    def test_claims_are_answered_by_verdicts(self, claim: str, word: str, says: str) -> None:
        """A claim holds where its variant's verdict says so, and an open verdict is never taken for an answer."""
        assert earlier_claims.answer(claim, significance.ChangeVerdict(word, 0, 0, 0)) == says

    def test_claims_are_on_the_page(self) -> None:
        """Each claim of the proof of concept that the study names has a row that says whether it holds."""
        variants = [PLAN["variants"][0], {**PLAN["variants"][1], "claim": "undone"}]
        plan = study_plan.Study.model_validate({**PLAN, "variants": variants})
        page = study_report.page(plan, study_report.results(plan, RUNS), [])
        assert "| `elu` | ELU for ReLU | to take it back hurts | hurt | **holds** |" in page

    @pytest.mark.parametrize("name", [".", "full"])
    def test_the_pages_in_docs_are_those_of_their_rows(self, name: str, tmp_path: Path) -> None:
        """The committed pages are as ``report`` writes them today: no row, rule or audit is younger than its page."""
        pytest.importorskip("matplotlib")
        home = TOP / "docs" / "study" / name
        for beside in ("audit.md", "shipped.svg"):
            if (home / beside).exists():
                shutil.copy(home / beside, tmp_path)
        told("report", "--study", str(home / "study.yaml"), "--out", str(tmp_path))
        assert (tmp_path / "report.md").read_text() == (home / "report.md").read_text()

    def test_git_ignores_the_sheet(self) -> None:
        """Nobody commits it by accident."""
        top = TOP
        ended = subprocess.run(["git", "check-ignore", "-q", "docs/study/misclassified-a.png"], cwd=top, check=False)
        if ended.returncode == 128:
            pytest.skip("not a git repository")
        assert ended.returncode == 0
