"""Whether what arrives is still what the model was made for: the recent files against earlier or validation ones.

Pure policy: samples and the time come as arguments. Three figures of a sliding
window are watched: the share of images that the model leaves to a person, its
mean confidence, and the mix of classes. A site's mix may differ from that of
validation for good, so that one is held against the site's own past alone.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from watcher.core.records import Decision, Outcome

TELL_S = 6 * 3600.0
"""How often a drift that lasts is told."""

NOT_OF_THE_MODEL = frozenset({"multi_frame", "blank_image", "duplicate", "name_taken"})
"""Reasons for review that say nothing of how well the model knows an image."""

FIGURES = ("review_rate", "confidence", "class_mix")


@dataclass(frozen=True)
class DriftRules:
    """How long the windows are, and how far a figure may go. None: as far as it likes.

    ``review_rate`` is how far it may rise, ``confidence`` how far its mean may fall, ``class_mix`` how large the
    share of files may be that would have to be of another class for the mixes to be the same (total variation).
    """

    window_files: int = 2000
    window_h: float = 168.0
    min_files: int = 500
    reference_files: int = 10000
    review_rate: float | None = 0.05
    confidence: float | None = 0.03
    class_mix: float | None = 0.4


@dataclass(frozen=True, slots=True)
class Sample:
    """One image that was classified: when (seconds since 1970), as what, how surely, and whether a person was asked."""

    at_s: float
    label: str | None
    confidence: float
    review: bool


@dataclass(frozen=True)
class Means:
    """The three figures of some files. None: not known. ``mix`` holds each class's share."""

    review_rate: float | None = None
    confidence: float | None = None
    mix: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DriftReport:
    """What was found. ``against`` says what each figure was held against, validation or the site's own past."""

    files: int
    hours: float
    window: Means
    reference: Means
    distance: float | None
    against: Mapping[str, str]
    suspected: tuple[str, ...]


def sample(decision: Decision, at_s: float) -> Sample | None:
    """What a decision tells; None if nothing was classified."""
    outcome = decision.outcome
    if outcome is Outcome.QUARANTINE and decision.label is None:
        return None
    review = outcome is Outcome.REVIEW and decision.reason not in NOT_OF_THE_MODEL
    return Sample(at_s, decision.label, decision.confidence, review)


def validation(told: object) -> Means:
    """The figures stored with the weights (``training["validation"]``); whatever is missing or odd is not known."""
    facts: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    mix = facts.get("class_mix")
    shares = {str(name): _share(value) for name, value in mix.items()} if isinstance(mix, Mapping) else {}
    known = {name: share for name, share in shares.items() if share is not None}
    return Means(
        _share(facts.get("review_rate")),
        _share(facts.get("confidence_mean")),
        known if len(known) == len(shares) and math.isclose(sum(known.values()), 1.0, abs_tol=0.01) else {},
    )


def _share(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


class _Sums:
    """Files, and their figures, kept as sums so that a look costs the same however long the window is."""

    def __init__(self) -> None:
        self.files: deque[Sample] = deque()
        self._reviews, self._confidence = 0, 0.0
        self._classes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.files)

    def add(self, sample: Sample) -> None:
        self.files.append(sample)
        self._count(sample, 1)

    def take(self) -> Sample:
        """The oldest."""
        sample = self.files.popleft()
        self._count(sample, -1)
        return sample

    def _count(self, sample: Sample, sign: int) -> None:
        self._reviews += sign * sample.review
        self._confidence = self._confidence + sign * sample.confidence if self.files else 0.0
        if sample.label is not None:
            self._classes[sample.label] += sign

    def means(self) -> Means:
        if not self.files:
            return Means()
        known = self._classes.total()
        mix = {name: count / known for name, count in sorted(self._classes.items()) if count}
        return Means(self._reviews / len(self), min(1.0, self._confidence / len(self)), mix)


class Drift:
    """The windows. ``validated`` are the figures of validation, ``earlier`` the site's files so far, oldest first."""

    def __init__(self, rules: DriftRules, validated: Means | None = None, earlier: Iterable[Sample] = ()) -> None:
        self._rules, self._validated = rules, validated or Means()
        self._recent, self._past = _Sums(), _Sums()
        self._told_s = float("-inf")
        self.report: DriftReport | None = None
        """Of the last :meth:`look`."""
        for each in earlier:
            self.add(each)

    def add(self, sample: Sample | None) -> None:
        """One more file; None is none."""
        if sample is None:
            return
        self._recent.add(sample)
        if len(self._recent) > self._rules.window_files:
            self._let_go()

    def _let_go(self) -> None:
        """The oldest file of the window becomes the newest of the past."""
        self._past.add(self._recent.take())
        if len(self._past) > self._rules.reference_files:
            self._past.take()

    def look(self, now_s: float) -> DriftReport:
        """The figures at this time, in seconds since 1970."""
        while len(self._recent) and self._recent.files[0].at_s < now_s - self._rules.window_h * 3600:
            self._let_go()
        files = len(self._recent)
        window, past = self._recent.means(), self._past.means() if len(self._past) >= self._rules.min_files else Means()
        against = {
            "review_rate": _known(self._validated.review_rate, past.review_rate),
            "confidence": _known(self._validated.confidence, past.confidence),
            "class_mix": "site" if past.mix else "validation" if self._validated.mix else "nothing",
        }
        reference = Means(
            past.review_rate if self._validated.review_rate is None else self._validated.review_rate,
            past.confidence if self._validated.confidence is None else self._validated.confidence,
            past.mix or self._validated.mix,
        )
        distance = _distance(window.mix, reference.mix) if window.mix and reference.mix else None
        hours = (now_s - self._recent.files[0].at_s) / 3600 if files else 0.0
        enough = files >= self._rules.min_files
        suspected = self._suspected(window, reference, distance if past.mix else None) if enough else ()
        self.report = DriftReport(files, hours, window, reference, distance, against, suspected)
        return self.report

    def _suspected(self, window: Means, reference: Means, distance: float | None) -> tuple[str, ...]:
        rules = self._rules
        gone = {
            "review_rate": _beyond(window.review_rate, reference.review_rate, rules.review_rate),
            "confidence": _beyond(reference.confidence, window.confidence, rules.confidence),
            "class_mix": _beyond(distance, 0.0, rules.class_mix),
        }
        return tuple(name for name in FIGURES if gone[name])

    def to_tell(self, now_s: float) -> DriftReport | None:
        """The report, if it is time to warn: as soon as something is suspected, and again while that lasts."""
        report = self.look(now_s)
        if not report.suspected or now_s - self._told_s < TELL_S:
            return None
        self._told_s = now_s
        return report


def _known(validated: float | None, past: float | None) -> str:
    return "validation" if validated is not None else "nothing" if past is None else "site"


def _beyond(higher: float | None, lower: float | None, limit: float | None) -> bool:
    """Whether it is, by more than the limit; not so while anything of it is unknown."""
    if higher is None or lower is None or limit is None:
        return False
    return higher - lower > limit


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Total variation distance of two mixes, 0 to 1."""
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other}) / 2
