"""Figures for Prometheus. Labels are bounded: never the name of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from watcher import __version__
from watcher.errors import Exit, Fatal


class Figures(Protocol):
    """What the route tells, see :class:`watcher.route.Figures`."""

    @property
    def seen(self) -> int: ...  # noqa: D102  what each means is said in _HELP

    @property
    def filed(self) -> Mapping[str, int]: ...  # noqa: D102

    @property
    def withdrawn(self) -> int: ...  # noqa: D102

    @property
    def pending(self) -> int: ...  # noqa: D102

    @property
    def reachable(self) -> bool: ...  # noqa: D102


_HELP = {
    "seen": "Files that came into view, over all lives of this daemon: filed, withdrawn or pending by now.",
    "filed": "Files moved out of the inbox, by outcome, over all lives of this daemon.",
    "withdrawn": "Files that left the inbox by another hand, since the start.",
    "pending": "Files in the inbox that were seen and not yet filed.",
    "reachable": "1 while the inbox can be listed, else 0.",
}


class Metrics(Collector):
    """The latest figures, whole: what is read at one moment adds up (seen = filed + withdrawn + pending)."""

    def __init__(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """``facts`` tells what is known of model and device just now."""
        self._facts = facts
        self._figures: Figures | None = None

    def observe(self, figures: Figures) -> None:
        """Take the figures of this moment. Called by the loop, at every turn."""
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """What Prometheus reads. Called in a thread of the server."""
        yield InfoMetricFamily(
            "mednet_watcher", "Version, model and device.", {"version": __version__, **self._facts()}
        )
        figures = self._figures
        if figures is None:
            return
        yield CounterMetricFamily("mednet_files_seen", _HELP["seen"], figures.seen)
        filed = CounterMetricFamily("mednet_files_filed", _HELP["filed"], labels=["outcome"])
        for outcome, count in figures.filed.items():
            filed.add_metric([outcome], count)
        yield filed
        yield CounterMetricFamily("mednet_files_withdrawn", _HELP["withdrawn"], figures.withdrawn)
        yield GaugeMetricFamily("mednet_files_pending", _HELP["pending"], figures.pending)
        yield GaugeMetricFamily("mednet_inbox_reachable", _HELP["reachable"], float(figures.reachable))

    def serve(self, port: int, address: str) -> tuple[int, Callable[[], None]]:
        """Answer at ``http://address:port/metrics`` from now on: the port taken, and what ends it.

        Raises:
            Fatal: nothing can listen there.
        """
        registry = CollectorRegistry()
        registry.register(self)
        try:
            server, thread = start_http_server(port, address, registry)
        except OSError as error:
            raise Fatal(
                f"metrics can not be served at {address}:{port}: {error.strerror}",
                "Choose another metrics.port or metrics.address, or set metrics.port to null.",
                Exit.FAILED,
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop
