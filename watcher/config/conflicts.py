"""Find settings that are valid one by one but not together."""

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


class Conflict(NamedTuple):
    """Two settings that exclude each other. ``problem`` says what ``key`` must be because of ``other``."""

    key: Key
    other: Key
    problem: str


def find(config: Config) -> Iterator[Conflict]:
    """Yield all conflicts in settings whose paths are absolute."""
    yield from _directories(config)
    yield from _log(config)
    yield from _names(config)
    if config.inbox.shared and config.inbox.recursive:
        problem = "must be false where inbox.shared is true: workers claim single files, not directories"
        yield Conflict(("inbox", "recursive"), ("inbox", "shared"), problem)
    if config.mode == "shadow" and config.inbox.shared:  # a worker claims its files by renaming them
        yield Conflict(("inbox", "shared"), ("", "mode"), "must be false in shadow mode, which moves nothing")
    if config.drift.min_files > config.drift.window_files:
        problem = f"must not be greater than drift.window_files ({config.drift.window_files}), or drift is never found"
        yield Conflict(("drift", "min_files"), ("drift", "window_files"), problem)
    if config.model.precision == "bfloat16" and config.model.runtime == "onnxruntime":
        problem = "must be float32 where model.runtime is onnxruntime"
        yield Conflict(("model", "precision"), ("model", "runtime"), problem)


def _directories(config: Config) -> Iterator[Conflict]:
    """Find directories that would feed the daemon its own output, or that would be one and the same."""
    directories = {key: _real_path(config, key) for key in (INBOX, *OUTPUTS, STATE)}
    for (first, first_path), (second, second_path) in itertools.combinations(directories.items(), 2):
        first_name = f"{'.'.join(first)} ({first_path})"
        if first_path == second_path:
            yield Conflict(second, first, f"must not be the same directory as {first_name}")
        elif first == INBOX and second_path.is_relative_to(first_path):
            yield Conflict(second, first, f"must not lie inside {first_name}")
        elif first == INBOX and second != STATE and first_path.is_relative_to(second_path):
            yield Conflict(first, second, f"must not lie inside {'.'.join(second)} ({second_path})")


def _log(config: Config) -> Iterator[Conflict]:
    """Find a log file that the daemon would sort, or that would lie among the images."""
    if config.log.file is None:
        return
    for key in (INBOX, *OUTPUTS):
        directory = _real_path(config, key)
        if _real_path(config, LOG).is_relative_to(directory):
            yield Conflict(LOG, key, f"must not lie inside {'.'.join(key)} ({directory})")


def _names(config: Config) -> Iterator[Conflict]:
    """Find a template of names that identifies the patient although the operator did not allow that."""
    template = config.output.dicom_name
    personal = [tag for tag in dicom_filenames.tags(template) if tag in dicom_filenames.PERSONAL] if template else []
    if personal and not config.output.patient_data_in_names:
        problem = (
            f"{personal[0]} says who the patient is: set output.patient_data_in_names to true if file names and the "
            "log may say that"
        )
        yield Conflict(("output", "dicom_name"), ("output", "patient_data_in_names"), problem)


def _real_path(config: Config, key: Key) -> Path:
    """Return the path of a setting with all symbolic links resolved."""
    section, name = key
    return Path(os.path.realpath(getattr(getattr(config, section), name)))
