"""Find the demo's files by their digests, count them and draw them."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher.cli import contact_sheet
from watcher.cli.demo import synthetic_arrivals
from watcher.cli.demo.synthetic_arrivals import Drop
from watcher.core.printable import printable

PLACES = ("inbox", "sorted", "review", "quarantine")
COLUMNS = ("its class", "another class", "review", "quarantine", "inbox", "lost or double")
NO_CLASS = "(no class)"
SYNTHETIC = "Synthetic images, sampled from statistics of each class (MedNIST, CC BY-SA 4.0). They show no patient."

Line = Mapping[str, Any]
"""One entry of the daemon's log."""


@dataclass(frozen=True)
class DroppedFile:
    """A dropped file, all its paths below the demo's directory, and its entry in the log."""

    drop: Drop
    paths: tuple[Path, ...]
    line: Line = field(default_factory=dict)

    @property
    def accounted(self) -> bool:
        """True if the file lies in exactly one place."""
        return len(self.paths) == 1

    def column(self, root: Path) -> str:
        """Return the one of :data:`COLUMNS` that the file belongs to."""
        if not self.accounted:
            return "lost or double"
        place = self.paths[0].relative_to(root).parts
        if place[0] != "sorted":
            return place[0]
        return "its class" if place[1] == self.drop.label else "another class"


def find(root: Path, drops: Sequence[Drop], lines: Sequence[Line]) -> list[DroppedFile]:
    """Look for every dropped file by its SHA-256 in all directories that an operator would look in."""
    by_digest: dict[str, list[Path]] = {}
    for place in PLACES:
        for path in sorted((root / place).rglob("*")):
            if path.is_file():
                by_digest.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path)
    by_destination = {line["destination"]: line for line in lines if line.get("destination")}
    files = []
    for drop in drops:
        paths = tuple(by_digest.get(drop.digest, ()))
        line = by_destination.get(printable(str(paths[0])), {}) if paths else {}
        files.append(DroppedFile(drop, paths, line))
    return files


def report(root: Path, files: Sequence[DroppedFile], exit_code: int | None) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield from _table("arriving by", files, root, lambda file: file.drop.way)
    yield ""
    yield from _table("sampled from", files, root, lambda file: file.drop.label or NO_CLASS)
    yield ""
    if any(file.drop.way == synthetic_arrivals.NOISE and file.column(root) == "another class" for file in files):
        yield "the noise was filed as a class: a confident network is no proof that an image is one of the six"
    yield from _latency(files)
    lost = [file for file in files if not file.accounted]
    if lost:
        yield f"{len(lost)} of {len(files)} files are NOT in exactly one place (by SHA-256):"
        yield from (f"  {file.drop.name}: {[str(path) for path in file.paths] or 'nowhere'}" for file in lost)
    else:
        yield f"all {len(files)} files dropped lie in exactly one place each, checked by SHA-256"
    yield f"the daemon ended with exit code {'none: it had to be killed' if exit_code is None else exit_code}"


def _table(title: str, files: Sequence[DroppedFile], root: Path, key: Callable[[DroppedFile], str]) -> Iterator[str]:
    """Yield a table that counts the files by ``key`` in rows, and by place in columns. Empty columns are left out."""
    cells = Counter((key(file), file.column(root)) for file in files)
    columns = [name for name in COLUMNS if any(column == name for _, column in cells)]
    rows = sorted(dict.fromkeys(key(file) for file in files), key=lambda row: row == NO_CLASS)
    width = max(len(title), *(len(row) for row in rows))
    yield "  ".join([title.ljust(width), "dropped", *columns])
    for row in [*rows, "all"]:
        counts = [sum(n for (r, c), n in cells.items() if row in (r, "all") and c == column) for column in columns]
        numbers = [f"{count or '-':>{len(name)}}" for count, name in zip(counts, columns, strict=True)]
        yield "  ".join([row.ljust(width), f"{sum(counts):>7}", *numbers])


def _latency(files: Sequence[DroppedFile]) -> Iterator[str]:
    """Yield the latency of the files that were complete when first seen. The others depend on their producer."""
    complete = [file for file in files if file.drop.label and file.drop.way != synthetic_arrivals.SLOW]
    times = sorted(float(file.line["total_ms"]) for file in complete if "total_ms" in file.line)
    if len(times) > 1:
        high = times[min(len(times) - 1, len(times) * 95 // 100)]
        yield (
            f"first seen to filed: median {statistics.median(times):.0f} ms, 95 % within {high:.0f} ms "
            f"({len(times)} images that arrived whole)"
        )


def save_sheet(root: Path, files: Sequence[DroppedFile], path: Path) -> None:
    """Draw every file, grouped by the directory where it lies."""
    tiles = [synthetic_arrivals.tile(file.drop, _caption(file), group) for group, file in _grouped(root, files)]
    notes = (
        SYNTHETIC,
        "Grouped by where the daemon filed them. Under each: file name, class found (in brackets the class it was "
        "sampled from, where another), confidence.",
    )
    contact_sheet.draw(tiles, "mednet-watcher demo: synthetic images, no patients", notes).save(path)


def _grouped(root: Path, files: Sequence[DroppedFile]) -> list[tuple[str, DroppedFile]]:
    """Return the files with their directories: class directories first, by name, then those that need a person."""

    def group(file: DroppedFile) -> str:
        if not file.accounted:
            return "lost or double"
        parts = file.paths[0].relative_to(root).parts[:-1]
        return "/".join(parts) + "/"

    ranks = {name: rank for rank, name in enumerate(("sorted", "review/", "quarantine/", "inbox/"))}

    def sort_key(pair: tuple[str, DroppedFile]) -> tuple[int, str]:
        name = pair[0]
        return ranks["sorted"] if name.startswith("sorted/") else ranks.get(name, len(ranks)), name

    return sorted(((group(file), file) for file in files), key=sort_key)


def _caption(file: DroppedFile) -> tuple[str, ...]:
    line = file.line
    if not line.get("class"):
        return (str(line.get("reason") or "not classified").replace("_", " "),)
    right = line["class"] == file.drop.label
    label = line["class"] if right else f"{line['class']} ({file.drop.label or 'none'})"
    return (label, percent(line.get("confidence")))


def percent(confidence: float | None) -> str:
    """Return a probability as text that is never rounded up to 100 %."""
    share = (confidence or 0.0) * 100
    return "> 99.9 %" if share > 99.9 else f"{share:.1f} %"
