"""Figures for Prometheus. Labels are bounded: never the name of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from watcher import __version__
from watcher.core.errors import Exit, Fatal
from watcher.monitoring import metrics_server
from watcher.monitoring.counters import Counters, Histogram, Totals
from watcher.monitoring.drift import FIGURES, DriftReport

Disk = Mapping[str, Mapping[str, float]]
"""What is read from the disk when Prometheus asks: name of a gauge in _HELP -> place -> value."""

_HELP = {
    "seen": "Files that came into view, over all lives of this daemon: filed, withdrawn, shadowed or pending by now.",
    "filed": "Files moved out of the inbox, by outcome, over all lives of this daemon.",
    "shadowed": "Files decided upon in shadow mode, which stay in the inbox, since the start.",
    "drift_window_files": "How many files are recent: those that the other figures of drift are of.",
    "drift_review_rate": "Share of recent files that the model left to a person, and what it is held against.",
    "drift_confidence": "Mean confidence in recent files, and what it is held against.",
    "drift_class_share": "Share of each class among recent files, and what it is held against.",
    "drift_class_mix_distance": "Share of recent files that would be of another class if the mix were the reference's.",
    "drift_suspected": "1 while a figure of recent files is further from its reference than the config allows.",
    "withdrawn": "Files that left the inbox by another hand, since the start.",
    "pending": "Files in the inbox that were seen and not yet filed.",
    "oldest": "How long the oldest pending file has been waiting.",
    "reachable": "1 while the inbox can be listed, else 0.",
    "classified": "Files classified and filed, by most probable class and outcome, since the start.",
    "quarantined": "Files quarantined, by reason, since the start.",
    "stage": "Time that filed files spent in each stage, and from first sight to filed (total), since the start.",
    "confidence": "Probability of the most probable class of each file classified, since the start.",
    "batch": "Images in each batch that was classified, since the start.",
    "last": "When a file was last filed, in this life or before, in seconds since 1970; absent before the first one.",
    "reload": "1 unless the last reload was refused: then the config on disk is not the one in force.",
    "backlog_files": "Files that lie in review or quarantine just now, by what the disk says.",
    "disk_free_bytes": "Space left on the disk of each place.",
}


class Metrics(Collector):
    """The latest figures, whole: what is read at one moment adds up (seen = filed + withdrawn + pending)."""

    def __init__(
        self,
        facts: Callable[[], Mapping[str, str]],
        counters: Counters | None = None,
        disk: Callable[[], Disk] = lambda: {},
    ) -> None:
        """``facts`` tells what is known of model and device just now, ``disk`` what lies where."""
        self._facts, self._counters, self._disk = facts, counters or Counters(), disk
        self._figures: Totals | None = None

    def observe(self, totals: Totals) -> None:
        """Take the figures of this moment. Called by the loop, at every turn."""
        self._figures = totals

    def collect(self) -> Iterable[Metric]:
        """What Prometheus reads. Called in a thread of the server."""
        yield InfoMetricFamily(
            "mednet_watcher", "Version, model and device.", {"version": __version__, **self._facts()}
        )
        if self._figures is not None:
            yield from self._files(self._figures)
        yield from self._work(self._counters)
        for name, places in self._disk().items():
            gauge = GaugeMetricFamily(f"mednet_{name}", _HELP[name], labels=["place"])
            for place, value in places.items():
                gauge.add_metric([place], value)
            yield gauge

    def _files(self, totals: Totals) -> Iterable[Metric]:
        yield CounterMetricFamily("mednet_files_seen", _HELP["seen"], totals.seen)
        filed = CounterMetricFamily("mednet_files_filed", _HELP["filed"], labels=["outcome"])
        for outcome, count in totals.filed.items():
            filed.add_metric([outcome], count)
        yield filed
        yield CounterMetricFamily("mednet_files_withdrawn", _HELP["withdrawn"], totals.withdrawn)
        yield CounterMetricFamily("mednet_files_shadowed", _HELP["shadowed"], totals.shadowed)
        yield GaugeMetricFamily("mednet_files_pending", _HELP["pending"], totals.pending)
        yield GaugeMetricFamily("mednet_oldest_pending_seconds", _HELP["oldest"], totals.oldest_s)
        yield GaugeMetricFamily("mednet_inbox_reachable", _HELP["reachable"], float(totals.reachable))

    def _work(self, counters: Counters) -> Iterable[Metric]:
        classified = CounterMetricFamily("mednet_files_classified", _HELP["classified"], labels=["class", "outcome"])
        for labels, count in sorted(counters.classified.copy().items()):
            classified.add_metric(labels, count)
        yield classified
        quarantined = CounterMetricFamily("mednet_files_quarantined", _HELP["quarantined"], labels=["reason"])
        for reason, count in sorted(counters.quarantined.copy().items()):
            quarantined.add_metric([reason], count)
        yield quarantined
        stages = HistogramMetricFamily("mednet_stage_seconds", _HELP["stage"], labels=["stage"])
        for stage, histogram in counters.stages.items():
            _add(stages, [stage], histogram)
        yield stages
        for name, histogram in (("confidence", counters.confidence), ("batch_images", counters.batches)):
            family = HistogramMetricFamily(f"mednet_{name}", _HELP[name.partition("_")[0]], labels=[])
            _add(family, [], histogram)
            yield family
        yield GaugeMetricFamily(
            "mednet_config_last_reload_successful", _HELP["reload"], float(not counters.config_refused)
        )
        if counters.drift.report is not None:
            yield from self._drift(counters.drift.report)
        if counters.last_filed_at is not None:
            yield GaugeMetricFamily("mednet_last_filed_timestamp_seconds", _HELP["last"], counters.last_filed_at)

    def _drift(self, report: DriftReport) -> Iterable[Metric]:
        window, past = report.window, report.reference
        shares = [
            ((name, of), share)
            for of, mix in (("window", window.mix), ("reference", past.mix))
            for name, share in sorted(mix.items())
        ]
        suspected = [((name,), float(name in report.suspected)) for name in FIGURES]
        yield _gauge("drift_window_files", [], [((), float(report.files))])
        rates = [(("window",), window.review_rate), (("reference",), past.review_rate)]
        yield _gauge("drift_review_rate", ["of"], rates)
        means = [(("window",), window.confidence), (("reference",), past.confidence)]
        yield _gauge("drift_confidence", ["of"], means)
        yield _gauge("drift_class_share", ["class", "of"], shares)
        yield _gauge("drift_class_mix_distance", [], [((), report.distance)])
        yield _gauge("drift_suspected", ["figure"], suspected)

    def serve(self, port: int, address: str) -> tuple[int, Callable[[], None]]:
        """Answer at ``http://address:port/metrics`` from now on: the port taken, and what ends it.

        Raises:
            Fatal: nothing can listen there.
        """
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)  # its memory, CPU time, and when it started
        try:
            return metrics_server.start(port, address, registry)
        except OSError as error:
            raise Fatal(
                f"metrics can not be served at {address}:{port}: {error.strerror}",
                "Choose another metrics.port or metrics.address, or set metrics.port to null. Under systemd, "
                "`mednet-watcher install-service --metrics` opens the loopback interface.",
                Exit.FAILED,
            ) from error


def _gauge(name: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float | None]]) -> GaugeMetricFamily:
    """One gauge; what is None is not known, and not there."""
    gauge = GaugeMetricFamily(f"mednet_{name}", _HELP[name], labels=labels)
    for which, value in values:
        if value is not None:
            gauge.add_metric(which, value)
    return gauge


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    family.add_metric(labels, list(histogram.buckets()), histogram.sum)
