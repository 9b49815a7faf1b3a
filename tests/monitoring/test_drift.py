"""Drift: recent files against validation or the site's past. Numbers and times only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.daemon import Daemon
from tests.support.dropped_files import metrics
from watcher.config import loader
from watcher.core import shipped_files
from watcher.core.records import Decision, Identity, MoveOrder, Outcome, Shadowed, Timing
from watcher.ledger.writer import Ledger
from watcher.model import checkpoint
from watcher.monitoring import drift
from watcher.monitoring.counters import Counters
from watcher.monitoring.drift import WARNING_PERIOD_S, Drift, DriftRules, Means, Sample
from watcher.monitoring.metrics import Metrics
from watcher.service import build

HOUR = 3600.0
RULES = DriftRules(window_files=100, window_h=24, min_files=50, reference_files=400)
VALIDATED = Means(0.02, 0.98, {"CXR": 0.5, "Hand": 0.5})


def files(
    count: int, at_s: float = 0.0, review: float = 0.0, confidence: float = 0.98, labels: str = "AB"
) -> Iterable[Sample]:
    """So many, the first share of each ten in review, classes in turn."""
    return [Sample(at_s, labels[n % len(labels)], confidence, n % 10 < round(review * 10)) for n in range(count)]


def watching(*batches: Iterable[Sample], rules: DriftRules = RULES, validated: Means | None = None) -> Drift:
    return Drift(rules, validated, [each for batch in batches for each in batch])


class TestAgainstValidation:
    def test_as_in_validation(self) -> None:
        """Nothing is suspected where nothing differs, nor where the model does better."""
        assert watching(files(100), validated=VALIDATED).compare(0.0).suspected == ()
        assert watching(files(100, confidence=1.0), validated=VALIDATED).compare(0.0).suspected == ()

    @pytest.mark.parametrize(
        ("what", "suspected"),
        [
            ({"review": 0.1}, ("review_rate",)),
            ({"confidence": 0.94}, ("confidence",)),
            ({"confidence": 0.955}, ()),
            ({"review": 0.5, "confidence": 0.5}, ("review_rate", "confidence")),
        ],
    )
    def test_more_review_and_less_confidence(self, what: dict[str, float], suspected: tuple[str, ...]) -> None:
        """Each by the limit that the config sets, from the first window on."""
        report = watching(files(100, **what), validated=VALIDATED).compare(0.0)  # type: ignore[arg-type]
        assert (report.suspected, report.against["confidence"]) == (suspected, "validation")

    def test_another_mix_is_shown_and_not_suspected(self) -> None:
        """A site that sends chest films alone is no drift, however far from validation."""
        report = watching(files(100, labels="A"), validated=VALIDATED).compare(0.0)
        assert (report.distance, report.suspected, report.against["class_mix"]) == (1.0, (), "validation")

    def test_few_files_tell_nothing(self) -> None:
        """Chance is not told."""
        assert watching(files(49, review=1.0), validated=VALIDATED).compare(0.0).suspected == ()
        assert watching(files(50, review=1.0), validated=VALIDATED).compare(0.0).suspected == ("review_rate",)

    def test_a_limit_of_none(self) -> None:
        """As far as it likes."""
        rules = replace(RULES, review_rate=None, confidence=None, class_mix=None)
        drifting = watching(
            files(100), files(100, review=1.0, confidence=0.1, labels="C"), rules=rules, validated=VALIDATED
        )
        assert drifting.compare(0.0).suspected == ()


class TestAgainstItsOwnPast:
    def test_the_first_window_has_no_past(self) -> None:
        """Nothing to hold it against: nothing told."""
        report = watching(files(100, review=1.0)).compare(0.0)
        assert (report.suspected, set(report.against.values())) == ((), {"nothing"})

    def test_what_came_before(self) -> None:
        """Without figures of validation all three are held against the site's earlier files."""
        report = watching(files(100, review=0.1), files(100, review=0.9, confidence=0.5, labels="BC")).compare(0.0)
        assert report.suspected == drift.FIGURES
        assert set(report.against.values()) == {"site"}
        assert (report.reference.review_rate, report.window.review_rate) == (0.1, 0.9)
        assert report.distance == pytest.approx(0.5)

    def test_the_mix_even_where_validation_has_one(self) -> None:
        """Half of the files are of another class than they used to be."""
        report = watching(files(100, labels="A"), files(100, labels="AB"), validated=VALIDATED).compare(0.0)
        assert (report.suspected, report.reference.mix) == (("class_mix",), {"A": 1.0})

    def test_the_past_is_bounded(self) -> None:
        """Beyond its length files are forgotten: a new usual becomes the usual."""
        drifting = watching(files(500, review=1.0), files(500, review=0.0))
        assert (len(drifting._past), drifting.compare(0.0).reference.review_rate) == (400, 0.0)


class TestTheWindow:
    def test_by_time(self) -> None:
        """Files older than the window do not count, however few came since."""
        drifting = watching(files(60, at_s=0.0, review=1.0), files(60, at_s=20 * HOUR), validated=VALIDATED)
        assert drifting.compare(23 * HOUR).suspected == ("review_rate",)
        report = drifting.compare(25 * HOUR)
        assert (report.files, report.hours, report.suspected) == (60, 5.0, ())
        assert drifting.compare(100 * HOUR).files == 0

    def test_sums_stay_right(self) -> None:
        """After any number of files the figures are those of the window itself."""
        rng = np.random.default_rng(1)
        drifting = Drift(RULES)
        seen = [
            Sample(float(n), "ABC"[rng.integers(3)], float(rng.random()), bool(rng.integers(2))) for n in range(3000)
        ]
        for each in seen:
            drifting.add(each)
        window = drifting.compare(3000.0).window
        last = seen[-100:]
        assert window.confidence == pytest.approx(np.mean([each.confidence for each in last]))
        assert window.review_rate == np.mean([each.review for each in last])
        assert window.mix["A"] == np.mean([each.label == "A" for each in last])

    def test_told_rarely(self) -> None:
        """At once, then every six hours while it lasts; and when it comes back."""
        drifting = watching(files(100, review=1.0), rules=replace(RULES, window_h=1e6), validated=VALIDATED)
        told = [hour for hour in range(20) if drifting.to_tell(hour * HOUR)]
        assert told == [0, 6, 12, 18] and WARNING_PERIOD_S == 6 * HOUR
        for each in files(100):
            drifting.add(each)
        assert drifting.to_tell(100 * HOUR) is None


class TestWhatCounts:
    @pytest.mark.parametrize(
        ("decision", "review"),
        [
            (Decision(Outcome.SORTED, "CXR", 0.9), False),
            (Decision(Outcome.REVIEW, "CXR", 0.9, "low_confidence"), True),
            (Decision(Outcome.REVIEW, "CXR", 0.9, "out_of_distribution"), True),
            (Decision(Outcome.REVIEW, "CXR", 0.9, "metadata_disagrees"), True),
            (Decision(Outcome.REVIEW, "CXR", 0.9, "multi_frame"), False),
            (Decision(Outcome.REVIEW, "CXR", 0.9, "duplicate"), False),
            (Decision(Outcome.QUARANTINE, "CXR", 0.9, "duplicate"), False),
        ],
    )
    def test_the_models_doubt(self, decision: Decision, review: bool) -> None:
        """In review for what the model, or the file's own words, say; not for rules of the site."""
        found = drift.sample(decision, 1.0)
        assert found is not None and found.review is review

    def test_what_was_not_classified_does_not(self) -> None:
        """A file that could not be read says nothing of the model."""
        assert drift.sample(Decision(Outcome.QUARANTINE, None, 0.0, "empty"), 1.0) is None
        drifting = Drift(RULES)
        drifting.add(None)
        assert drifting.compare(0.0).files == 0


class TestFiguresOfValidation:
    def test_as_stored(self) -> None:
        """The keys that training writes."""
        told = {"review_rate": 0.02, "confidence_mean": 1, "class_mix": {"CXR": 0.5, "Hand": 0.5}, "more": 1}
        assert drift.validation(told) == Means(0.02, 1.0, {"CXR": 0.5, "Hand": 0.5})

    @pytest.mark.parametrize(
        "told",
        [None, [], "x", {}, {"review_rate": "0.1", "confidence_mean": float("nan"), "class_mix": {"a": 0.2}},
         {"review_rate": True, "confidence_mean": 7, "class_mix": [1]}, {"class_mix": {"a": 0.5, "b": None}}],
    )  # fmt: skip
    def test_absent_or_odd(self, told: object) -> None:
        """Weights without them, or with nonsense, are as good as any: nothing is known."""
        assert drift.validation(told) == Means()


def test_metrics() -> None:
    """Served with bounded labels; what is not known is not there."""
    tally = Counters(drift=watching(files(100, review=0.5), validated=replace(VALIDATED, confidence=None)))
    tally.drift.compare(0.0)
    served = {
        (sample.name, *sample.labels.values()): sample.value
        for family in Metrics(dict, tally).collect()
        for sample in family.samples
        if "drift" in sample.name
    }
    assert served == {
        ("mednet_drift_window_files",): 100,
        ("mednet_drift_review_rate", "window"): 0.5,
        ("mednet_drift_review_rate", "reference"): 0.02,
        ("mednet_drift_confidence", "window"): pytest.approx(0.98),
        **{("mednet_drift_class_share", name, "window"): 0.5 for name in "AB"},
        **{("mednet_drift_class_share", name, "reference"): 0.5 for name in ("CXR", "Hand")},
        ("mednet_drift_class_mix_distance",): 1.0,
        ("mednet_drift_suspected", "review_rate"): 1,
        ("mednet_drift_suspected", "confidence"): 0,
        ("mednet_drift_suspected", "class_mix"): 0,
    }


def test_shadow_decisions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are decisions like any other."""
    tally = Counters(clock=lambda: 5.0)
    order = MoveOrder("a", Identity(1, 1, 1, 1), None, Decision(Outcome.SORTED, "CXR", 0.9), Timing(0.0))
    tally.shadow(Shadowed(order, "/x").order, 1.0)
    assert tally.drift.compare(6.0).files == 1


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    """The windows are filled from the ledger, with what these weights decided: others were sure of other things."""
    book = Ledger(tmp_path / "ledger")
    weights = checkpoint.load(shipped_files.weights())
    ours, other = weights.digest, "0" * 64
    told = [(ours, 0.9, "sorted"), (other, 0.1, "sorted"), (None, 0.0, "sorted")]
    for model, confidence, outcome in (*told, (ours, 0.7, "review"), (ours, 0.0, "quarantine")):
        label = None if outcome == "quarantine" else "CXR"
        order = MoveOrder("a", None, "d" * 64, Decision(Outcome(outcome), label, confidence), Timing(0.0))
        with book.transaction():
            book.record_shadowed(book.record_decisions([order], ["/x"], model))
    now = book.now().timestamp()
    window = build.drift_watch(loader.Config(), weights, book).compare(now).window
    assert (window.confidence, window.review_rate) == (pytest.approx(0.8), 0.5)
    short = loader.Config(drift={"window_files": 1, "min_files": 1, "reference_files": 1})  # type: ignore[arg-type]
    assert build.drift_watch(short, weights, book).compare(now).files == 1
    book.close()


def test_held_against_the_operating_point(tmp_path: Path) -> None:
    """If the config chooses thresholds that leave more to a person, that many are no drift."""
    with contextlib.closing(Ledger(tmp_path / "ledger")) as book:
        weights = checkpoint.load(shipped_files.weights())
        strict = loader.Config(review={"accept_rate": 0.95})  # type: ignore[arg-type]
        rates = [
            build.drift_watch(c, weights, book).compare(0.0).reference.review_rate for c in (loader.Config(), strict)
        ]
    assert rates == [weights.training["validation"]["review_rate"], pytest.approx(0.05)]


def test_the_daemon_warns_once(tmp_path: Path) -> None:
    """It says so in the log and in its metrics, and once only, over many files."""
    validated = {"review_rate": 0.0, "confidence_mean": 0.0}
    weights = checkpoint.load(shipped_files.weights())
    checkpoint.save(replace(weights, training={**weights.training, "validation": validated}), tmp_path / "w")
    extra = (
        "inbox: {settle_s: 0.1, patience_s: 0.2, scan_interval_s: 0.2}\nmetrics: {port: 0}\n"
        "model: {weights: w}\ndrift: {window_files: 50, min_files: 5}\n"
    )
    daemon = Daemon(tmp_path, extra, stub=True)

    def drop(first: int) -> None:
        """Every other one dark, of which the stand-in network is unsure."""
        for number in range(first, first + 12):
            picture = np.full((64, 64), 10 if number % 2 else 200, np.uint8)
            picture[:, number] = 30
            Image.fromarray(picture).save(daemon.inbox / f"{number}.png")
        daemon.until_filed(first + 12)

    with daemon.start():
        drop(0)
        daemon.until(lambda: bool(daemon.events("drift.suspected")))
        drop(12)
        daemon.until(lambda: metrics(daemon)["mednet_drift_window_files"] == 24)
        told: dict[str, Any] = metrics(daemon)
        assert daemon.stop() == 0
    [line] = daemon.events("drift.suspected")
    assert (line["figures"], line["against"]["review_rate"]) == (["review_rate"], "validation")
    assert line["files"] >= 5
    assert told["mednet_drift_suspected,review_rate"] == 1


def test_a_window_that_is_never_full(tmp_path: Path) -> None:
    """More files asked for than the window holds: refused, for nothing would ever be told."""
    file = tmp_path / "config.yaml"
    file.write_text("drift: {window_files: 100}\n")
    with pytest.raises(loader.ConfigError, match="min_files: must not be greater"):
        loader.load(file, {})
