"""Files of the inbox that are somebody's for a while: out of the others' sight, and taken over when he dies.

They lie in ``.mednet-claims/<owner>`` in the inbox: still in a place that an
operator would look in, and on the same file system. One rename leads in, one
leads out. The lease is the owner's lock, which the kernel frees when it dies.
What belongs below the inbox lies in directories of the same names below there.

In shared mode several workers sort one inbox, and each claims what it sorts.
Commands that put files back move them here first, as the owner ``operator``: in
the inbox proper nobody sees a file before the ledger has how it came.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

from watcher.core import failpoints, no_overwrite, safe_paths
from watcher.core.errors import Exit, Fatal, Retry

DIRECTORY = no_overwrite.CLAIMS
"""Where claimed files lie, in the inbox."""

OPERATOR = "operator"
"""Who puts files back."""

MOST_WORKERS = 64

_OWNER = re.compile(rf"{OPERATOR}|worker-\d{{1,2}}")
"""What else lies there has no owner that could die: it is left alone."""


class Claim(Enum):
    """What came of :meth:`Claims.take`."""

    TAKEN = auto()
    GONE = auto()  # another worker was faster, or the producer took it away
    BUSY = auto()  # an earlier file of that name is still being sorted here


class Claims:
    """The files that one worker has claimed, in :attr:`path`."""

    def __init__(self, inbox: Path, worker: str) -> None:
        self._inbox, self.worker = inbox, worker
        self.path = place(inbox, worker)

    def take(self, name: str) -> Claim:
        """Claim a file of the inbox.

        Raises:
            Retry: neither claimed nor gone; the surroundings failed.
        """
        try:
            with _opened(self._inbox, self.worker) as own:
                no_overwrite.rename_into_own_directory(self._inbox / name, own / name)
        except FileExistsError:
            return Claim.BUSY
        except FileNotFoundError:
            if self.path.is_dir():
                return Claim.GONE
            self._make_again()
            return self.take(name)
        except OSError as error:
            raise Retry(f"{name} can not be claimed: {error.strerror}") from error
        failpoints.reach("taken")
        return Claim.TAKEN

    def _make_again(self) -> None:
        """The inbox is another directory by now (mounted anew, say)."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Retry(f"{self.path} can not be made: {error.strerror}") from error

    def adopt(self, worker: str) -> list[str]:
        """Take over what a dead owner had claimed: the names. Whoever calls holds its lock.

        A name that is claimed here already is left for the next time.
        """
        adopted = []
        with (
            contextlib.suppress(OSError),
            _opened(self._inbox, worker) as dead,
            _opened(self._inbox, self.worker) as own,
        ):
            for path in _files(dead):
                with contextlib.suppress(OSError):
                    no_overwrite.rename_into_own_directory(path, own / path.name)
                    failpoints.reach("adopted")
                    adopted.append(path.name)
        return adopted

    def give_back(self) -> int:
        """Put everything back into the inbox, at the end of this worker. How many files it was."""
        return len(release(self._inbox, self.worker))


def place(inbox: Path, owner: str) -> Path:
    """Where the files of an owner lie."""
    return inbox / DIRECTORY / owner


def passes_through(directory: Path) -> bool:
    """Whether this is such a place, or below one. Nothing stays there, so that what lies there came just now."""
    return _split(directory) is not None


def inbox_of(directory: Path) -> Path:
    """The inbox that such a place belongs to. Other directories are their own."""
    found = _split(directory)
    return directory if found is None else found[0]


def beyond(directory: Path) -> Path:
    """Where what lies there goes on to: that inbox, or a directory below. Other directories are their own."""
    found = _split(directory)
    return directory if found is None else found[0] / found[1]


def _split(directory: Path) -> tuple[Path, Path] | None:
    """The inbox, and the way from the owner's place down."""
    for inner in (directory, *directory.parents):
        if inner.parent.name == DIRECTORY:
            return inner.parents[1], directory.relative_to(inner)
    return None


def owners(inbox: Path) -> list[str]:
    """Everybody who has a place for files of this inbox, at work or dead.

    Raises:
        OSError: the inbox can not be read.
    """
    try:
        if os.path.islink(inbox / DIRECTORY):
            return []
        with os.scandir(inbox / DIRECTORY) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if _OWNER.fullmatch(name))


def held(inbox: Path) -> int:
    """How many files are claimed just now, by anybody."""
    count = 0
    with contextlib.suppress(OSError):
        for owner in owners(inbox):
            with _opened(inbox, owner) as own:
                count += sum(1 for _ in _files(own))
    return count


def release(inbox: Path, owner: str) -> list[str]:
    """Put what an owner has claimed back into the inbox: the paths that it has there. Its place goes.

    What can not be put back (the inbox is gone, say) stays claimed, and is taken over later.
    """
    released = []
    with contextlib.suppress(OSError), _opened(inbox, owner) as own:
        for path in _files(own):
            with contextlib.suppress(OSError):
                released.append(str(publish(path, inbox, str(path.relative_to(own))).relative_to(inbox)))
        for folder, _, _ in os.walk(own, topdown=False):
            with contextlib.suppress(OSError):  # something stayed
                os.rmdir(folder)
    with contextlib.suppress(OSError):  # there is none, something stayed, or others claim files, too
        place(inbox, owner).rmdir()
        (inbox / DIRECTORY).rmdir()
    return released


def publish(path: Path, inbox: Path, name: str) -> Path:
    """Put one claimed file into the inbox, under its name (or path) or the next free one, and say where it lies.

    Raises:
        OSError: as the kernel says; it is still claimed.
    """
    below, base = os.path.split(name)
    below = no_overwrite.free_directory(inbox, below)
    with safe_paths.make_directory(inbox, below) as folder:
        for candidate in no_overwrite.candidates(base, None):
            try:
                no_overwrite.rename_noreplace(path, folder / candidate)
            except FileExistsError:
                if not _is_one_file(path, folder / candidate):
                    continue
                os.unlink(path)  # whoever put it there by link and unlink died in between
            return inbox / below / candidate
    raise AssertionError("candidates() does not end")


@contextlib.contextmanager
def _opened(inbox: Path, owner: str) -> Iterator[Path]:
    """The place of an owner by its descriptor. Whoever may write in the inbox could put a link in its stead.

    Raises:
        OSError: it is not there, or a link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        above = os.open(inbox / DIRECTORY, flags)
        stack.callback(os.close, above)
        here = os.open(owner, flags, dir_fd=above)
        stack.callback(os.close, here)
        yield Path(f"/proc/self/fd/{here}")


def see(inbox: Path, owner: str) -> None:
    """See that an owner's place is a directory in this inbox, and no link to somewhere else.

    Raises:
        Fatal: exit code 5; it is one, or can not be opened.
    """
    try:
        with _opened(inbox, owner):
            pass
    except OSError as error:
        raise Fatal(
            f"{place(inbox, owner)} can not be used: {error.strerror}",
            "It must be a directory of the daemon's user, and no link. See what is in it, and who made it.",
            Exit.DIRECTORY,
        ) from error


def _is_one_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


def belong(inbox: Path, state: Path) -> None:
    """See that this inbox's claims belong to this state directory: its ledger knows what became of them.

    Raises:
        Fatal: exit code 5; they belong to another, or nothing can be written.
    """
    try:
        (inbox / DIRECTORY).mkdir(exist_ok=True)
        if os.path.islink(inbox / DIRECTORY):
            raise NotADirectoryError(errno.ENOTDIR, f"{DIRECTORY} is a link", str(inbox / DIRECTORY))
        ours, theirs = _stamp(state / "id"), _stamp(inbox / DIRECTORY / "id", state / "id")
    except OSError as error:
        raise Fatal(
            f"the inbox {inbox} can not be shared: {error}",
            "Give the daemon's user the right to write in it and in the state directory.",
            Exit.DIRECTORY,
        ) from error
    if ours != theirs:
        raise Fatal(
            f"the inbox {inbox} is shared by daemons with another state directory",
            "All that share an inbox run on one host with the same configuration. If the other state directory is "
            f"gone for good, see that nothing is left in {inbox / DIRECTORY} and remove that directory.",
            Exit.DIRECTORY,
        )


def _stamp(path: Path, model: Path | None = None) -> str:
    """What is written at ``path``; written now, like ``model`` or at random, if there is nothing."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    if not path.exists():
        draft.write_text(model.read_text() if model else uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):
            no_overwrite.rename_noreplace(draft, path)  # whole at once: several workers may start together
        draft.unlink(missing_ok=True)
    return path.read_text()


def _files(directory: Path) -> Iterator[Path]:
    """What lies there and below, without unfinished copies."""
    todo = [os.fspath(directory)]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif not entry.name.endswith(no_overwrite.PARTIAL):
                    yield Path(entry.path)
