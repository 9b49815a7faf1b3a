"""Define every key that an operator can set, with its default and its bounds. Names end in units.

``config.yaml`` explains the keys at length, and :mod:`watcher.config.loader` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from watcher.images import dicom_filenames

Action = Literal["keep", "review", "quarantine"]
Key = tuple[str, str]
"""The section and the name of a setting. The section of ``mode`` is empty."""

IGNORE = (
    *(".*", "*~", "~$*", "~syncthing~*", "*.part", "*.filepart", "*.partial", "*.tmp", "*.crdownload", "*.download"),
    *("[Tt]humbs.db", "ehthumbs.db", "[Dd]esktop.ini", "@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle"),
    *("#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
)
"""Patterns of names that producers use for unfinished files, and that desktops and network storage leave behind."""


def _checked_text(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("must not be empty" if not text else "must not hold a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be text that UTF-8 can write")
    return text


def _to_path(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.startswith("~"):
        raise ValueError("must be written out: `~` does not stand for a home directory here")
    return Path(_checked_text(value))


def _checked_name(text: str) -> str:
    if "/" in _checked_text(text) or text in (".", ".."):
        raise ValueError("must be the name of a file in the inbox, not a path")
    return text


def _checked_mode(text: str) -> str:
    if not re.fullmatch("0?[0-7]{3}", text) or not int(text, 8) & 0o400:
        raise ValueError('must be an octal mode in quotes that lets its owner read, such as "0640"')
    return text


def _checked_template(text: str) -> str:
    dicom_filenames.tags(text)
    return text


_Path = Annotated[Path, BeforeValidator(_to_path)]
_Text = Annotated[str, AfterValidator(_checked_text)]
_Name = Annotated[str, AfterValidator(_checked_name)]
_Mode = Annotated[str, AfterValidator(_checked_mode)]
_Template = Annotated[str, AfterValidator(_checked_template)]
_NotNegative = Annotated[float, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]
_FilesInMemory = Annotated[int, Field(ge=1, le=1_000_000)]
"""A number of files. Each takes about 100 bytes of memory."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Inbox(_Section):
    """The directory where files arrive, and the conditions for a file to count as complete."""

    path: _Path = Path("inbox")
    settle_s: _NotNegative = 2.0
    patience_s: _NotNegative = 30.0
    scan_interval_s: _Positive = 5.0
    watch: Literal["auto", "events", "scan"] = "auto"
    sentinel: _Name | None = None
    shared: bool = False
    recursive: bool = False
    ignore: tuple[_Text, ...] = IGNORE


class Output(_Section):
    """The directories where files go, their octal mode there (None keeps theirs) and their names.

    The directories of the classes are below ``sorted``. ``rejected`` is made when a person first rejects an image.
    """

    sorted: _Path = Path("sorted")
    review: _Path = Path("review")
    quarantine: _Path = Path("quarantine")
    rejected: _Path = Path("rejected")
    file_mode: _Mode | None = None
    keep_subdirectories: bool = False
    dicom_name: _Template | None = None
    patient_data_in_names: bool = False


class Collisions(_Section):
    """The action on a file whose name or bytes were filed under a class before. No action overwrites or deletes."""

    same_name_same_bytes: Action = "keep"
    same_name_other_bytes: Action = "keep"
    other_name_same_bytes: Action = "keep"


class State(_Section):
    """The directory of the ledger and the lock, which must not be on a network file system."""

    path: _Path = Path("state")


class Model(_Section):
    """The weights (None: those of the product), and what computes the network (0 threads: one for each core)."""

    weights: _Path | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    runtime: Literal["auto", "torch", "onnxruntime"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, Field(ge=0)] = 0


class Batch(_Section):
    """The number of images that are classified at once, and the longest time that one waits for others."""

    size: Annotated[int, Field(ge=1, le=4096)] = 64
    max_wait_ms: _NotNegative = 25.0


class Decode(_Section):
    """The limits on one file (bytes on disk, pixels, MiB of memory, seconds), and the action on several frames."""

    max_bytes: _Count = 64 * 1024 * 1024
    max_pixels: _Count = 64_000_000
    memory_mb: Annotated[int, Field(ge=1, le=1024 * 1024)] = 1024
    timeout_s: _Positive = 10.0
    multi_frame: Literal["review", "middle"] = "review"


class Review(_Section):
    """The conditions under which a person decides. None stands for the thresholds that are stored with the weights."""

    accept_rate: _Fraction | None = None
    max_wrong_rate: _Fraction | None = None
    min_confidence: _Fraction | None = None
    blank_images: bool = False
    metadata_disagrees: bool = True


class Drift(_Section):
    """The numbers of recent and of earlier files to compare, and the largest change of each figure (None: any)."""

    window_files: _FilesInMemory = 2000
    window_h: _Positive = 168.0
    min_files: _Count = 500
    reference_files: _FilesInMemory = 10000
    review_rate: _Fraction | None = 0.05
    confidence: _Fraction | None = 0.03
    class_mix: _Fraction | None = 0.4


class Metrics(_Section):
    """The port and address at which Prometheus reads the metrics (None: no port; 0: any free port, see the log)."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    address: _Text = "127.0.0.1"


class Log(_Section):
    """The format of the log (auto: console on a terminal, else JSON), its lowest level, and a file that gets it too."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: _Path | None = None


class Config(_Section):
    """All settings. :func:`watcher.config.loader.load` makes every path in them absolute.

    In ``mode`` shadow the daemon decides and records, but moves nothing.
    """

    mode: Literal["sort", "shadow"] = "sort"
    inbox: Inbox = Inbox()
    output: Output = Output()
    collisions: Collisions = Collisions()
    state: State = State()
    model: Model = Model()
    batch: Batch = Batch()
    decode: Decode = Decode()
    review: Review = Review()
    drift: Drift = Drift()
    metrics: Metrics = Metrics()
    log: Log = Log()

    def resolve_paths(self, base: Path) -> Config:
        """Return a copy in which relative paths are resolved against the directory ``base``."""
        return self.model_copy(update={name: _resolve_paths(section, base) for name, section in self.sections()})

    def sections(self) -> Iterator[tuple[str, BaseModel]]:
        """Return the sections with their names. ``mode`` is not in any."""
        return ((name, value) for name, value in self if isinstance(value, BaseModel))


def _resolve_paths(section: BaseModel, base: Path) -> BaseModel:
    return section.model_copy(update={key: base / value for key, value in section if isinstance(value, Path)})
