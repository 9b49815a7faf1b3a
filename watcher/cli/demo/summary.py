"""What became of the demo's files: found by digest, counted, drawn."""

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
"""One line of the daemon's log."""


@dataclass(frozen=True)
class Found:
    """A dropped file, every place below the demo's directory where it lies, and what the log says of it."""

    drop: Drop
    paths: tuple[Path, ...]
    line: Line = field(default_factory=dict)

    @property
    def accounted(self) -> bool:
        """It lies in exactly one place."""
        return len(self.paths) == 1

    def column(self, root: Path) -> str:
        """Which of :data:`COLUMNS` it belongs to."""
        if not self.accounted:
            return "lost or double"
        place = self.paths[0].relative_to(root).parts
        if place[0] != "sorted":
            return place[0]
        return "its class" if place[1] == self.drop.label else "another class"


def find(root: Path, drops: Sequence[Drop], lines: Sequence[Line]) -> list[Found]:
    """Look for every dropped file by its SHA-256 in all places an operator would look in."""
    lying: dict[str, list[Path]] = {}
    for place in PLACES:
        for path in sorted((root / place).rglob("*")):
            if path.is_file():
                lying.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path)
    told = {line["destination"]: line for line in lines if line.get("destination")}
    found = []
    for drop in drops:
        paths = tuple(lying.get(drop.digest, ()))
        line = told.get(printable(str(paths[0])), {}) if paths else {}
        found.append(Found(drop, paths, line))
    return found


def report(root: Path, found: Sequence[Found], exit_code: int | None) -> Iterator[str]:
    """The lines a person reads at the end."""
    yield from _table("arriving by", found, root, lambda each: each.drop.way)
    yield ""
    yield from _table("sampled from", found, root, lambda each: each.drop.label or NO_CLASS)
    yield ""
    if any(each.drop.way == synthetic_arrivals.NOISE and each.column(root) == "another class" for each in found):
        yield "the noise was filed as a class: a confident network is no proof that an image is one of the six"
    yield from _latency(found)
    lost = [each for each in found if not each.accounted]
    if lost:
        yield f"{len(lost)} of {len(found)} files are NOT in exactly one place (by SHA-256):"
        yield from (f"  {each.drop.name}: {[str(path) for path in each.paths] or 'nowhere'}" for each in lost)
    else:
        yield f"all {len(found)} files dropped lie in exactly one place each, checked by SHA-256"
    yield f"the daemon ended with exit code {'none: it had to be killed' if exit_code is None else exit_code}"


def _table(title: str, found: Sequence[Found], root: Path, key: Callable[[Found], str]) -> Iterator[str]:
    """Counts by ``key`` in rows; columns that hold nothing are left out."""
    cells = Counter((key(each), each.column(root)) for each in found)
    columns = [name for name in COLUMNS if any(column == name for _, column in cells)]
    rows = sorted(dict.fromkeys(key(each) for each in found), key=lambda row: row == NO_CLASS)
    width = max(len(title), *(len(row) for row in rows))
    yield "  ".join([title.ljust(width), "dropped", *columns])
    for row in [*rows, "all"]:
        counts = [sum(n for (r, c), n in cells.items() if row in (r, "all") and c == column) for column in columns]
        numbers = [f"{count or '-':>{len(name)}}" for count, name in zip(counts, columns, strict=True)]
        yield "  ".join([row.ljust(width), f"{sum(counts):>7}", *numbers])


def _latency(found: Sequence[Found]) -> Iterator[str]:
    """Only of files that were complete when first seen: the others measure their producer."""
    swift = [each for each in found if each.drop.label and each.drop.way != synthetic_arrivals.SLOW]
    times = sorted(float(each.line["total_ms"]) for each in swift if "total_ms" in each.line)
    if len(times) > 1:
        high = times[min(len(times) - 1, len(times) * 95 // 100)]
        yield (
            f"first seen to filed: median {statistics.median(times):.0f} ms, 95 % within {high:.0f} ms "
            f"({len(times)} images that arrived whole)"
        )


def save_sheet(root: Path, found: Sequence[Found], path: Path) -> None:
    """Draw every file, grouped by where it lies."""
    tiles = [synthetic_arrivals.tile(each.drop, _caption(each), group) for group, each in _grouped(root, found)]
    notes = (
        SYNTHETIC,
        "Grouped by where the daemon filed them. Under each: file name, class found (in brackets the class it was "
        "sampled from, where another), confidence.",
    )
    contact_sheet.draw(tiles, "mednet-watcher demo: synthetic images, no patients", notes).save(path)


def _grouped(root: Path, found: Sequence[Found]) -> list[tuple[str, Found]]:
    """Class directories first, by name; then what needs a person."""

    def group(each: Found) -> str:
        if not each.accounted:
            return "lost or double"
        parts = each.paths[0].relative_to(root).parts[:-1]
        return "/".join(parts) + "/"

    order = {name: place for place, name in enumerate(("sorted", "review/", "quarantine/", "inbox/"))}

    def place(pair: tuple[str, Found]) -> tuple[int, str]:
        name = pair[0]
        return order["sorted"] if name.startswith("sorted/") else order.get(name, len(order)), name

    return sorted(((group(each), each) for each in found), key=place)


def _caption(each: Found) -> tuple[str, ...]:
    line = each.line
    if not line.get("class"):
        return (str(line.get("reason") or "not classified").replace("_", " "),)
    right = line["class"] == each.drop.label
    label = line["class"] if right else f"{line['class']} ({each.drop.label or 'none'})"
    return (label, percent(line.get("confidence")))


def percent(confidence: float | None) -> str:
    """A probability in words that never round up to certainty."""
    share = (confidence or 0.0) * 100
    return "> 99.9 %" if share > 99.9 else f"{share:.1f} %"
