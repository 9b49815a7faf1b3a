"""Define the recipes by which networks are trained, and make changed copies of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from watcher.model import mednet
from watcher.training.data import augmentation


@dataclass(frozen=True)
class Recipe:
    """The settings of a training by stochastic gradient descent.

    A training stops early once the validation loss has been above ``t2v_ratio`` times the training loss in
    ``t2v_epochs`` epochs, not necessarily in a row, as in NVIDIA's MedNet notebook. Maps by class take the name of a
    class, those of ``augment`` also ``all``.
    """

    name: str
    network: mednet.MedNetConfig
    learning_rate: float
    batch_size: int
    t2v_ratio: float
    t2v_epochs: int
    max_epochs: int = 20
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """The course of the learning rate: ``cosine`` falls to zero, ``steps`` to a tenth for the last third."""
    averaging: Literal["none", "ema", "swa"] = "none"
    """The mean of the weights: ``ema`` over about 100 steps, ``swa`` over the ends of the epochs of the second half."""
    label_smoothing: float = 0.0
    class_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the weights of classes in the loss."""
    resample: dict[str, float] = field(default_factory=dict)
    """Factors of how often images of a class are drawn. An epoch has as many images as without them."""
    augment: dict[str, dict[str, float]] = field(default_factory=dict)
    """The strength of each kind of change by class, see :mod:`watcher.training.data.augmentation`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """The precision of convolutions and linear layers while training. Weights, loss and judging are always float32."""

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain values, equal to themselves after a trip through JSON."""
        return dict(json.loads(json.dumps(asdict(self))))

    def non_default(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults as plain values, without the name.

        They identify a training. A setting that is added to recipes later does not change them, at its default.
        """
        defaults = Recipe("", mednet.MedNetConfig(), math.nan, 0, math.nan, 0).plain()
        network = {k: v for k, v in self.plain()["network"].items() if v != defaults["network"][k]}
        own = {k: v for k, v in self.plain().items() if v != defaults[k] and k not in ("name", "network")}
        return {**own, "network": network}


RECIPES = {
    "baseline": Recipe("baseline", mednet.BASELINE, 0.01, 300, 1.2, 3),
    "improved": Recipe("improved", mednet.IMPROVED, 0.05, 64, 1.5, 4),
    "plus": Recipe(
        "plus", mednet.PLUS, 0.05, 64, 1.5, 4, max_epochs=12, schedule="cosine", label_smoothing=0.02,
        augment={"shift": {"all": 2}, "flip": {"Hand": 0.5, "BreastMRI": 0.5, "HeadCT": 0.5}, "rotation": {"Hand": 30}},
    ),
}  # fmt: skip
"""``plus`` joins the changes that made fewer errors in the screen of docs/study, where it is judged as a whole."""


def for_classes(recipe: Recipe, classes: int) -> Recipe:
    """Return a recipe for data with so many classes."""
    return replace(recipe, network=replace(recipe.network, classes=classes))


_NETWORK = {part.name for part in fields(mednet.MedNetConfig)} - {"classes", "none", "rank", "side"}
_TRAINING = {part.name for part in fields(Recipe)} - {"name", "network"}


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a copy with some settings changed, which may be those of the network.

    Raises:
        ValueError: There is no such setting, or the value is impossible.
    """
    unknown = sorted(set(changes) - _NETWORK - _TRAINING)
    if unknown:
        raise ValueError(
            f"there is no setting {', '.join(unknown)}; there are {', '.join(sorted(_NETWORK | _TRAINING))}"
        )
    values = asdict(recipe)
    values["network"].update({k: v for k, v in changes.items() if k in _NETWORK})
    values.update({k: v for k, v in changes.items() if k in _TRAINING})
    try:
        result = TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    problems = _problems(result)
    if problems:
        raise ValueError("; ".join(problems))
    return result


def unknown_classes(recipe: Recipe, classes: Sequence[str]) -> list[str]:
    """Return names in the maps by class of a recipe that are none of the classes, so that they would have no effect."""
    named = {*recipe.class_factors, *recipe.resample}
    named |= {name for strengths in recipe.augment.values() for name in strengths if name != "all"}
    return sorted(named - set(classes))


def _problems(recipe: Recipe) -> list[str]:
    """Say in words why no training can be done by a recipe."""
    net = recipe.network
    least = {
        "batch_size": (1, recipe.batch_size), "max_epochs": (1, recipe.max_epochs), "pool": (1, net.pool),
        "t2v_epochs": (1, recipe.t2v_epochs), "filters": (1, min(net.filters, default=0)),
        "kernels": (1, min(net.kernels, default=0)), "hidden": (1, min(net.hidden)), "dropout": (0, net.dropout),
        "learning_rate": (0, recipe.learning_rate), "momentum": (0, recipe.momentum),
        "weight_decay": (0, recipe.weight_decay), "label_smoothing": (0, recipe.label_smoothing),
        "class_factors": (0, min(recipe.class_factors.values(), default=0)),
        "resample": (0, min(recipe.resample.values(), default=0)),
    }  # fmt: skip
    problems = [f"{name}: {value} is less than {bound}" for name, (bound, value) in least.items() if not value >= bound]
    below_one = {"dropout": net.dropout, "momentum": recipe.momentum, "label_smoothing": recipe.label_smoothing}
    problems += [f"{name}: {value} is not below 1" for name, value in below_one.items() if value >= 1]
    problems += [
        f"augment: there is no kind {kind}; there are {', '.join(augmentation.KINDS)}"
        for kind in recipe.augment
        if kind not in augmentation.KINDS
    ]
    if len(net.filters) != len(net.kernels):
        problems.append(
            f"there are {len(net.filters)} filters and {len(net.kernels)} kernels: give one for each convolution"
        )
    elif not problems and net.map_side < 1:
        problems.append("the convolutions leave nothing of an image: take smaller kernels, or pool less")
    return problems
