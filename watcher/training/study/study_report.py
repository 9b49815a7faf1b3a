"""Write the page on a study from the rows of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from watcher.training.fit.recipes import Recipe
from watcher.training.fit.result_rows import Row
from watcher.training.study import earlier_claims, significance
from watcher.training.study.study_plan import FORM, Budget, Seeds, Study, Variant, planned_recipe

RULE = f"""\
A verdict compares a variant's errors with those of its control on the same images. Errors are compared as square roots,
because the noise of a seed is then the same for many and few errors. That noise is the median over all variants of a
table. A difference of the means counts if it exceeds {significance.THRESHOLD:g} standard errors: of a hundred changes
without effect, less than one is then said to help or hurt. **Unstable** means that a single run is far worse than the
others: now and then a training ends in a bad epoch, whatever was changed. **No difference** does not mean that there is
none, but that so few seeds cannot show it. In brackets are the errors between which a variant cannot be told from its
control. All are judged on the same images, so these figures do not say what holds on others. Trainings of another
length may answer otherwise: a short one favours what learns fast.

**Loss** is the cross-entropy on the judged images, without class weights or smoothing. **ECE** is the expected
calibration error: how far confidence is from the share that is right, in 15 bins weighted by their images. No
temperature is fitted to these networks."""

_KEPT = {
    "last": "The network of a run's last epoch is judged.",
    "best": "The network of the epoch with the fewest errors on the watched images is judged.",
}
_OPTIMISTIC = " Here they are the judged ones, so all figures are a little too good."


@dataclass(frozen=True)
class VariantResult:
    """A variant with its runs in order of seeds.

    ``verdict`` is None for a control, and as long as the control has no run.
    """

    variant: Variant
    runs: tuple[Row, ...]
    is_control: bool
    verdict: significance.ChangeVerdict | None

    @property
    def errors(self) -> list[int]:
        """The errors by seed."""
        return [run["errors"] for run in self.runs]


def results(plan: Study, runs: Sequence[Row]) -> list[VariantResult]:
    """Return the study's variants that have runs, in its order, each compared with its control."""
    fitting = [(run, _trained_by(run, plan.budget)) for run in runs]
    trained = _on_one_data_set([(run, recipe) for run, recipe in fitting if recipe is not None])
    of = {v.name: _runs_of(planned_recipe(v, plan.budget), plan.seeds_of(v), trained) for v in plan.variants}
    group = {variant.name: compared_with(variant, plan) for variant in plan.variants}
    spreads = {
        recipe: significance.noise([[run["errors"] for run in of[name]] for name in group if group[name] == recipe])
        for recipe in set(group.values())
    }
    found = []
    for variant in plan.variants:
        control = of[control_of(variant, plan)]
        is_control = control_of(variant, plan) == variant.name
        verdict = None
        if of[variant.name] and control and not is_control:
            seeds = [[run["errors"] for run in each] for each in (of[variant.name], control)]
            verdict = significance.compare(seeds[0], seeds[1], spreads[group[variant.name]])
        if of[variant.name]:
            found.append(VariantResult(variant, of[variant.name], is_control, verdict))
    return found


def control_of(variant: Variant, plan: Study) -> str:
    """Return the name of the variant that it is compared with: the one that it names, else the unchanged recipe."""
    if variant.against:
        return variant.against
    return next((v.name for v in plan.variants if v.recipe == variant.recipe and not v.change), variant.name)


def compared_with(variant: Variant, plan: Study) -> str:
    """Return the recipe of its control: its own, unless it names a control of another recipe."""
    control = control_of(variant, plan)
    return next((v.recipe for v in plan.variants if v.name == control), variant.recipe)


def _on_one_data_set(trained: Sequence[tuple[Row, Recipe]]) -> list[tuple[Row, Recipe]]:
    """Return the runs on the same images as the newest run. Errors on other images cannot be compared."""
    if not trained:
        return []
    newest = _images(max((run for run, _ in trained), key=lambda run: str(run["finished"])))
    return [(run, recipe) for run, recipe in trained if _images(run) == newest]


def _images(run: Row) -> tuple[int, int, list[str]]:
    """Return the entries of a row that differ between data sets."""
    return run["train_images"], run["judged"], sorted(run["classes"])


def _runs_of(recipe: Recipe, seeds: Seeds, trained: Sequence[tuple[Row, Recipe]]) -> tuple[Row, ...]:
    """Return the rows of trainings by this recipe with these seeds, in order; the newest of each seed.

    The name does not matter, so that a variant that was renamed keeps its runs, as it does for ``ablate``. Rows from
    before the variant or the budget was changed are left out.
    """
    form = recipe.non_default()
    newest: dict[int, Row] = {}
    for run, made_by in trained:
        if run["seed"] not in seeds or made_by.non_default() != form or not _has_ended(run, recipe):
            continue
        if run["seed"] not in newest or run["finished"] >= newest[run["seed"]]["finished"]:
            newest[run["seed"]] = run
    return tuple(newest[seed] for seed in sorted(newest))


def _trained_by(run: Row, budget: Budget) -> Recipe | None:
    """Return the recipe that a run was trained by, or None if it is of another budget or version of the settings."""
    sizes = (budget.train_images, run["train_images"]), (budget.judge_images, run["judged"])
    if any(asked not in (None, had) for asked, had in sizes) or run["versions"].get("form", FORM) != FORM:
        return None
    try:
        variant = Variant(name=run["variant"], recipe=run["recipe"], change=run["change"])
        recipe = planned_recipe(variant, budget)
    except (KeyError, ValueError):  # a recipe or a setting that no longer exists
        return None
    return replace(recipe, precision=run.get("precision", "float32"))


def _has_ended(run: Row, recipe: Recipe) -> bool:
    """Return True if a training by this recipe ends where the run did. Else it had another budget of epochs."""
    if run["epochs"] < recipe.max_epochs:
        return bool(run["history"][-1].get("overfit_epochs", 0) >= recipe.t2v_epochs)
    return bool(run["epochs"] == recipe.max_epochs)


def page(plan: Study, table: Sequence[VariantResult], pictures: Sequence[tuple[str, str, str]], audit: str = "") -> str:
    """Return the page as Markdown. ``pictures`` are titles, file names and captions."""
    runs = [run for line in table for run in line.runs]
    planned = sum(len(plan.seeds_of(variant)) for variant in plan.variants)
    parts = ["# What each change does", "", "Generated by `mednet-watcher report`; do not edit.", ""]
    kind = _OPTIMISTIC if plan.budget.keep == "best" and not plan.budget.watch_images else ""
    parts += [_summary(runs, planned), f"{_KEPT[plan.budget.keep]}{kind}", "", RULE]
    groups = [compared_with(line.variant, plan) for line in table]
    for recipe in dict.fromkeys(groups):
        chosen = [line for line, group in zip(table, groups, strict=True) if group == recipe]
        parts += ["", f"## Changes to the recipe `{recipe}`", "", *_table(chosen)]
        parts += ["", "Errors by true class, mean over seeds:", "", *_by_class(chosen)]
    claims = [(v.name, v.says, v.claim, verdict) for v, verdict in _judged(table) if v.claim]
    if claims:
        parts += [
            "",
            "## What of the proof of concept holds",
            "",
            earlier_claims.CLAIM,
            "",
            *earlier_claims.table(claims),
        ]
    if plan.budget.judge_part != plan.budget.train_part:
        parts += ["", "## Images that runs take for another class", "", *_misclassified(table)]
    for title, name, caption in pictures:
        parts += ["", f"## {title}", "", f"![{title}]({name})", "", caption]
    return "\n".join(parts) + "\n" + (f"\n{audit}" if audit else "")


def _summary(runs: Sequence[Row], planned: int) -> str:
    if not runs:
        return f"No run of {planned} is finished."
    sizes = {(run["train_images"], run["judged"]) for run in runs}
    images = "; ".join(f"trained on {train:,} images, judged on {judged:,} others" for train, judged in sorted(sizes))
    versions = sorted({f"torch {run['versions']['torch']}, numpy {run['versions']['numpy']}" for run in runs})
    days = sorted(run["finished"][:10] for run in runs)
    return f"{len(runs)} of {planned} runs are finished, {images}, from {days[0]} to {days[-1]}, {'; '.join(versions)}."


_HEAD = (
    "| variant | what changes | errors by seed | mean ± sd | difference | verdict | loss | ECE | wrong at 99% or more "
    "| parameters | CPU seconds |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def _table(table: Sequence[VariantResult]) -> list[str]:
    return [*_HEAD, *map(_cells, table)]


def _cells(line: VariantResult) -> str:
    errors, runs = line.errors, line.runs
    spread = f" ± {stdev(errors):.1f}" if len(errors) > 1 else ""
    difference, word = "", "control" if line.is_control else "no control yet"
    if line.verdict:
        known = line.verdict.low == line.verdict.low  # not nan
        interval = f" [{line.verdict.low:.0f} … {line.verdict.high:.0f}]" if known else ""
        difference, word = f"{line.verdict.difference:+.1f}", f"{line.verdict.word}{interval}"
    cells = (
        f"`{line.variant.name}`",
        line.variant.says or "-",
        ", ".join(map(str, errors)),
        f"{fmean(errors):.1f}{spread}",
        difference,
        word,
        f"{fmean(run['loss'] for run in runs):.4f}",
        f"{100 * fmean(run['ece'] for run in runs):.2f}%",
        f"{fmean(run['sure_errors'] for run in runs):.1f}",
        f"{runs[0]['parameters'] / 1e6:.1f} M",
        _mean_cpu_seconds(runs),
    )
    return f"| {' | '.join(cells)} |"


def _mean_cpu_seconds(runs: Sequence[Row]) -> str:
    """Return the mean over the runs that measured it in every epoch."""
    known = [run["cpu_seconds"] for run in runs if all(epoch.get("cpu_seconds") for epoch in run["history"])]
    return f"{fmean(known):.0f}" if known else "-"


def _by_class(table: Sequence[VariantResult]) -> list[str]:
    names = table[0].runs[0]["classes"]
    head = [f"| variant | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return head + [f"| `{line.variant.name}` | {' | '.join(_class_errors(line, names))} |" for line in table]


def _class_errors(line: VariantResult, names: Sequence[str]) -> list[str]:
    return [f"{fmean(run['errors_by_class'][name] for run in line.runs):.1f}" for name in names]


def _judged(table: Sequence[VariantResult]) -> list[tuple[Variant, significance.ChangeVerdict | None]]:
    return [(line.variant, line.verdict) for line in table]


def _misclassified(table: Sequence[VariantResult]) -> list[str]:
    """List each image that a run gets wrong: by how many runs of each variant, and what it is taken for."""
    wrong: dict[str, dict[str, list[str]]] = {}
    for line in table:
        for run in line.runs:
            for path, predicted, _ in run["wrong"]:
                wrong.setdefault(path, {}).setdefault(line.variant.name, []).append(predicted or "broken")
    head = [
        f"| image | taken for | {' | '.join(f'`{line.variant.name}`' for line in table)} |",
        "|---" * (len(table) + 2) + "|",
    ]
    found = []
    for path, by in sorted(wrong.items(), key=lambda each: (-len(each[1]), each[0])):
        classes = sorted({name for names in by.values() for name in names})
        counts = [f"{len(by.get(line.variant.name, ()))} of {len(line.runs)}" for line in table]
        found.append(f"| {path} | {', '.join(classes)} | {' | '.join(counts)} |")
    return [*head, *found] if found else ["None."]
