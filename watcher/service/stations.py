"""The stations that files pass through, made from the settings. A reload makes new ones and swaps them in at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from watcher.config.paths_and_limits import decoder_limits, file_mode
from watcher.config.settings import Config
from watcher.core import mounts
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.records import Decoded
from watcher.filing import destinations
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.duplicates import DuplicateRules
from watcher.filing.mover import Mover, prepare
from watcher.filing.shadow_mode import ShadowExecutor, ShadowInbox
from watcher.images import decoder_pool, dicom_filenames
from watcher.images.decoder_pool import DecoderPool
from watcher.inbox.events import EventWatcher
from watcher.inbox.ownership import InboxOwnership
from watcher.inbox.scan import Inbox
from watcher.ledger.writer import Ledger
from watcher.model import thresholds
from watcher.model.checkpoint import Checkpoint
from watcher.model.decision import Network, Policy
from watcher.model.review_triggers import ReviewRules
from watcher.service.stall_detection import StallLimits


@dataclass(frozen=True)
class Stations:
    """The stations, and the settings of the stages between them. Frozen: a reload replaces them all at once."""

    inbox: Inbox
    """The inbox that producers write to."""
    watch: EventWatcher | None
    """The events of that inbox; None where scans alone serve."""
    scan_interval_s: float
    settle_s: float
    patience_s: float
    decoders: DecoderPool
    batch_size: int
    max_wait_ms: float
    network: Network
    device: Callable[[], str]
    """Returns the name of the device that the network is on."""
    policy: Policy
    review_rules: ReviewRules
    title: Callable[[Decoded], str | None]
    """Returns the name under which an image is filed, or None to keep its own."""
    executor: DecisionExecutor
    limits: StallLimits

    @property
    def max_under_way(self) -> int:
        """The number of files that may be between completeness and filing."""
        return 4 * self.batch_size


def make(
    settings: Config,
    weights: Checkpoint,
    inbox: Inbox,
    watch: EventWatcher | None,
    decoders: DecoderPool,
    network: tuple[Network, Callable[[], str]],
    executor: DecisionExecutor,
) -> Stations:
    """Put stations together, and add what follows from the settings alone."""
    return Stations(
        inbox,
        watch,
        settings.inbox.scan_interval_s,
        settings.inbox.settle_s,
        settings.inbox.patience_s,
        decoders,
        settings.batch.size,
        settings.batch.max_wait_ms,
        *network,
        policy=thresholds.policy(settings.review, weights),
        review_rules=review_rules(settings),
        title=dicom_title(settings),
        executor=executor,
        limits=stall_limits(settings),
    )


def stall_limits(settings: Config) -> StallLimits:
    """Return the time that each stage may take over a file that costs as much as the settings allow."""
    mib = settings.decode.max_bytes / 2**20
    return StallLimits(
        decode=decoder_pool.START_S + settings.decode.timeout_s + 20,  # a new process, and all of its time
        filing=60 + mib,  # copied at 1 MiB/s, and the ledger may wait for others for half a minute
    )


def new_decoders(settings: Config, owned: InboxOwnership) -> DecoderPool:
    """Return a pool of decoder processes that is not yet started."""
    template = settings.output.dicom_name
    tags = dicom_filenames.tags(template) if template else ()
    return DecoderPool(owned.inbox, decoder_limits(settings), settings.decode.timeout_s, tags=tags)


def dicom_title(settings: Config) -> Callable[[Decoded], str | None]:
    """Return a function that names a DICOM file by its tags, if the settings ask for it."""
    template = settings.output.dicom_name
    return lambda image: dicom_filenames.name(template, dict(image.tags)) if template and image.tags else None


def review_rules(settings: Config) -> ReviewRules:
    """Return the rules by which a file's own data send it to a person although the network is sure of it."""
    return ReviewRules(settings.decode.multi_frame, settings.review.metadata_disagrees)


def usable_destinations(settings: Config, owned: InboxOwnership, weights: Checkpoint) -> tuple[Mover, Destinations]:
    """Make every directory that files go to, and return them with what moves files there.

    Raises:
        Fatal: exit code 5; a directory can not be made or written.
    """
    places, mover = destinations.places(settings), Mover(owned.inbox, file_mode(settings))
    if settings.mode == "shadow":
        return mover, places  # nothing is moved there
    for directory in places.all(weights.classes):
        prepare(directory)
        mover.expect(directory)
    if places.rejected.is_dir():
        mover.expect(places.rejected)
    return mover, places


def new_executor(
    settings: Config, ledger: Ledger, mover: Mover, places: Destinations, weights: Checkpoint
) -> DecisionExecutor:
    """Return what carries decisions out; in shadow mode it only records them."""
    kind = ShadowExecutor if settings.mode == "shadow" else DecisionExecutor
    rules = DuplicateRules(**dict(settings.collisions))
    return kind(ledger, mover, places, weights.digest, rules, keep_subdirectories=settings.output.keep_subdirectories)


def new_inbox(settings: Config) -> Inbox:
    """Return the inbox that producers write to."""
    wanted, kind = settings.inbox, ShadowInbox if settings.mode == "shadow" else Inbox
    return kind(wanted.path, wanted.ignore, wanted.sentinel, recursive=wanted.recursive)


def usable_inbox(settings: Config) -> Inbox:
    """Return the inbox. It is there, and files can be moved out of it (in shadow mode: read).

    Raises:
        Fatal: exit code 5; it is not.
    """
    inbox = new_inbox(settings)
    try:
        next(inbox.scan(), None)
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
            mounts.write_advice(settings.inbox.path),
            Exit.DIRECTORY,
        )
    return inbox


def new_watch(settings: Config, wake: Callable[[], None]) -> EventWatcher | None:
    """Return the events of the inbox, or None where the settings want scans alone. Start it where events must work.

    Raises:
        Fatal: exit code 5; events must work and do not.
    """
    wanted = settings.inbox.watch
    if wanted == "scan":
        return None
    watch = EventWatcher(settings.inbox.path, wake, anywhere=wanted == "events", recursive=settings.inbox.recursive)
    if wanted == "events":
        try:
            watch.start()
        except Retry as error:
            raise Fatal(str(error), "Mend that, or set inbox.watch to auto.", Exit.DIRECTORY) from error
    return watch
