"""The page on a study: generated from rows alone, never typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from watcher.training.fit.recipes import Recipe
from watcher.training.fit.result_rows import Row
from watcher.training.study import earlier_claims, significance
from watcher.training.study.study_plan import FORM, Budget, Seeds, Study, Variant, planned_recipe

RULE = f"""\
A verdict compares a variant's errors with those of its control, on the same images. Errors are taken as square roots,
where the noise of a seed is alike for many and few errors; that noise is the median over all variants of a table.
A difference of the means counts when it exceeds {significance.THRESHOLD:g} standard errors: of a hundred changes that
do nothing, less than one is then called a help or a harm. **Unstable** is what only one run calls a harm, by far: now
and then a training ends in a bad epoch, whatever was changed. **No difference** does not mean that there is none, but
that so few seeds can not show it: in brackets are the errors between which a variant could not have been told from its
control. The images judged are the same for all, so what holds on other images is not in these figures, and trainings
of another length may answer otherwise: what learns fast is favoured by a short one.

**Loss** is the cross-entropy on the judged images, without class weights or smoothing, **ECE** the expected calibration
error: how far confidence is from the share that is right, in 15 bins weighted by their images. No temperature is fitted
to these networks."""

_KEPT = {
    "last": "The network of a run's last epoch is judged.",
    "best": "The network of the epoch with the fewest errors on the watched images is judged.",
}
_OPTIMISTIC = " Those are the judged ones here, so that all figures are a little kind."


@dataclass(frozen=True)
class VariantResult:
    """A variant with its runs in order of seeds, and its verdict; None for a control, or while that has no run."""

    variant: Variant
    runs: tuple[Row, ...]
    is_control: bool
    verdict: significance.ChangeVerdict | None

    @property
    def errors(self) -> list[int]:
        """By seed."""
        return [run["errors"] for run in self.runs]


def results(plan: Study, runs: Sequence[Row]) -> list[VariantResult]:
    """The study's variants that have runs, in its order, each compared with its control."""
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
    """The name of the variant it is compared with: the one it names, else the one that changes nothing."""
    if variant.against:
        return variant.against
    return next((v.name for v in plan.variants if v.recipe == variant.recipe and not v.change), variant.name)


def compared_with(variant: Variant, plan: Study) -> str:
    """The recipe that its control is of: its own, unless it is held against one of another."""
    control = control_of(variant, plan)
    return next((v.recipe for v in plan.variants if v.name == control), variant.recipe)


def _on_one_data_set(trained: Sequence[tuple[Row, Recipe]]) -> list[tuple[Row, Recipe]]:
    """Those on the images of the newest: errors on other images are nothing to compare with."""
    if not trained:
        return []
    newest = _images(max((run for run, _ in trained), key=lambda run: str(run["finished"])))
    return [(run, recipe) for run, recipe in trained if _images(run) == newest]


def _images(run: Row) -> tuple[int, int, list[str]]:
    """What tells one data set from another in a row."""
    return run["train_images"], run["judged"], sorted(run["classes"])


def _runs_of(recipe: Recipe, seeds: Seeds, trained: Sequence[tuple[Row, Recipe]]) -> tuple[Row, ...]:
    """The rows of trainings by this recipe with these seeds, under whatever name, in order; of one seed the newest.

    So a variant that was renamed keeps its runs, as it does for ``ablate``. Rows of another form of it, left from
    before it or the budget was changed, are not among them.
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
    """The recipe that a run of this budget was trained by; None: it is not of this budget, or of another form."""
    sizes = (budget.train_images, run["train_images"]), (budget.judge_images, run["judged"])
    if any(asked not in (None, had) for asked, had in sizes) or run["versions"].get("form", FORM) != FORM:
        return None
    try:
        variant = Variant(name=run["variant"], recipe=run["recipe"], change=run["change"])
        recipe = planned_recipe(variant, budget)
    except (KeyError, ValueError):  # a recipe or a setting that is not there any more
        return None
    return replace(recipe, precision=run.get("precision", "float32"))


def _has_ended(run: Row, recipe: Recipe) -> bool:
    """Whether a training by this recipe ends where the run did: else it had another budget of epochs."""
    if run["epochs"] < recipe.max_epochs:
        return bool(run["history"][-1].get("overfit_epochs", 0) >= recipe.t2v_epochs)
    return bool(run["epochs"] == recipe.max_epochs)


def page(plan: Study, table: Sequence[VariantResult], pictures: Sequence[tuple[str, str, str]], audit: str = "") -> str:
    """The whole page, Markdown. ``pictures`` are titles, file names and captions."""
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
    """The mean of the runs that counted it in every epoch."""
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
    """Each image that any run of a variant is wrong about: by how many runs, and for what it is taken."""
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
