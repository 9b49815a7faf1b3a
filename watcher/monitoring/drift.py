"""Detect drift: recent files that differ from earlier files of the site, or from the validation images.

Pure functions of samples and times, which come as arguments. Three figures of a sliding window are watched: the share
of images that the model leaves to a person (``review_rate``), its mean confidence, and the mix of classes. A site's
mix may always differ from that of the validation images, so only the mix of the site's own past can raise a warning.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from watcher.core.records import Decision, Outcome

WARNING_PERIOD_S = 6 * 3600.0
"""Seconds between two warnings of a drift that lasts."""

RULE_REASONS = frozenset({"multi_frame", "blank_image", "duplicate", "name_taken"})
"""Reasons for review that come from rules, and say nothing about how well the model knows an image."""

FIGURES = ("review_rate", "confidence", "class_mix")


@dataclass(frozen=True)
class DriftRules:
    """Lengths of the windows, and the limits of the figures. A limit of None is not checked.

    ``review_rate`` may rise by its limit, and the mean ``confidence`` may fall by its. ``class_mix`` limits the share
    of files that would have to be of another class for the two mixes to be equal (the total variation distance).
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
    """One image that was classified.

    ``at_s`` is the time in seconds since 1970. ``review`` is True if the model left the image to a person.
    """

    at_s: float
    label: str | None
    confidence: float
    review: bool


@dataclass(frozen=True)
class Means:
    """The three figures of some files, None where a figure is unknown. ``mix`` holds the share of each class."""

    review_rate: float | None = None
    confidence: float | None = None
    mix: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DriftReport:
    """The result of a comparison.

    ``against`` says which reference each figure was compared with: ``validation``, ``site`` (the site's own past) or
    ``nothing``. ``distance`` is that of the two mixes of classes. ``suspected`` names the figures beyond their limits.
    """

    files: int
    hours: float
    window: Means
    reference: Means
    distance: float | None
    against: Mapping[str, str]
    suspected: tuple[str, ...]


def sample(decision: Decision, at_s: float) -> Sample | None:
    """Return the sample of a decision made at a time in seconds since 1970, or None if no image was classified."""
    outcome = decision.outcome
    if outcome is Outcome.QUARANTINE and decision.label is None:
        return None
    review = outcome is Outcome.REVIEW and decision.reason not in RULE_REASONS
    return Sample(at_s, decision.label, decision.confidence, review)


def validation(stored: object) -> Means:
    """Return the figures that are stored with the weights (``training["validation"]``).

    A figure that is missing or invalid is unknown.
    """
    figures: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
    stored_mix = figures.get("class_mix")
    shares = {str(name): _share(value) for name, value in stored_mix.items()} if isinstance(stored_mix, Mapping) else {}
    mix = {name: share for name, share in shares.items() if share is not None}
    return Means(
        _share(figures.get("review_rate")),
        _share(figures.get("confidence_mean")),
        mix if len(mix) == len(shares) and math.isclose(sum(mix.values()), 1.0, abs_tol=0.01) else {},
    )


def _share(value: object) -> float | None:
    """Return a number from 0 to 1 as a float, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


class _Window:
    """Samples with running sums of their figures, so that their means cost the same however many there are."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque()
        self._reviews, self._confidence_sum = 0, 0.0
        self._classes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._count(sample, 1)

    def remove_oldest(self) -> Sample:
        sample = self.samples.popleft()
        self._count(sample, -1)
        return sample

    def _count(self, sample: Sample, sign: int) -> None:
        self._reviews += sign * sample.review
        self._confidence_sum = self._confidence_sum + sign * sample.confidence if self.samples else 0.0
        if sample.label is not None:
            self._classes[sample.label] += sign

    def means(self) -> Means:
        if not self.samples:
            return Means()
        classified = self._classes.total()
        mix = {name: count / classified for name, count in sorted(self._classes.items()) if count}
        return Means(self._reviews / len(self), min(1.0, self._confidence_sum / len(self)), mix)


class Drift:
    """Compares the window of recent files with the files before it.

    ``validated`` holds the figures of the validation images, ``earlier`` the site's files so far, oldest first.
    """

    def __init__(self, rules: DriftRules, validated: Means | None = None, earlier: Iterable[Sample] = ()) -> None:
        self._rules, self._validated = rules, validated or Means()
        self._recent, self._past = _Window(), _Window()
        self._warned_s = float("-inf")
        self.report: DriftReport | None = None
        """Result of the last :meth:`compare`."""
        for sample in earlier:
            self.add(sample)

    def add(self, sample: Sample | None) -> None:
        """Add the sample of one more file. None, for a file that was not classified, is ignored."""
        if sample is None:
            return
        self._recent.add(sample)
        if len(self._recent) > self._rules.window_files:
            self._age_oldest()

    def _age_oldest(self) -> None:
        """Move the oldest file of the window to the past, as its newest."""
        self._past.add(self._recent.remove_oldest())
        if len(self._past) > self._rules.reference_files:
            self._past.remove_oldest()

    def compare(self, now_s: float) -> DriftReport:
        """Compare the window that ends at a time, in seconds since 1970, with its references."""
        while len(self._recent) and self._recent.samples[0].at_s < now_s - self._rules.window_h * 3600:
            self._age_oldest()
        files = len(self._recent)
        window, past = self._recent.means(), self._past.means() if len(self._past) >= self._rules.min_files else Means()
        against = {
            "review_rate": _reference_name(self._validated.review_rate, past.review_rate),
            "confidence": _reference_name(self._validated.confidence, past.confidence),
            "class_mix": "site" if past.mix else "validation" if self._validated.mix else "nothing",
        }
        reference = Means(
            past.review_rate if self._validated.review_rate is None else self._validated.review_rate,
            past.confidence if self._validated.confidence is None else self._validated.confidence,
            past.mix or self._validated.mix,
        )
        distance = _distance(window.mix, reference.mix) if window.mix and reference.mix else None
        hours = (now_s - self._recent.samples[0].at_s) / 3600 if files else 0.0
        enough = files >= self._rules.min_files
        suspected = self._suspected(window, reference, distance if past.mix else None) if enough else ()
        self.report = DriftReport(files, hours, window, reference, distance, against, suspected)
        return self.report

    def _suspected(self, window: Means, reference: Means, distance: float | None) -> tuple[str, ...]:
        rules = self._rules
        beyond = {
            "review_rate": _beyond(window.review_rate, reference.review_rate, rules.review_rate),
            "confidence": _beyond(reference.confidence, window.confidence, rules.confidence),
            "class_mix": _beyond(distance, 0.0, rules.class_mix),
        }
        return tuple(name for name in FIGURES if beyond[name])

    def to_tell(self, now_s: float) -> DriftReport | None:
        """Return the report if a warning is due: as soon as a drift is suspected, and again while it lasts."""
        report = self.compare(now_s)
        if not report.suspected or now_s - self._warned_s < WARNING_PERIOD_S:
            return None
        self._warned_s = now_s
        return report


def _reference_name(validated: float | None, past: float | None) -> str:
    return "validation" if validated is not None else "nothing" if past is None else "site"


def _beyond(higher: float | None, lower: float | None, limit: float | None) -> bool:
    """Return True if the first figure exceeds the second by more than the limit, and all three are known."""
    if higher is None or lower is None or limit is None:
        return False
    return higher - lower > limit


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the total variation distance of two mixes, from 0 to 1."""
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other}) / 2
