"""Make new weights of a network that was adapted to a site."""

from __future__ import annotations

from dataclasses import asdict, replace

from watcher.model.checkpoint import Checkpoint
from watcher.training.data.labelled_images import Examples
from watcher.training.site.fine_tuning import Adapted


def make(present: Checkpoint, adapted: Adapted, learnt: Examples, held_back: Examples) -> Checkpoint:
    """Return the checkpoint of an adapted network; ``present`` are the weights that it was adapted from."""
    tensors = {name: value.half().numpy() for name, value in adapted.net.state_dict().items()}
    validation = {"review_rate": adapted.review_rate, "confidence_mean": float(adapted.confidence.mean())}
    about = {"from": present.digest, "learnt": len(learnt.labels), "kept_back": len(held_back.labels)}
    return replace(
        present,
        tensors={**tensors, **adapted.known.tensors()},
        thresholds={**asdict(adapted.limits), "temperature": adapted.temperature},
        # The rates of wrong images at these points stay: they were measured on the weights of before.
        operating=tuple({**point, **asdict(adapted.limits_at(point["accept_rate"]))} for point in present.operating),
        training={
            **present.training,
            # Drift is measured against these. The mix of classes is that of the base data, and stays.
            "validation": {**present.training.get("validation", {}), **validation},
            "adapted": [*present.training.get("adapted", []), about],
        },
        digest="",
    )
