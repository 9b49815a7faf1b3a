"""Build the daemon's pipeline from the settings.

The network is loaded by a function that is passed in, so that whoever tests the rest need not load torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from watcher.config.paths_and_limits import ledger_path
from watcher.config.settings import Config
from watcher.core.records import Decision, Outcome
from watcher.filing import destinations, recovery
from watcher.filing.destinations import Destinations
from watcher.filing.mover import Mover, clear_partials
from watcher.filing.shadow_mode import ShadowInbox
from watcher.filing.takeover import Takeover
from watcher.inbox import ownership
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.completeness import PendingFiles
from watcher.inbox.events import EventWatcher
from watcher.inbox.ownership import InboxOwnership
from watcher.inbox.scan import Inbox
from watcher.inbox.sharing import Claimer
from watcher.ledger.writer import Ledger
from watcher.model import checkpoint, promotions, thresholds
from watcher.model.checkpoint import Checkpoint
from watcher.model.decision import Network
from watcher.monitoring import drift
from watcher.monitoring.counters import Counters
from watcher.monitoring.log import Logger
from watcher.review.verdict_worker import VerdictWorker
from watcher.review.wake_pipe import WakePipe
from watcher.service import log_lines, stations
from watcher.service.pipeline import Pipeline

CAPACITY = 16384
"""The number of names remembered at once. Bounds memory; a larger inbox is scanned again as it drains."""

PARTIAL_MAX_S = 3600.0
"""In shared mode, an unfinished copy that nobody has touched for so long is a dead worker's."""

Loader = Callable[[Config, Checkpoint, Logger], tuple[Network, Callable[[], str]]]
"""Makes the network of some weights, and a function that returns the device it is on."""


def take_inbox(settings: Config) -> InboxOwnership:
    """Take the inbox for this daemon, alone or as one of several workers.

    Raises:
        Fatal: exit code 6; it is taken.
    """
    take = ownership.take_shared if settings.inbox.shared else ownership.take_alone
    return take(settings.inbox.path, settings.state.path)


def build(
    settings: Config,
    owned: InboxOwnership,
    wake: Callable[[], None],
    log: Logger,
    load: Loader,
    *,
    replaced: bool = False,
) -> Pipeline:
    """Build a pipeline that is ready to go.

    ``replaced``: directories that are not those that files were last moved to are accepted.

    Raises:
        Fatal: a directory, the weights, the device or the ledger can not be used.
    """
    inbox = stations.usable_inbox(settings)
    with contextlib.ExitStack() as on_error:
        decoders = stations.new_decoders(settings, owned)
        on_error.callback(decoders.close)
        decoders.start()  # its imports overlap with torch's
        weights = checkpoint.load(promotions.weights_path(None, settings))
        ledger = Ledger(ledger_path(settings), owner=owned.owner)
        on_error.callback(ledger.close)
        mover, places = _reconcile(settings, owned, ledger, weights, log, replaced=replaced)
        if isinstance(inbox, ShadowInbox):
            inbox.load_decided(ledger)
        network = load(settings, weights, log)
        watch = stations.new_watch(settings, wake)
        on_error.pop_all()
    arrivals, claimer = _arrivals(settings, owned, inbox, watch, log)
    executor = stations.new_executor(settings, ledger, mover, places, weights)
    return Pipeline(
        stations.make(settings, weights, inbox, watch, decoders, network, executor),
        arrivals,
        claimer,
        Takeover(ledger, settings.inbox.path, settings.state.path, owned.claims),
        VerdictWorker(WakePipe(settings.state.path), wake) if settings.mode == "sort" else None,
        _counters(settings, weights, ledger),
        log,
        wake,
    )


def _reconcile(
    settings: Config, owned: InboxOwnership, ledger: Ledger, weights: Checkpoint, log: Logger, *, replaced: bool
) -> tuple[Mover, Destinations]:
    """End what a daemon that died left in the middle, and return where files go."""
    if replaced:
        ledger.forget_directories()
    places = destinations.places(settings)
    recovery.refuse_lost_mounts(ledger, [*places.all(weights.classes), places.rejected])
    mover, places = stations.usable_destinations(settings, owned, weights)
    for directory in (*places.all(weights.classes), places.rejected) if settings.mode == "sort" else ():
        clear_partials(directory, 0 if owned.claims is None else PARTIAL_MAX_S)
    if owned.claims is not None:
        ledger.adopt(ownership.ALONE)  # it is dead: its lock is shared by us, so nobody could hold it to reconcile
    log_lines.recovered(log, recovery.at_start(ledger, settings.state.path))
    return mover, places


def _arrivals(
    settings: Config, owned: InboxOwnership, inbox: Inbox, watch: EventWatcher | None, log: Logger
) -> tuple[Arrivals, Claimer | None]:
    """Return the arrivals that the pipeline works on; in shared mode this worker's claims, and what fills them."""
    arrivals = Arrivals(inbox, watch, _pending(settings), settings.inbox.scan_interval_s)
    arrivals.keep_watched()
    log_lines.notices(log, arrivals.notices)
    if owned.claims is None:
        return arrivals, None
    claimed = Arrivals(Inbox(owned.inbox, own=True), None, _pending(settings), settings.inbox.scan_interval_s)
    return claimed, Claimer(arrivals, owned.claims)


def _pending(settings: Config) -> PendingFiles:
    return PendingFiles(settings.inbox.settle_s, settings.inbox.patience_s, CAPACITY)


def _counters(settings: Config, weights: Checkpoint, ledger: Ledger) -> Counters:
    last = ledger.last_filed()
    last_filed_at = None if last is None else last.timestamp()
    return Counters(ledger.counts(), last_filed_at=last_filed_at, drift=drift_watch(settings, weights, ledger))


def drift_watch(settings: Config, weights: Checkpoint, ledger: Ledger) -> drift.Drift:
    """Return the comparison of recent files with earlier ones, fed with what these weights decided so far."""
    rules = drift.DriftRules(**dict(settings.drift))
    earlier = []
    for at_s, label, confidence, outcome, reason in ledger.classified(
        weights.digest, rules.window_files + rules.reference_files
    ):
        sample = drift.sample(Decision(Outcome(outcome), label, confidence, reason), at_s)
        earlier += [sample] if sample is not None else []
    validated = drift.validation(weights.training.get("validation"))
    usual = thresholds.review_rate(settings.review, weights, validated.review_rate)
    return drift.Drift(rules, replace(validated, review_rate=usual), earlier)


def serve_metrics(settings: Config, pipeline: Pipeline, log: Logger) -> Callable[[], None]:
    """Serve the pipeline's metrics, if a port is set. Return what ends that.

    Raises:
        Fatal: nothing can listen there.
    """
    if settings.metrics.port is None:
        return lambda: None
    from watcher.monitoring.metrics import Metrics  # costs 50 ms

    def disk() -> dict[str, dict[str, float]]:
        places = pipeline.stations.executor.destinations
        counts = {place: float(count) for place, count in destinations.backlog(places).items() if count is not None}
        return {"backlog_files": counts, "disk_free_bytes": destinations.free_space(settings, places)}

    def facts() -> dict[str, str]:
        now = pipeline.stations
        return {"model": now.executor.model or "", "device": now.device(), "mode": settings.mode}

    metrics = Metrics(facts, pipeline.counters, disk)
    pipeline.observe_with(metrics.observe)
    port, stop = metrics.serve(settings.metrics.port, settings.metrics.address)
    log.info("metrics.serving", address=settings.metrics.address, port=port)
    return stop
