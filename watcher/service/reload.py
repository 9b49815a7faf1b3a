"""Read the config anew on SIGHUP, whole or not at all.

Everything new is made and tried beside what is in use, in a thread of its own: config, weights, device, decoders,
directories. Only if all of it stands is it put in, at a moment when no file is under way (see
:meth:`watcher.service.pipeline.Pipeline.drain`): no file is handled half by the old and half by the new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from watcher.config import loader
from watcher.config.settings import Config
from watcher.core.errors import Exit, Fatal
from watcher.filing import destinations
from watcher.filing.mover import Mover
from watcher.inbox.ownership import InboxOwnership
from watcher.model import checkpoint, promotions
from watcher.model.checkpoint import Checkpoint
from watcher.monitoring.log import Logger
from watcher.monitoring.log_output import LogFile, log_file
from watcher.service import build, stations
from watcher.service.pipeline import Pipeline
from watcher.service.stations import Stations
from watcher.service.systemd import SystemdNotifier

FIXED = ("mode", "inbox.path", "inbox.shared", "inbox.recursive", "state.path", "metrics.port", "metrics.address")
"""Keys that can not change while the daemon runs: a restart is needed, which loses nothing either."""

NETWORK = {"batch.size", "model.device", "model.precision", "model.runtime", "model.threads"}
"""Keys that the network is made and warmed up by."""


@dataclass(frozen=True)
class Reloaded:
    """New stations made from a new config, not in use yet."""

    settings: Config
    changed: tuple[str, ...]
    weights: Checkpoint
    stations: Stations
    log_file: LogFile | None

    def discard(self, used: Stations) -> None:
        """Close what is new, where it is not wanted after all. ``used`` are the stations that stay."""
        if self.stations.decoders is not used.decoders:
            self.stations.decoders.close()
        if self.stations.watch is not None and self.stations.watch is not used.watch:
            self.stations.watch.stop()
        if self.log_file is not None:
            self.log_file.close()


class ReloadBuilder:
    """Makes new stations from a config file."""

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        owned: InboxOwnership,
        wake: Callable[[], None],
        load: build.Loader,
    ) -> None:
        self._path, self._environ, self._owned, self._wake, self._load = path, environ, owned, wake, load

    def make(self, old: Config, used: Stations, log: Logger) -> Reloaded:
        """Make everything that the file asks for, ready to go. What is in use is not touched.

        Raises:
            Fatal: it can not be used, whatever is wrong with it.
        """
        new = loader.load(self._path, self._environ)
        changed = differences(old, new)
        fixed = [key for key in changed if key in FIXED]
        if fixed:
            raise Fatal(f"{', '.join(fixed)} can not change while the daemon runs", "Restart it instead.", Exit.CONFIG)
        weights = checkpoint.load(promotions.weights_path(None, new))
        network, watch, decoders = (used.network, used.device), used.watch, used.decoders
        inbox = stations.usable_inbox(new)
        with contextlib.ExitStack() as unwanted:
            if any(key.startswith("decode.") or key == "output.dicom_name" for key in changed):
                decoders = stations.new_decoders(new, self._owned)
                unwanted.callback(decoders.close)
                decoders.start()
            if weights.digest != used.executor.model or NETWORK & set(changed):
                network = self._load(new, weights, log)
            if "inbox.watch" in changed:
                watch = stations.new_watch(new, self._wake)
                if watch is not None:
                    unwanted.callback(watch.stop)
            file = log_file(new)
            if file is not None:
                unwanted.callback(file.close)
            _refuse_lost_mounts(new, weights, used.executor.mover)
            mover, places = stations.usable_destinations(new, self._owned, weights)
            executor = stations.new_executor(new, used.executor.ledger, mover, places, weights)
            fresh = stations.make(new, weights, inbox, watch, decoders, network, executor)
            unwanted.pop_all()
        return Reloaded(new, changed, weights, fresh, file)


def _refuse_lost_mounts(settings: Config, weights: Checkpoint, mover: Mover) -> None:
    """While a mount is gone, no directory is made beneath its mount point: files would be hidden there later."""
    places = destinations.places(settings)
    for directory in (*places.all(weights.classes), places.rejected):
        try:
            mover.refuse_lost_mount(directory)
        except OSError as error:
            raise Fatal(
                f"{directory}: {error.strerror}", "Mount what belongs there, then reload again.", Exit.DIRECTORY
            ) from error


def differences(old: Config, new: Config) -> tuple[str, ...]:
    """Return the keys that differ."""
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
        self, settings: Config, builder: ReloadBuilder, notifier: SystemdNotifier, log: Logger, wake: Callable[[], None]
    ) -> None:
        self.settings = settings
        self._builder, self._notifier, self._log, self._wake = builder, notifier, log, wake
        self._thread = ThreadPoolExecutor(1, "reload")
        self._making: Future[Reloaded] | None = None
        self._asked = False
        self._waiting: Reloaded | None = None
        self._used: Stations | None = None
        self.done: Callable[[Reloaded], None] = lambda reloaded: None
        """Called after each success."""

    def ask(self) -> None:
        """Note that the config may have changed. Asked again meanwhile, it is read once more at the end."""
        self._asked = True

    def turn(self, pipeline: Pipeline) -> None:
        """Do what can be done just now."""
        if self._making is not None and self._making.done():
            self._made(pipeline, self._making)
            self._making = None
        if self._asked and self._making is None and self._waiting is None:
            self._asked, self._used = False, pipeline.stations
            self._notifier.reloading()
            self._log.info("reload.started")
            self._making = self._thread.submit(self._builder.make, self.settings, pipeline.stations, self._log)
            self._making.add_done_callback(lambda _: self._wake())

    def _made(self, pipeline: Pipeline, making: Future[Reloaded]) -> None:
        error = making.exception()  # of a thread of its own: whatever it is, it is no reason to stop sorting
        if isinstance(error, Fatal):
            self._refuse(pipeline, error.problem, error.advice)
        elif error is not None:
            self._refuse(pipeline, f"{type(error).__name__}: {error}", "The daemon goes on as it was.")
        else:
            reloaded = self._waiting = making.result()
            pipeline.drain(then=lambda: self._put_in(reloaded, pipeline))

    def _refuse(self, pipeline: Pipeline, problem: str, advice: str) -> None:
        pipeline.counters.config_refused = True
        self._log.error("reload.refused", problem=problem, advice=advice, note="the old config stays in force")
        self._notifier.ready()

    def _put_in(self, reloaded: Reloaded, pipeline: Pipeline) -> None:
        pipeline.use(reloaded.stations)
        executor = reloaded.stations.executor
        pipeline.counters.drift = build.drift_watch(reloaded.settings, reloaded.weights, executor.ledger)
        self.done(reloaded)
        self.settings, self._waiting = reloaded.settings, None
        pipeline.counters.config_refused = False
        model, device = reloaded.weights.digest, reloaded.stations.device()
        self._log.info("reload.done", changed=list(reloaded.changed), model=model, device=device)
        self._notifier.ready()
        self._wake()

    def close(self) -> None:
        """End. What was being made is not used."""
        self._thread.shutdown(wait=True)
        if self._making is not None and self._making.exception() is None:
            self._waiting = self._making.result()
        if self._waiting is not None and self._used is not None:
            self._waiting.discard(self._used)
