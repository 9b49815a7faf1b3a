"""Labelled images: a directory of class directories, with or without a split.

Decoded by the daemon's own decoder and held in memory as 64 x 64 bytes each
(MedNIST's 47,381 training images take 194 MB).
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from watcher.core.errors import Exit, Fatal, Reject
from watcher.images import decode
from watcher.model import checkpoint


@dataclass(frozen=True)
class Listing:
    """Which files, and what they are. ``classes`` gives the numbers their meaning."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Decoded images (n, 64, 64) uint8 with labels (n,) int64; ``broken`` could not be decoded."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    broken: tuple[tuple[str, int, str], ...] = ()


EXPECTED = "Expected class directories with images: DIR/<class>/<file>."


def listing(root: Path, split: Path | None = None, part: str | None = None) -> Listing:
    """Find the labelled files below ``root``.

    With ``split`` (columns path, class, split) only the rows whose split is
    ``part``, in the file's order, its classes in order of appearance. Without
    it every file of every directory, both sorted by name.

    Raises:
        Fatal: exit code 5; nothing there, files of the split are missing or come twice, or a class's name is none.
    """
    if not root.is_dir():
        wrong = "is no directory" if root.exists() else "does not exist"
        raise Fatal(f"{root} {wrong}", f"{EXPECTED} See that the path is right.", Exit.DIRECTORY)
    return _from_split(root, split, part) if split else _from_directories(root)


def _from_split(root: Path, split: Path, part: str | None) -> Listing:
    try:
        with split.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark before the first word
            rows = list(csv.DictReader(file))
        classes = tuple(dict.fromkeys(row["class"] for row in rows))
        if any(row[key] is None for row in rows for key in ("path", "class", "split")):
            raise csv.Error("a row is cut short")
        chosen = [row for row in rows if part is None or row["split"] == part]
        paths = tuple(row["path"] for row in chosen)
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise Fatal(
            f"the split {split} can not be read: {error}", "It needs the columns path, class, split.", Exit.DIRECTORY
        ) from error
    _refuse_contradictions(split, classes, [row["path"] for row in rows])
    if not chosen:
        which = "no row at all" if part is None else f"no row whose split is {part!r}"
        raise Fatal(f"{split} has {which}", "Give another --split, or --part another name.", Exit.DIRECTORY)
    absent = [path for path in paths if not (root / path).is_file()]
    if absent:
        raise Fatal(
            f"{len(absent)} of the {len(paths)} {part or ''} files of {split} are not below {root}, "
            f"the first is {absent[0]}",
            "Unpack the data there, or choose a --part whose files are at hand.",
            Exit.DIRECTORY,
        )
    return Listing(root, classes, paths, tuple(classes.index(row["class"]) for row in chosen))


def _refuse_contradictions(split: Path, classes: Sequence[str], paths: Sequence[str]) -> None:
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise Fatal(
            f"{split} names {len(twice)} files more than once, the first is {twice[0]}: an image could be judged on "
            "that was trained on",
            "Leave one row for each file.",
            Exit.DIRECTORY,
        )
    unfit = [name for name in classes if not checkpoint.is_directory_name(name)]
    if unfit:
        raise Fatal(
            f"{split} has the class {unfit[0]!r}, which can not be a directory's name: weights with it would not load",
            "Name each class as its directory.",
            Exit.DIRECTORY,
        )


def _from_directories(root: Path) -> Listing:
    try:
        inside = [each for each in root.iterdir() if not each.name.startswith(".")]
    except OSError as error:
        raise _unreadable(error) from error
    for each in filter(_leads_nowhere, inside):
        told = "Mount what it leads to, or remove it: no image is left out in silence."
        raise Fatal(f"{each} is a link that leads nowhere", told, Exit.DIRECTORY)
    classes = tuple(sorted(each.name for each in inside if each.is_dir()))
    found = [
        (str(file.relative_to(root)), label)
        for label, name in enumerate(classes)
        for file in sorted(_below(root / name))
        if (file.is_file() or _leads_nowhere(file)) and not file.name.startswith(".")
    ]
    if not found:
        own = any(each.is_file() for each in inside)
        meant = f" Did you mean {root.absolute().parent}?" if own else ""
        raise Fatal(f"{root} has no directories with files", f"{EXPECTED}{meant}", Exit.DIRECTORY)
    return Listing(root, classes, tuple(p for p, _ in found), tuple(label for _, label in found))


def _below(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory, onerror=_refuse):
        yield from (Path(folder, name) for name in names)


def _refuse(error: OSError) -> None:
    raise _unreadable(error) from error


def _unreadable(error: OSError) -> Fatal:
    return Fatal(
        f"the directory {error.filename} can not be read: {error.strerror}",
        "Give yourself the right to read it: no image is left out in silence.",
        Exit.DIRECTORY,
    )


def _leads_nowhere(file: Path) -> bool:
    """A link to an image that is gone, or on a share that is away: not to be passed over in silence."""
    return file.is_symlink() and not file.exists()


def load(files: Listing) -> Examples:
    """Decode every file. What can not be read or decoded is told apart in ``broken``, never dropped in silence."""
    paths, labels, images, broken = [], [], [], []
    for path, label in zip(files.paths, files.labels, strict=True):
        try:
            images.append(decode.grey64((files.root / path).read_bytes()))
        except (Reject, OSError) as error:
            broken.append((path, label, str(error)))
            continue
        paths.append(path)
        labels.append(label)
    stack = np.stack(images) if images else np.zeros((0, decode.SIDE, decode.SIDE), np.uint8)
    return Examples(files.classes, tuple(paths), stack, np.array(labels, np.int64), tuple(broken))


def relabelled(data: Examples, classes: Sequence[str], problem: str, advice: str) -> Examples:
    """The same images with labels in the order of ``classes``.

    Raises:
        Fatal: exit code 5, told by ``problem`` and ``advice``; the data has classes that are none of these.
    """
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        raise Fatal(f"{problem} {', '.join(unknown)}", advice, Exit.DIRECTORY)
    order = np.array([list(classes).index(name) for name in data.classes], np.int64)
    broken = tuple((path, int(order[label]), why) for path, label, why in data.broken)
    return Examples(tuple(classes), data.paths, data.images, order[data.labels], broken)


def digest(*parts: Examples) -> str:
    """Of the images, their labels and classes, in their order; 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{part.classes} {part.images.shape}".encode())
        sha.update(np.ascontiguousarray(part.images).data)
        sha.update(np.ascontiguousarray(part.labels).data)
    return sha.hexdigest()


def refuse_unseen(train: Examples | Listing) -> None:
    """A class without a training image can never be recognised: name it and stop.

    Raises:
        Fatal: exit code 5, with the classes.
    """
    seen = set(train.labels)
    unseen = [name for label, name in enumerate(train.classes) if label not in seen]
    if unseen:
        raise Fatal(
            f"no image to train on is of {', '.join(unseen)}: each of these would be taken for another class",
            "Take its rows out of the split, or give it training images.",
            Exit.DIRECTORY,
        )


def refuse_broken(*parts: Examples) -> None:
    """Training needs every image: name the broken ones and stop.

    Raises:
        Fatal: exit code 1, with the first broken files and their reasons.
    """
    broken = [f"{path} ({why})" for part in parts for path, _, why in part.broken]
    if broken:
        raise Fatal(
            f"{len(broken)} images can not be decoded: {', '.join(broken[:5])}",
            "Mend or remove them; no image is left out in silence.",
        )


def images_by_class(root: Path, split: Path | None, part: str | None) -> dict[str, npt.NDArray[np.uint8]]:
    """Decode the images, (n, 64, 64) uint8 for each class, in the order of the classes.

    Raises:
        Fatal: the files are missing, an image can not be decoded, or a class
            has fewer than two images: one image is no statistic.
    """
    examples = load(listing(root, split, part if split else None))
    refuse_broken(examples)
    found = {name: examples.images[examples.labels == label] for label, name in enumerate(examples.classes)}
    for name, images in found.items():
        if len(images) < 2:
            raise Fatal(
                f"{name} has {len(images)} images: a sketch of it would be the image itself",
                "Give at least two images of each class, better some hundreds.",
                Exit.DIRECTORY,
            )
    return found
