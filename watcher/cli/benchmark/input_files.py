"""The files that are dropped: copies of real images, or sampled ones. The page cache is warm for all alike."""

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
"""Most images sampled; more files than that are these again under other names."""

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
        raise Fatal(f"{error.filename}: {error.strerror}", "Are the images readable?", Exit.DIRECTORY) from error
    return copies


def sampled(sketch: Sketch, count: int, pool: Path, seed: int = 0) -> list[Path]:
    """Draw ``count`` synthetic images, as many of each class, and write them into ``pool`` as JPEG files."""
    rng = np.random.default_rng(seed)
    files = []
    for number in range(min(count, DISTINCT)):
        label = sketch.classes[number % len(sketch.classes)]
        files.append(pool / f"{number:06d}.jpeg")
        Image.fromarray(sketch.sample(label, rng)).save(files[-1], "JPEG", quality=JPEG_QUALITY)
    return files


def names(pool: Sequence[Path], first: int, count: int) -> Iterator[tuple[Path, str]]:
    """Files of the pool, over and over, each with a name that is used but once."""
    for number in range(first, first + count):
        source = pool[number % len(pool)]
        yield source, f"{number:06d}{source.suffix}"


def stage(pool: Sequence[Path], first: int, count: int, directory: Path) -> list[str]:
    """Put ``count`` files into ``directory`` (hard links where possible, else copies). Gives their names."""
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
    """Rename every staged file into the inbox, as fast as that goes."""
    for name in staged:
        os.rename(staging / name, inbox / name)
