"""Send an image to review because of facts about its file, although the network is sure of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from watcher.core.records import Decision, Decoded, Outcome
from watcher.images import dicom_vocabulary

REASONS = ("multi_frame", "metadata_disagrees")


@dataclass(frozen=True)
class ReviewRules:
    """The facts that count: several frames, and (``metadata``) tags that contradict the class."""

    multi_frame: Literal["review", "middle"] = "review"
    metadata: bool = True


def apply(decision: Decision, image: Decoded, rules: ReviewRules) -> Decision:
    """Return the decision, or review in its place. The class never changes."""
    if image.frames > 1 and rules.multi_frame == "review":
        detail = f"{image.frames} frames (or pages), of which the middle one was classified"
        return replace(decision, outcome=Outcome.REVIEW, reason="multi_frame", detail=detail)
    if not rules.metadata or decision.outcome is not Outcome.SORTED or decision.label is None:
        return decision
    disagreement = dicom_vocabulary.disagreement(decision.label, image.modality, image.body_part)
    if disagreement is None:
        return decision
    return replace(decision, outcome=Outcome.REVIEW, reason="metadata_disagrees", detail=disagreement)
