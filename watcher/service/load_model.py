"""Load the classifier that the settings ask for. Tests of the daemon replace this function."""

from __future__ import annotations

from collections.abc import Callable

from watcher.config.loader import Config
from watcher.model.checkpoint import Checkpoint
from watcher.model.decision import Network
from watcher.monitoring.log import Logger


def load(settings: Config, weights: Checkpoint, logger: Logger) -> tuple[Network, Callable[[], str]]:
    """Return a function that scores images, and one that returns the name of its device. Imports torch."""
    from watcher.model import classifier

    classifier.use_threads(settings.model.threads)
    device = classifier.choose_device(settings.model.device)
    network = classifier.Classifier(
        classifier.build(weights),
        device,
        lambda event, detail: logger.warning(event, detail=detail),
        settings.model.runtime,
        settings.model.precision,
    )
    network.warm_up(settings.batch.size)
    fields = {"device": str(network.device), "runtime": network.runtime, "note": network.note}
    logger.info("model.ready", weights=weights.digest, **fields)
    return classifier.make_scorer(network, weights), (lambda: str(network.device))
