"""Serve figures to Prometheus. The values of labels are bounded: a file name is never one."""

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
"""Gauges that are read from the disk when Prometheus asks: name of a gauge in ``_HELP`` -> place -> value."""

_HELP = {
    "seen": "Files seen in all runs of this daemon: filed, withdrawn, shadowed or pending by now.",
    "filed": "Files moved out of the inbox in all runs of this daemon, by outcome.",
    "shadowed": "Files decided upon in shadow mode, which stay in the inbox, since the start.",
    "drift_window_files": "Number of recent files, which the other figures of drift describe.",
    "drift_review_rate": "Share of recent files that the model left to a person, and its reference.",
    "drift_confidence": "Mean confidence in recent files, and its reference.",
    "drift_class_share": "Share of each class among recent files, and its reference.",
    "drift_class_mix_distance": "Share of recent files that would be of another class if the mix were the reference's.",
    "drift_suspected": "1 while a figure of recent files is further from its reference than the config allows.",
    "withdrawn": "Files that others removed from the inbox, since the start.",
    "pending": "Files in the inbox that were seen and not yet filed.",
    "oldest": "Time that the oldest pending file has been waiting, in seconds.",
    "reachable": "1 while the inbox can be listed, else 0.",
    "classified": "Files classified and filed, by most probable class and outcome, since the start.",
    "quarantined": "Files quarantined, by reason, since the start.",
    "stage": "Time that filed files spent in each stage, and from first sight to filed (total), since the start.",
    "confidence": "Probability of the most probable class of each file classified, since the start.",
    "batch": "Images in each batch that was classified, since the start.",
    "last": "Time when the last file was filed, in any run, in seconds since 1970; absent before the first file.",
    "reload": "1, or 0 if the last reload was refused, so that the config on disk is not the one in force.",
    "backlog_files": "Files that lie in review or quarantine now, counted on the disk.",
    "disk_free_bytes": "Free space on the disk of each place, in bytes.",
}


class Metrics(Collector):
    """The latest figures, taken at one moment, so that they add up (seen = filed + withdrawn + shadowed + pending)."""

    def __init__(
        self,
        facts: Callable[[], Mapping[str, str]],
        counters: Counters | None = None,
        disk: Callable[[], Disk] = lambda: {},
    ) -> None:
        """``facts`` returns what is known of model and device, ``disk`` the gauges that are read from the disk."""
        self._facts, self._counters, self._disk = facts, counters or Counters(), disk
        self._totals: Totals | None = None

    def observe(self, totals: Totals) -> None:
        """Take the totals of this moment. The loop calls this at every turn."""
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """Return the metrics that Prometheus reads. A thread of the server calls this."""
        yield InfoMetricFamily(
            "mednet_watcher", "Version, model and device.", {"version": __version__, **self._facts()}
        )
        if self._totals is not None:
            yield from self._files(self._totals)
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
        window, reference = report.window, report.reference
        shares = [
            ((name, of), share)
            for of, mix in (("window", window.mix), ("reference", reference.mix))
            for name, share in sorted(mix.items())
        ]
        suspected = [((name,), float(name in report.suspected)) for name in FIGURES]
        yield _gauge("drift_window_files", [], [((), float(report.files))])
        rates = [(("window",), window.review_rate), (("reference",), reference.review_rate)]
        yield _gauge("drift_review_rate", ["of"], rates)
        means = [(("window",), window.confidence), (("reference",), reference.confidence)]
        yield _gauge("drift_confidence", ["of"], means)
        yield _gauge("drift_class_share", ["class", "of"], shares)
        yield _gauge("drift_class_mix_distance", [], [((), report.distance)])
        yield _gauge("drift_suspected", ["figure"], suspected)

    def serve(self, port: int, address: str) -> tuple[int, Callable[[], None]]:
        """Serve ``http://address:port/metrics`` from now on. Return the port in use, and a function that ends it.

        Raises:
            Fatal: the server can not listen there.
        """
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)  # memory, CPU time and start time of this process
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
    """Return one gauge with its values by label. A value of None is unknown, and left out."""
    gauge = GaugeMetricFamily(f"mednet_{name}", _HELP[name], labels=labels)
    for label_values, value in values:
        if value is not None:
            gauge.add_metric(label_values, value)
    return gauge


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    family.add_metric(labels, list(histogram.buckets()), histogram.sum)
