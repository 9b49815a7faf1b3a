"""Claim files of the inbox for one owner, and release them.

A claimed file lies in ``.mednet-claims/<owner>`` in the inbox. So it is still on
the same file system, in a place that an operator would look in. One rename moves
it in, one moves it out. A file from a directory below the inbox keeps its
relative path there.

Other owners ignore a claimed file, until its owner dies. The kernel then frees
the owner's lock, and others take the file over.

In shared mode several workers sort one inbox, and each claims the files that it
sorts. Commands that put files back claim them first, as the owner ``operator``:
a file must not appear in the inbox before the ledger has its decision.
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
"""The directory in the inbox that holds all claimed files."""

OPERATOR = "operator"
"""The owner of files that a command puts back."""

MOST_WORKERS = 64

_OWNER = re.compile(rf"{OPERATOR}|worker-\d{{1,2}}")
"""The names of owners. Everything else in :data:`DIRECTORY` is left alone, because it has no owner that could die."""


class Claim(Enum):
    """The result of :meth:`Claims.take`."""

    TAKEN = auto()
    GONE = auto()  # another worker was faster, or the producer took it away
    BUSY = auto()  # an earlier file of that name is still being sorted here


class Claims:
    """The files that one worker has claimed. They lie in :attr:`path`."""

    def __init__(self, inbox: Path, worker: str) -> None:
        self._inbox, self.worker = inbox, worker
        self.path = owner_directory(inbox, worker)

    def take(self, name: str) -> Claim:
        """Claim a file of the inbox.

        Raises:
            Retry: the file system failed. The file is neither claimed nor gone.
        """
        try:
            with _opened(self._inbox, self.worker) as own:
                no_overwrite.rename_into_own_directory(self._inbox / name, own / name)
        except FileExistsError:
            return Claim.BUSY
        except FileNotFoundError:
            if self.path.is_dir():
                return Claim.GONE
            self._make_directory()
            return self.take(name)
        except OSError as error:
            raise Retry(f"{name} can not be claimed: {error.strerror}") from error
        failpoints.reach("taken")
        return Claim.TAKEN

    def _make_directory(self) -> None:
        """Make :attr:`path` again. It is missing if the inbox is another directory now, such as a new mount."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Retry(f"{self.path} can not be made: {error.strerror}") from error

    def adopt(self, worker: str) -> list[str]:
        """Take over the files of a dead owner, whose lock the caller holds. Return their names.

        A file stays if this worker has one of the same name: it is taken over the next time.
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
        """Put all files back into the inbox, at the end of this worker. Return their number."""
        return len(release(self._inbox, self.worker))


def owner_directory(inbox: Path, owner: str) -> Path:
    """Return the directory of the files that an owner has claimed."""
    return inbox / DIRECTORY / owner


def is_claimed(directory: Path) -> bool:
    """Return True if a directory holds claimed files. Such files have come just now, because none stays there."""
    return _split(directory) is not None


def inbox_of(directory: Path) -> Path:
    """Return the inbox of a directory of claimed files. Return any other directory as it is."""
    parts = _split(directory)
    return directory if parts is None else parts[0]


def unclaimed_directory(directory: Path) -> Path:
    """Return the directory that claimed files in ``directory`` are released to: the inbox, or one below it.

    Return any other directory as it is.
    """
    parts = _split(directory)
    return directory if parts is None else parts[0] / parts[1]


def _split(directory: Path) -> tuple[Path, Path] | None:
    """Split a directory of claimed files into its inbox and the path relative to the owner's directory."""
    for path in (directory, *directory.parents):
        if path.parent.name == DIRECTORY:
            return path.parents[1], directory.relative_to(path)
    return None


def owners(inbox: Path) -> list[str]:
    """Return all owners, alive or dead, that have a directory in this inbox.

    Raises:
        OSError: the inbox can not be read.
    """
    try:
        if os.path.islink(inbox / DIRECTORY):
            return []
        with os.scandir(inbox / DIRECTORY) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if _OWNER.fullmatch(name))


def count_files(inbox: Path) -> int:
    """Return how many files of this inbox are claimed now, by any owner."""
    count = 0
    with contextlib.suppress(OSError):
        for owner in owners(inbox):
            with _opened(inbox, owner) as own:
                count += sum(1 for _ in _files(own))
    return count


def release(inbox: Path, owner: str) -> list[str]:
    """Put the files of an owner back into the inbox, and remove its directory. Return their paths in the inbox.

    A file that can not be put back, for example because the inbox is gone, stays claimed and is taken over later.
    """
    released = []
    with contextlib.suppress(OSError), _opened(inbox, owner) as own:
        for path in _files(own):
            with contextlib.suppress(OSError):
                released.append(str(publish(path, inbox, str(path.relative_to(own))).relative_to(inbox)))
        for folder, _, _ in os.walk(own, topdown=False):
            with contextlib.suppress(OSError):  # a file stayed in it
                os.rmdir(folder)
    with contextlib.suppress(OSError):  # it does not exist, a file stayed in it, or others claim files, too
        owner_directory(inbox, owner).rmdir()
        (inbox / DIRECTORY).rmdir()
    return released


def publish(path: Path, inbox: Path, name: str) -> Path:
    """Put a claimed file into the inbox, under its name (or relative path) or the next free one. Return its new path.

    Raises:
        OSError: the file system failed. The file is still claimed.
    """
    below, base = os.path.split(name)
    below = no_overwrite.free_directory(inbox, below)
    with safe_paths.make_directory(inbox, below) as folder:
        for candidate in no_overwrite.candidates(base, None):
            try:
                no_overwrite.rename_noreplace(path, folder / candidate)
            except FileExistsError:
                if not _is_same_file(path, folder / candidate):
                    continue
                os.unlink(path)  # an earlier process linked it there and died before it unlinked it here
            return inbox / below / candidate
    raise AssertionError("candidates() does not end")


@contextlib.contextmanager
def _opened(inbox: Path, owner: str) -> Iterator[Path]:
    """Open the directory of an owner, and give a path to its descriptor.

    The path can not be redirected. A plain path could be: anybody who may write in the inbox could replace the
    directory by a link.

    Raises:
        OSError: the directory does not exist, or is a link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        parent_fd = os.open(inbox / DIRECTORY, flags)
        stack.callback(os.close, parent_fd)
        fd = os.open(owner, flags, dir_fd=parent_fd)
        stack.callback(os.close, fd)
        yield Path(f"/proc/self/fd/{fd}")


def require_directory(inbox: Path, owner: str) -> None:
    """Check that the directory of an owner is a directory in this inbox, and no link to another place.

    Raises:
        Fatal: exit code 5; it is a link, or can not be opened.
    """
    try:
        with _opened(inbox, owner):
            pass
    except OSError as error:
        raise Fatal(
            f"{owner_directory(inbox, owner)} can not be used: {error.strerror}",
            "It must be a directory of the daemon's user, and no link. See what is in it, and who made it.",
            Exit.DIRECTORY,
        ) from error


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(first), os.lstat(second))
    except FileNotFoundError:
        return False


def bind_to_state(inbox: Path, state: Path) -> None:
    """Bind the claims of this inbox to a state directory, or check that they are bound to it already.

    Only the ledger in that state directory knows what became of the claimed files.

    Raises:
        Fatal: exit code 5; the claims are bound to another state directory, or the binding can not be written.
    """
    try:
        (inbox / DIRECTORY).mkdir(exist_ok=True)
        if os.path.islink(inbox / DIRECTORY):
            raise NotADirectoryError(errno.ENOTDIR, f"{DIRECTORY} is a link", str(inbox / DIRECTORY))
        state_id = _read_or_write_id(state / "id", uuid.uuid4().hex)
        inbox_id = _read_or_write_id(inbox / DIRECTORY / "id", state_id)
    except OSError as error:
        raise Fatal(
            f"the inbox {inbox} can not be shared: {error}",
            "Give the daemon's user the right to write in it and in the state directory.",
            Exit.DIRECTORY,
        ) from error
    if state_id != inbox_id:
        raise Fatal(
            f"the inbox {inbox} is shared by daemons with another state directory",
            "All daemons that share an inbox run on one host with the same configuration. If the other state directory "
            f"is gone for good, see that nothing is left in {inbox / DIRECTORY} and remove that directory.",
            Exit.DIRECTORY,
        )


def _read_or_write_id(path: Path, new_id: str) -> str:
    """Return the identifier in a file. If there is no file, write ``new_id`` into it first."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    if not path.exists():
        draft.write_text(new_id)
        with contextlib.suppress(FileExistsError):
            no_overwrite.rename_noreplace(draft, path)  # never half written: several workers may start together
        draft.unlink(missing_ok=True)
    return path.read_text()


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files in and below a directory, without unfinished copies."""
    todo = [os.fspath(directory)]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif not entry.name.endswith(no_overwrite.PARTIAL):
                    yield Path(entry.path)
