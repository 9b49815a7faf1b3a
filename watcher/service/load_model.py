"""The classifier station of the settings: what the composition is given, and what whoever tests it replaces."""

from __future__ import annotations

from collections.abc import Callable

from watcher.config.loader import Config
from watcher.model.checkpoint import Checkpoint
from watcher.model.decision import Network
from watcher.monitoring.log import Logger


def load(settings: Config, weights: Checkpoint, logger: Logger) -> tuple[Network, Callable[[], str]]:
    """The classifier station, and what tells the device it is on. Imports torch."""
    from watcher.model import classifier

    classifier.use_threads(settings.model.threads)
    device = classifier.choose_device(settings.model.device)
    station = classifier.Classifier(
        classifier.build(weights),
        device,
        lambda event, detail: logger.warning(event, detail=detail),
        settings.model.runtime,
        settings.model.precision,
    )
    station.warm_up(settings.batch.size)
    what = {"device": str(station.device), "runtime": station.runtime, "note": station.note}
    logger.info("model.ready", weights=weights.digest, **what)
    return classifier.scoring(station, weights), (lambda: str(station.device))
