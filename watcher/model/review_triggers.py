"""What sends a picture to a person although the network is sure of it: what its file says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from watcher.core.records import Decision, Decoded, Outcome
from watcher.images import dicom_vocabulary

REASONS = ("multi_frame", "metadata_disagrees")


@dataclass(frozen=True)
class ReviewRules:
    """Whether files of several frames are shown to a person, and those whose tags speak against their class."""

    multi_frame: Literal["review", "middle"] = "review"
    metadata: bool = True


def take(decision: Decision, image: Decoded, rules: ReviewRules) -> Decision:
    """The decision, or a review in its place. Never another class."""
    if image.frames > 1 and rules.multi_frame == "review":
        detail = f"{image.frames} frames (or pages), of which the middle one was looked at"
        return replace(decision, outcome=Outcome.REVIEW, reason="multi_frame", detail=detail)
    if not rules.metadata or decision.outcome is not Outcome.SORTED or decision.label is None:
        return decision
    against = dicom_vocabulary.disagreement(decision.label, image.modality, image.body_part)
    if against is None:
        return decision
    return replace(decision, outcome=Outcome.REVIEW, reason="metadata_disagrees", detail=against)
