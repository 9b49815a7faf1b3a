"""Settings that are each right and can not be had together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from watcher.config.settings import Config, Key
from watcher.images import dicom_filenames

INBOX: Key = ("inbox", "path")
STATE: Key = ("state", "path")
OUTPUTS: tuple[Key, ...] = tuple(("output", key) for key in ("sorted", "review", "quarantine", "rejected"))
LOG: Key = ("log", "file")


class Clash(NamedTuple):
    """``problem`` says, in words, what ``key`` must be because of what ``other`` is."""

    key: Key
    other: Key
    problem: str


def found(config: Config) -> Iterator[Clash]:
    """All there are. Paths are those that the daemon would use."""
    yield from _directories(config)
    yield from _log(config)
    yield from _names(config)
    if config.inbox.shared and config.inbox.recursive:
        problem = "must be false where inbox.shared is true: claims know no directories"
        yield Clash(("inbox", "recursive"), ("inbox", "shared"), problem)
    if config.mode == "shadow" and config.inbox.shared:  # a share of the inbox is claimed by renaming
        yield Clash(("inbox", "shared"), ("", "mode"), "must be false in shadow mode, which moves nothing")
    if config.drift.min_files > config.drift.window_files:
        problem = f"must not be greater than drift.window_files ({config.drift.window_files}), or drift is never told"
        yield Clash(("drift", "min_files"), ("drift", "window_files"), problem)
    if config.model.precision == "bfloat16" and config.model.runtime == "onnxruntime":
        problem = "must be float32 where model.runtime is onnxruntime"
        yield Clash(("model", "precision"), ("model", "runtime"), problem)


def _directories(config: Config) -> Iterator[Clash]:
    """Directories that would feed the daemon its own output, or hide one behind another."""
    spots = {key: _real(config, key) for key in (INBOX, *OUTPUTS, STATE)}
    for (one, here), (other, there) in itertools.combinations(spots.items(), 2):
        spot = f"{'.'.join(one)} ({here})"
        if here == there:
            yield Clash(other, one, f"must not be the same directory as {spot}")
        elif one == INBOX and there.is_relative_to(here):
            yield Clash(other, one, f"must not lie inside {spot}")
        elif one == INBOX and other != STATE and here.is_relative_to(there):
            yield Clash(one, other, f"must not lie inside {'.'.join(other)} ({there})")


def _log(config: Config) -> Iterator[Clash]:
    """A log file that the daemon would sort, or that would lie among the images."""
    if config.log.file is None:
        return
    for key in (INBOX, *OUTPUTS):
        directory = _real(config, key)
        if _real(config, LOG).is_relative_to(directory):
            yield Clash(LOG, key, f"must not lie inside {'.'.join(key)} ({directory})")


def _names(config: Config) -> Iterator[Clash]:
    """Names made of what says who the patient is, where that was not asked for."""
    template = config.output.dicom_name
    personal = [tag for tag in dicom_filenames.tags(template) if tag in dicom_filenames.PERSONAL] if template else []
    if personal and not config.output.patient_data_in_names:
        told = f"{personal[0]} says who the patient is: set output.patient_data_in_names if names and logs may say it"
        yield Clash(("output", "dicom_name"), ("output", "patient_data_in_names"), told)


def _real(config: Config, key: Key) -> Path:
    section, name = key
    return Path(os.path.realpath(getattr(getattr(config, section), name)))
