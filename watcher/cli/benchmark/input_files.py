"""Make the files to drop: copies of real images, or synthetic ones. The page cache holds them for every program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from watcher.cli.benchmark.measurements import spread
from watcher.core.errors import Exit, Fatal
from watcher.training.data.synthetic_images import Sketch

DISTINCT = 3000
"""Largest number of synthetic images. If more files are needed, these are used again under other names."""

JPEG_QUALITY = 90


def copied(root: Path, paths: Sequence[str], count: int, pool: Path) -> list[Path]:
    """Copy ``count`` of the files ``root/path``, evenly spread over the list, into ``pool``.

    Raises:
        Fatal: exit code 5; a file can not be read or written.
    """
    chosen = [paths[i] for i in spread(len(paths), count)]
    copies = [pool / f"{number:06d}{Path(path).suffix}" for number, path in enumerate(chosen)]
    try:
        for path, copy in zip(chosen, copies, strict=True):
            shutil.copyfile(root / path, copy)
    except OSError as error:
        raise Fatal(
            f"{error.filename}: {error.strerror}", "Check that the images can be read.", Exit.DIRECTORY
        ) from error
    return copies


def sampled(sketch: Sketch, count: int, pool: Path, seed: int = 0) -> list[Path]:
    """Sample ``count`` synthetic images, equally many of each class, and write them into ``pool`` as JPEG files."""
    rng = np.random.default_rng(seed)
    files = []
    for number in range(min(count, DISTINCT)):
        label = sketch.classes[number % len(sketch.classes)]
        files.append(pool / f"{number:06d}.jpeg")
        Image.fromarray(sketch.sample(label, rng)).save(files[-1], "JPEG", quality=JPEG_QUALITY)
    return files


def names(pool: Sequence[Path], first: int, count: int) -> Iterator[tuple[Path, str]]:
    """Yield files of the pool, again and again, each with a name that is used only once."""
    for number in range(first, first + count):
        source = pool[number % len(pool)]
        yield source, f"{number:06d}{source.suffix}"


def stage(pool: Sequence[Path], first: int, count: int, directory: Path) -> list[str]:
    """Put ``count`` files into ``directory``, as hard links if possible, else as copies. Return their names."""
    directory.mkdir(exist_ok=True)
    staged = []
    for source, name in names(pool, first, count):
        try:
            os.link(source, directory / name)
        except OSError:  # no links on this file system, or too many to one file
            shutil.copyfile(source, directory / name)
        staged.append(name)
    return staged


def drop(staged: Sequence[str], staging: Path, inbox: Path) -> None:
    """Rename every staged file into the inbox, as fast as possible."""
    for name in staged:
        os.rename(staging / name, inbox / name)
