"""Reload: the config read anew on SIGHUP, whole or not at all.

Everything new is made and tried beside what is in use, in a thread of its own: config, weights, device, decoders,
directories. Only if all of it stands is it put in, at a moment when no file is under way (see
:meth:`watcher.service.pipeline.Pipeline.renew`): no file is handled half by the old and half by the new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from watcher.config import loader
from watcher.config.loader import Config
from watcher.core.errors import Exit, Fatal
from watcher.filing import destinations
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.shadow_mode import ShadowInbox
from watcher.images.decoder_pool import DecoderPool
from watcher.inbox.events import EventWatcher
from watcher.inbox.ownership import InboxOwnership
from watcher.inbox.scan import Inbox
from watcher.model import checkpoint, promotions, thresholds
from watcher.model.batching import Batcher
from watcher.model.decision import Network, Policy
from watcher.monitoring import log_output
from watcher.monitoring.log import Logger
from watcher.monitoring.log_output import LogFile
from watcher.service import build
from watcher.service.pipeline import Pipeline
from watcher.service.systemd import SystemdNotifier

FIXED = ("mode", "inbox.path", "inbox.shared", "inbox.recursive", "state.path", "metrics.port", "metrics.address")
"""Keys that can not change while the daemon runs: a restart is needed, which loses nothing either."""

NETWORK = {"batch.size", "model.device", "model.precision", "model.runtime", "model.threads"}
"""Keys that the network is made and warmed up by."""


@dataclass(frozen=True)
class ReloadedParts:
    """What was made from a new config, and is not in use yet. None: what there is stays."""

    settings: Config
    changed: tuple[str, ...]
    source: Inbox
    executor: DecisionExecutor
    weights: checkpoint.Checkpoint
    policy: Policy
    decoders: DecoderPool | None = None
    watch: EventWatcher | None = None
    network: tuple[Network, Callable[[], str]] | None = None
    log_file: LogFile | None = None

    def put_in(self, route: Pipeline) -> None:
        """Let the route work with it. Nothing is under way."""
        inbox, batch = self.settings.inbox, self.settings.batch
        outer = route.front.arrivals if route.front else route.arrivals
        self.source.folders = outer.inbox.folders  # they stay watched until the next scan has ended
        if isinstance(self.source, ShadowInbox):
            self.source.inherit(outer.inbox)
            route.keep = self.source.know
        outer.inbox = self.source
        if "inbox.watch" in self.changed:
            if outer.watch is not None:
                outer.watch.stop()
            outer.watch = self.watch
            outer.keep_watched()
        for arrivals in {id(each): each for each in (outer, route.arrivals)}.values():
            arrivals.scan_interval_s = inbox.scan_interval_s
            arrivals.pending.retime(inbox.settle_s, inbox.patience_s)
        route.batcher, route.in_flight = Batcher(batch.size, batch.max_wait_ms), 4 * batch.size
        route.policy = self.policy
        route.doubts, route.title = build.doubts(self.settings), build.title(self.settings)
        route.executor, route.limits = self.executor, build.limits(self.settings)
        route.counters.drift = build.watched(self.settings, self.weights, self.executor.ledger)
        if self.network is not None:
            route.use(*self.network)
        if self.decoders is not None:
            route.decoders.close()
            route.decoders = self.decoders

    def discard(self) -> None:
        """It is not wanted after all."""
        if self.decoders is not None:
            self.decoders.close()
        if self.watch is not None:
            self.watch.stop()
        if self.log_file is not None:
            self.log_file.close()


class ReloadBuilder:
    """Makes what is new of a config file."""

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        owned: InboxOwnership,
        wake: Callable[[], None],
        load: build.Loader,
    ) -> None:
        self._path, self._environ, self._owned, self._wake, self._load = path, environ, owned, wake, load

    def make(self, old: Config, executor: DecisionExecutor, log: Logger) -> ReloadedParts:
        """Everything that the file asks for, ready to go. What is in use is not touched.

        Raises:
            Fatal: it can not be used, whatever is wrong with it.
        """
        new = loader.load(self._path, self._environ)
        changed = differences(old, new)
        fixed = [key for key in changed if key in FIXED]
        if fixed:
            raise Fatal(f"{', '.join(fixed)} can not change while the daemon runs", "Restart it instead.", Exit.CONFIG)
        weights = checkpoint.load(promotions.weights_path(None, new))
        policy = thresholds.policy(new.review, weights)
        fresh = ReloadedParts(new, changed, build.usable_inbox(new), executor, weights, policy)
        with contextlib.ExitStack() as unwanted:
            unwanted.callback(lambda: fresh.discard())  # as far as it has come by then
            if any(key.startswith("decode.") or key == "output.dicom_name" for key in changed):
                fresh = replace(fresh, decoders=build.pool(new, self._owned))
                assert fresh.decoders is not None
                fresh.decoders.start()
            if weights.digest != executor.model or NETWORK & set(changed):
                fresh = replace(fresh, network=self._load(new, weights, log))
            if "inbox.watch" in changed:
                fresh = replace(fresh, watch=build.watch(new, self._wake))
            fresh = replace(fresh, log_file=log_output.log_file(new))
            _refuse_lost_mounts(new, weights, executor)
            mover, where = build.directories(new, self._owned, weights)
            unwanted.pop_all()
        return replace(fresh, executor=build.executor(new, executor.ledger, mover, where, weights.digest))


def _refuse_lost_mounts(settings: Config, weights: checkpoint.Checkpoint, executor: DecisionExecutor) -> None:
    """While a mount is gone, no directory is made beneath its mount point: files would be hidden there later."""
    places = destinations.places(settings)
    for directory in (*places.all(weights.classes), places.rejected):
        try:
            executor.mover.refuse_lost_mount(directory)
        except OSError as error:
            raise Fatal(
                f"{directory}: {error.strerror}", "Mount what belongs there, then reload again.", Exit.DIRECTORY
            ) from error


def differences(old: Config, new: Config) -> tuple[str, ...]:
    """The keys that are not the same in both."""
    mode = ("mode",) if old.mode != new.mode else ()
    return mode + tuple(
        f"{section}.{key}"
        for section, mine in old.sections()
        for key, value in mine
        if getattr(getattr(new, section), key) != value
    )


class Reload:
    """Carries out reloads, one at a time. :meth:`ask` and :meth:`turn` are called by the loop."""

    def __init__(
        self, settings: Config, maker: ReloadBuilder, notifier: SystemdNotifier, log: Logger, wake: Callable[[], None]
    ) -> None:
        self.settings = settings
        self._maker, self._notifier, self._log, self._wake = maker, notifier, log, wake
        self._thread = ThreadPoolExecutor(1, "reload")
        self._making: Future[ReloadedParts] | None = None
        self._asked = False
        self._waiting: ReloadedParts | None = None
        self.done: Callable[[ReloadedParts], None] = lambda fresh: None
        """Told of each success."""

    def ask(self) -> None:
        """The config may have changed. Asked again meanwhile, it is read once more at the end."""
        self._asked = True

    def turn(self, route: Pipeline) -> None:
        """Do what can be done just now."""
        if self._making is not None and self._making.done():
            self._made(route, self._making)
            self._making = None
        if self._asked and self._making is None and self._waiting is None:
            self._asked = False
            self._notifier.reloading()
            self._log.info("reload.started")
            self._making = self._thread.submit(self._maker.make, self.settings, route.executor, self._log)
            self._making.add_done_callback(lambda _: self._wake())

    def _made(self, route: Pipeline, making: Future[ReloadedParts]) -> None:
        error = making.exception()  # of a thread of its own: whatever it is, it is no reason to stop sorting
        if isinstance(error, Fatal):
            self._refuse(route, error.problem, error.advice)
        elif error is not None:
            self._refuse(route, f"{type(error).__name__}: {error}", "The daemon goes on as it was.")
        else:
            fresh = self._waiting = making.result()
            route.renew(lambda: self._put_in(fresh, route))

    def _refuse(self, route: Pipeline, problem: str, advice: str) -> None:
        route.counters.config_refused = True
        self._log.error("reload.refused", problem=problem, advice=advice, note="the old config stays in force")
        self._notifier.ready()

    def _put_in(self, fresh: ReloadedParts, route: Pipeline) -> None:
        fresh.put_in(route)
        self.done(fresh)
        self.settings, self._waiting = fresh.settings, None
        route.counters.config_refused = False
        self._log.info("reload.done", changed=list(fresh.changed), model=fresh.weights.digest, device=route.device())
        self._notifier.ready()
        self._wake()

    def close(self) -> None:
        """End. What was being made is not used."""
        self._thread.shutdown(wait=True)
        if self._making is not None and self._making.exception() is None:
            self._waiting = self._making.result()
        if self._waiting is not None:
            self._waiting.discard()
