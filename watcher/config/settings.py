"""Every key an operator can set, with its default and its bounds. Units are in the names.

``config.yaml`` explains them at length; :mod:`watcher.config.loader` reads them.
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
"""A setting: its section and its name. ``mode`` has no section."""

IGNORE = (
    *(".*", "*~", "~$*", "~syncthing~*", "*.part", "*.filepart", "*.partial", "*.tmp", "*.crdownload", "*.download"),
    *("[Tt]humbs.db", "ehthumbs.db", "[Dd]esktop.ini", "@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle"),
    *("#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
)
"""Names that producers use for files in flight, and that desktops and network storage leave behind."""


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
        raise ValueError("must be written out, `~` does not stand for a home directory here")
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
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]
_Recent = Annotated[int, Field(ge=1, le=1_000_000)]
"""Files that are held in memory, about 100 bytes each."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Inbox(_Section):
    """Where files arrive, and when one counts as complete. ``_s`` are seconds."""

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
    """Where files go, and the octal mode they get (None: they keep theirs).

    Class directories are made below ``sorted``; ``rejected`` is made when a person first rejects an image.
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
    """What becomes of a file whose name or bytes were filed under a class before. Never overwritten or deleted."""

    same_name_same_bytes: Action = "keep"
    same_name_other_bytes: Action = "keep"
    other_name_same_bytes: Action = "keep"


class State(_Section):
    """Where the ledger and the lock lie: never on a network file system."""

    path: _Path = Path("state")


class Model(_Section):
    """Weights (None: those shipped with the product), what computes them, and how (0 threads: all cores)."""

    weights: _Path | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    runtime: Literal["auto", "torch", "onnxruntime"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, Field(ge=0)] = 0


class Batch(_Section):
    """How many images are classified at once, and how long the oldest waits, in milliseconds."""

    size: Annotated[int, Field(ge=1, le=4096)] = 64
    max_wait_ms: _NotNegative = 25.0


class Decode(_Section):
    """What one file may cost: bytes on disk, pixels, MiB of memory, seconds. And what several frames are."""

    max_bytes: _Count = 64 * 1024 * 1024
    max_pixels: _Count = 64_000_000
    memory_mb: Annotated[int, Field(ge=1, le=1024 * 1024)] = 1024
    timeout_s: _Positive = 10.0
    multi_frame: Literal["review", "middle"] = "review"


class Review(_Section):
    """When a person decides (None: as the thresholds stored with the weights say), and of what else."""

    accept_rate: _Share | None = None
    max_wrong_rate: _Share | None = None
    min_confidence: _Share | None = None
    blank_images: bool = False
    metadata_disagrees: bool = True


class Drift(_Section):
    """How many recent files (of so many hours) are held against how many earlier ones; how far each figure may go."""

    window_files: _Recent = 2000
    window_h: _Positive = 168.0
    min_files: _Count = 500
    reference_files: _Recent = 10000
    review_rate: _Share | None = 0.05
    confidence: _Share | None = 0.03
    class_mix: _Share | None = 0.4


class Metrics(_Section):
    """Where Prometheus reads the figures (None: nowhere; 0: any free port, which the log tells)."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    address: _Text = "127.0.0.1"


class Log(_Section):
    """How the log is written (auto: console on a terminal, else JSON), from which level on, and to which file too."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: _Path | None = None


class Config(_Section):
    """All settings. As made by :func:`load`, every path in it is absolute.

    ``mode``: shadow decides and records, and moves nothing.
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

    def below(self, base: Path) -> Config:
        """Give the same settings, relative paths resolved against the directory ``base``."""
        return self.model_copy(update={name: _below(section, base) for name, section in self.sections()})

    def sections(self) -> Iterator[tuple[str, BaseModel]]:
        """The sections, each with its name: all but ``mode``."""
        return ((name, value) for name, value in self if isinstance(value, BaseModel))


def _below(section: BaseModel, base: Path) -> BaseModel:
    return section.model_copy(update={key: base / value for key, value in section if isinstance(value, Path)})
