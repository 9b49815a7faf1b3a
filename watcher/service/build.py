"""The composition root: puts the stations together from the settings.

The network is an argument, so that whoever tests the rest need not load torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from watcher.config import loader, paths_and_limits
from watcher.core import mounts
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.records import Decision, Decoded, Identity, Outcome
from watcher.filing import destinations, recovery
from watcher.filing import mover as moving
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.duplicates import DuplicateRules
from watcher.filing.shadow_mode import ShadowExecutor, ShadowInbox
from watcher.filing.takeover import Takeover
from watcher.images import decoder_pool, dicom_filenames
from watcher.images.decoder_pool import DecoderPool
from watcher.inbox import ownership
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.completeness import PendingFiles
from watcher.inbox.events import EventWatcher
from watcher.inbox.ownership import InboxOwnership
from watcher.inbox.scan import Inbox
from watcher.inbox.sharing import Claimer
from watcher.ledger.writer import Ledger
from watcher.model import checkpoint, promotions, review_triggers, thresholds
from watcher.model.batching import Batcher
from watcher.model.decision import Network
from watcher.monitoring import drift, log
from watcher.monitoring.counters import Counters
from watcher.review import wake_pipe
from watcher.review.verdict_worker import VerdictWorker
from watcher.service import log_lines, signals, stall_detection
from watcher.service.pipeline import CAPACITY, Pipeline

PARTIAL_MAX_S = 3600.0
"""In shared mode, an unfinished copy that nobody has touched for so long is a dead worker's."""

Loader = Callable[[loader.Config, checkpoint.Checkpoint, log.Logger], tuple[Network, Callable[[], str]]]
"""Makes the classifier station of some weights, and what tells the device it is on."""


def take_seat(settings: loader.Config) -> InboxOwnership:
    """This daemon's place on the inbox, alone or as one of several.

    Raises:
        Fatal: exit code 6; it is taken.
    """
    take = ownership.take_shared if settings.inbox.shared else ownership.take_alone
    return take(settings.inbox.path, settings.state.path)


def build(
    settings: loader.Config,
    at: InboxOwnership,
    wake: signals.LoopWaker,
    logger: log.Logger,
    load: Loader,
    *,
    replaced: bool = False,
) -> Pipeline:
    """Every station, ready to go. ``replaced``: other directories than files were moved in last are the right ones.

    Raises:
        Fatal: a directory, the weights, the device or the ledger can not be used.
    """
    source = usable_inbox(settings)
    decoders = pool(settings, at)
    decoders.start()  # its imports overlap with torch's
    try:
        weights = checkpoint.load(promotions.weights_path(None, settings))
        ledger, mover, where = _reconciled(settings, at, weights, logger, replaced=replaced)
        if isinstance(source, ShadowInbox):
            source.remember(ledger)
        network, device = load(settings, weights, logger)
        events = watch(settings, wake)
    except Fatal:
        decoders.close()
        raise
    arrivals, front = _arriving(settings, at, source, events, logger)
    return Pipeline(
        arrivals=arrivals,
        front=front,
        takeover=Takeover(ledger, settings.inbox.path, settings.state.path, at.claims),
        counters=_counters(settings, weights, ledger),
        desk=VerdictWorker(wake_pipe.WakePipe(settings.state.path), wake) if settings.mode == "sort" else None,
        keep=source.know if isinstance(source, ShadowInbox) else _let_go,
        decoders=decoders,
        batcher=Batcher(settings.batch.size, settings.batch.max_wait_ms),
        network=network,
        policy=thresholds.policy(settings.review, weights),
        doubts=doubts(settings),
        title=title(settings),
        executor=executor(settings, ledger, mover, where, weights.digest),
        log=logger,
        device=device,
        wake=wake,
        in_flight=4 * settings.batch.size,
        limits=limits(settings),
    )


def _reconciled(
    settings: loader.Config, at: InboxOwnership, weights: checkpoint.Checkpoint, logger: log.Logger, *, replaced: bool
) -> tuple[Ledger, moving.Mover, Destinations]:
    """The ledger and where files go, after what was left by a life that ended in the middle is put right."""
    ledger = Ledger(paths_and_limits.ledger_path(settings), owner=at.owner)
    if replaced:
        ledger.forget_places()
    places = destinations.places(settings)
    recovery.refuse_missing(ledger, [*places.all(weights.classes), places.rejected])
    mover, where = directories(settings, at, weights)
    for directory in (*where.all(weights.classes), where.rejected) if settings.mode == "sort" else ():
        moving.clear_partials(directory, 0 if at.claims is None else PARTIAL_MAX_S)
    if at.claims is not None:
        ledger.adopt(ownership.ALONE)  # it is dead: its lock is shared by us, so nobody could hold it to reconcile
    log_lines.recovered(logger, recovery.at_start(ledger, settings.state.path))
    return ledger, mover, where


def _arriving(
    settings: loader.Config, at: InboxOwnership, source: Inbox, events: EventWatcher | None, logger: log.Logger
) -> tuple[Arrivals, Claimer | None]:
    """Where the route takes its files from; in shared mode that is this worker's claims, and what fills them."""
    scan_interval_s = settings.inbox.scan_interval_s
    arrivals = Arrivals(source, events, _settle(settings), scan_interval_s)
    arrivals.keep_watched()
    log_lines.notices(logger, arrivals.notices)
    if at.claims is None:
        return arrivals, None
    claimed = Arrivals(Inbox(at.inbox, own=True), None, _settle(settings), scan_interval_s)
    return claimed, Claimer(arrivals, at.claims)


def _counters(settings: loader.Config, weights: checkpoint.Checkpoint, ledger: Ledger) -> Counters:
    last, drifting = ledger.last_filed(), watched(settings, weights, ledger)
    return Counters(ledger.counts(), last_filed_at=None if last is None else last.timestamp(), drift=drifting)


def _let_go(name: str, identity: Identity | None) -> None:
    """Files do not stay."""


def watched(settings: loader.Config, weights: checkpoint.Checkpoint, ledger: Ledger) -> drift.Drift:
    """What tells whether files are as they were, with what these weights decided so far."""
    rules = drift.DriftRules(**dict(settings.drift))
    earlier = []
    for at_s, label, confidence, outcome, reason in ledger.classified(
        weights.digest, rules.window_files + rules.reference_files
    ):
        found = drift.sample(Decision(Outcome(outcome), label, confidence, reason), at_s)
        earlier += [found] if found is not None else []
    validated = drift.validation(weights.training.get("validation"))
    usual = thresholds.review_rate(settings.review, weights, validated.review_rate)
    return drift.Drift(rules, replace(validated, review_rate=usual), earlier)


def limits(settings: loader.Config) -> stall_detection.StallLimits:
    """How long stations may take over a file that costs as much as the settings allow."""
    mib = settings.decode.max_bytes / 2**20
    return stall_detection.StallLimits(
        decode=decoder_pool.START_S + settings.decode.timeout_s + 20,  # a new process, and all of its time
        filing=60 + mib,  # copied at 1 MiB/s, and the ledger may wait for others for half a minute
    )


def pool(settings: loader.Config, at: InboxOwnership) -> DecoderPool:
    """The decoders, not yet started."""
    template = settings.output.dicom_name
    tags = dicom_filenames.tags(template) if template else ()
    return DecoderPool(at.inbox, paths_and_limits.decoder_limits(settings), settings.decode.timeout_s, tags=tags)


def title(settings: loader.Config) -> Callable[[Decoded], str | None]:
    """What files are to be called when they are filed, None: as they came. Only DICOM files have tags."""
    template = settings.output.dicom_name
    return lambda image: dicom_filenames.name(template, dict(image.tags)) if template and image.tags else None


def directories(
    settings: loader.Config, at: InboxOwnership, weights: checkpoint.Checkpoint
) -> tuple[moving.Mover, Destinations]:
    """Where files go, every directory made and usable, and what moves them there.

    Raises:
        Fatal: exit code 5; one can not be made or written.
    """
    where, mover = destinations.places(settings), moving.Mover(at.inbox, paths_and_limits.file_mode(settings))
    if settings.mode == "shadow":
        return mover, where  # nothing is moved there
    for directory in where.all(weights.classes):
        moving.prepare(directory)
        mover.expect(directory)
    if where.rejected.is_dir():
        mover.expect(where.rejected)
    return mover, where


def executor(
    settings: loader.Config, ledger: Ledger, mover: moving.Mover, where: Destinations, model: str
) -> DecisionExecutor:
    """Who carries decisions out, or only records them."""
    keep, kind = settings.output.keep_subdirectories, ShadowExecutor if settings.mode == "shadow" else DecisionExecutor
    return kind(ledger, mover, where, model, rules(settings), keep_subdirectories=keep)


def _settle(settings: loader.Config) -> PendingFiles:
    return PendingFiles(settings.inbox.settle_s, settings.inbox.patience_s, CAPACITY)


def rules(settings: loader.Config) -> DuplicateRules:
    """What becomes of files whose name or bytes were filed before."""
    return DuplicateRules(**dict(settings.collisions))


def inbox(settings: loader.Config) -> Inbox:
    """The inbox that producers write to."""
    wanted, kind = settings.inbox, ShadowInbox if settings.mode == "shadow" else Inbox
    return kind(wanted.path, wanted.ignore, wanted.sentinel, recursive=wanted.recursive)


def usable_inbox(settings: loader.Config) -> Inbox:
    """The inbox, which is there and can be emptied (in shadow mode: read).

    Raises:
        Fatal: exit code 5; it is not.
    """
    found = inbox(settings)
    try:
        next(found.scan(), None)
    except Retry as error:
        raise Fatal(
            str(error),
            "Make the directory, mount it, or set inbox.path (or inbox.sentinel). It is not made here: an absent "
            "inbox is often a mount that failed.",
            Exit.DIRECTORY,
        ) from error
    if settings.mode == "sort" and not os.access(settings.inbox.path, os.W_OK | os.X_OK):
        raise Fatal(
            f"files can not be moved out of the inbox {settings.inbox.path}",
            mounts.let_write(settings.inbox.path),
            Exit.DIRECTORY,
        )
    return found


def watch(settings: loader.Config, wake: Callable[[], None]) -> EventWatcher | None:
    """Notifications of the inbox; None where they are not wanted. Begun only where there must be some.

    Raises:
        Fatal: exit code 5; there must be and there are none.
    """
    wanted = settings.inbox.watch
    if wanted == "scan":
        return None
    recursive = settings.inbox.recursive
    found = EventWatcher(settings.inbox.path, wake, anywhere=wanted == "events", recursive=recursive)
    if wanted == "events":
        try:
            found.start()
        except Retry as error:
            raise Fatal(str(error), "Mend that, or set inbox.watch to auto.", Exit.DIRECTORY) from error
    return found


def serve_metrics(settings: loader.Config, route: Pipeline, logger: log.Logger) -> Callable[[], None]:
    """Serve the route's figures, if a port is set. Gives what ends that.

    Raises:
        Fatal: nothing can listen there.
    """
    if settings.metrics.port is None:
        return lambda: None
    from watcher.monitoring.metrics import Metrics  # costs 50 ms

    def disk() -> dict[str, dict[str, float]]:
        now = route.executor.destinations
        counts = {place: float(count) for place, count in destinations.backlog(now).items() if count is not None}
        return {"backlog_files": counts, "disk_free_bytes": destinations.free_space(settings, now)}

    def facts() -> dict[str, str]:
        return {"model": route.executor.model or "", "device": route.device(), "mode": settings.mode}

    metrics = Metrics(facts, route.counters, disk)
    route.observe = metrics.observe
    metrics.observe(route.totals)
    port, stop = metrics.serve(settings.metrics.port, settings.metrics.address)
    logger.info("metrics.serving", address=settings.metrics.address, port=port)
    return stop


def doubts(settings: loader.Config) -> review_triggers.ReviewRules:
    """What sends a picture to a person although the network is sure of it."""
    return review_triggers.ReviewRules(settings.decode.multi_frame, settings.review.metadata_disagrees)
