"""Read labelled images from a directory of class directories, with or without a split.

The daemon's own decoder reads them. They are held in memory as 64 x 64 bytes each, so that MedNIST's 47,381 training
images take 194 MB.
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
    """Files and their labels, which are indices of ``classes``."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Decoded images (n, 64, 64) uint8 with labels (n,) int64.

    ``broken`` are path, label and reason of files that could not be decoded.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    broken: tuple[tuple[str, int, str], ...] = ()


EXPECTED = "Expected class directories with images: DIR/<class>/<file>."


def listing(root: Path, split: Path | None = None, part: str | None = None) -> Listing:
    """List the labelled files below ``root``.

    With ``split``, a CSV with the columns path, class and split, these are the rows whose split is ``part``, in the
    order of the file, and the classes in their order of appearance. Without it they are the files of all directories,
    both sorted by name.

    Raises:
        Fatal: There are no files, files of the split are missing or listed twice, or a class has an impossible name
            (exit code 5).
    """
    if not root.is_dir():
        wrong = "is no directory" if root.exists() else "does not exist"
        raise Fatal(f"{root} {wrong}", f"{EXPECTED} See that the path is right.", Exit.DIRECTORY)
    return _from_split(root, split, part) if split else _from_directories(root)


def _from_split(root: Path, split: Path, part: str | None) -> Listing:
    try:
        with split.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a byte order mark
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
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise Fatal(
            f"{split} names {len(repeated)} files more than once, the first is {repeated[0]}: the network could be "
            "judged on an image that it was trained on",
            "Leave one row for each file.",
            Exit.DIRECTORY,
        )
    impossible = [name for name in classes if not checkpoint.is_directory_name(name)]
    if impossible:
        raise Fatal(
            f"{split} has the class {impossible[0]!r}, which can not be a directory's name: weights with it would not "
            "load",
            "Name each class as its directory.",
            Exit.DIRECTORY,
        )


def _from_directories(root: Path) -> Listing:
    try:
        entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(error) from error
    for link in filter(_is_dangling_link, entries):
        advice = "Mount what it leads to, or remove it: no image is left out in silence."
        raise Fatal(f"{link} is a link that leads nowhere", advice, Exit.DIRECTORY)
    classes = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    labelled = [
        (str(file.relative_to(root)), label)
        for label, name in enumerate(classes)
        for file in sorted(_below(root / name))
        if (file.is_file() or _is_dangling_link(file)) and not file.name.startswith(".")
    ]
    if not labelled:
        is_class_directory = any(entry.is_file() for entry in entries)
        question = f" Did you mean {root.absolute().parent}?" if is_class_directory else ""
        raise Fatal(f"{root} has no directories with files", f"{EXPECTED}{question}", Exit.DIRECTORY)
    return Listing(root, classes, tuple(path for path, _ in labelled), tuple(label for _, label in labelled))


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


def _is_dangling_link(file: Path) -> bool:
    """Return True for a link to an image that is gone, or on an absent share. It is not skipped in silence."""
    return file.is_symlink() and not file.exists()


def load(files: Listing) -> Examples:
    """Decode every file. Files that cannot be read or decoded are in ``broken``, and never dropped in silence."""
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
    """Return the images with labels in the order of ``classes``.

    Raises:
        Fatal: The data has classes that are none of these, as ``problem`` and ``advice`` say (exit code 5).
    """
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        raise Fatal(f"{problem} {', '.join(unknown)}", advice, Exit.DIRECTORY)
    order = np.array([list(classes).index(name) for name in data.classes], np.int64)
    broken = tuple((path, int(order[label]), reason) for path, label, reason in data.broken)
    return Examples(tuple(classes), data.paths, data.images, order[data.labels], broken)


def digest(*parts: Examples) -> str:
    """Return a digest of the images, labels and classes in their order, 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{part.classes} {part.images.shape}".encode())
        sha.update(np.ascontiguousarray(part.images).data)
        sha.update(np.ascontiguousarray(part.labels).data)
    return sha.hexdigest()


def refuse_unseen(train: Examples | Listing) -> None:
    """Refuse to train if a class has no training image, because it could never be recognised.

    Raises:
        Fatal: There are such classes; it names them (exit code 5).
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
    """Refuse to train if images cannot be decoded.

    Raises:
        Fatal: There are such images; it names the first ones and the reasons (exit code 1).
    """
    broken = [f"{path} ({reason})" for part in parts for path, _, reason in part.broken]
    if broken:
        raise Fatal(
            f"{len(broken)} images can not be decoded: {', '.join(broken[:5])}",
            "Mend or remove them; no image is left out in silence.",
        )


def images_by_class(root: Path, split: Path | None, part: str | None) -> dict[str, npt.NDArray[np.uint8]]:
    """Decode the images, (n, 64, 64) uint8 for each class, in the order of the classes.

    Raises:
        Fatal: Files are missing, an image cannot be decoded, or a class has fewer than two images, which make no
            statistics.
    """
    examples = load(listing(root, split, part if split else None))
    refuse_broken(examples)
    by_class = {name: examples.images[examples.labels == label] for label, name in enumerate(examples.classes)}
    for name, images in by_class.items():
        if len(images) < 2:
            raise Fatal(
                f"{name} has {len(images)} images: a sketch of it would be the image itself",
                "Give at least two images of each class, better some hundreds.",
                Exit.DIRECTORY,
            )
    return by_class
