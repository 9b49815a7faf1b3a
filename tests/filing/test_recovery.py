"""Recovery: a daemon that died around a move leaves each file in one place, and the ledger knows which."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from watcher.core import mounts
from watcher.core.errors import Exit, Fatal, Retry
from watcher.core.records import Decision, Identity, MoveOrder, Outcome, Timing
from watcher.filing.recovery import at_start, recover, refuse_lost_mounts
from watcher.ledger.writer import Ending, Ledger

CONTENT = b"a radiograph"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = os.fsdecode(b"odd \xff\n.png")


def decided(
    book: Ledger, orders: list[MoveOrder], directories: list[str], model: str, inbox: Path = Path("/inbox")
) -> list[int]:
    with book.transaction():
        book.record_directories([inbox, *map(Path, directories)])
        return book.record_decisions(orders, directories, model, inbox)


class Scene:
    """An inbox with one decided file, just before its move, and a ledger that knows of the decision."""

    def __init__(self, root: Path, target: Path, identify: Callable[[Path], Identity], name: str = NAME) -> None:
        self.inbox, self.target = root / "inbox", target
        self.inbox.mkdir()
        self.source = self.inbox / name
        self.source.write_bytes(CONTENT)
        self.ledger = Ledger(root / "ledger")
        decision = Decision(Outcome.SORTED, "Hand", 1.0)
        order = MoveOrder(name, identify(self.source), DIGEST, decision, Timing(0.0))
        [self.id] = decided(self.ledger, [order], [str(target)], "m", self.inbox)

    def recover(self) -> Ending:
        [ending] = recover(self.ledger)
        assert ending.decision == self.id
        assert self.ledger.unended() == []
        assert recover(self.ledger) == []
        return ending


def content(directory: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in directory.iterdir())


@pytest.fixture
def scene(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[Scene]:
    target = tmp_path / "Hand"
    target.mkdir()
    scene = Scene(tmp_path, target, identify)
    yield scene
    scene.ledger.close()


@pytest.fixture
def far(tmp_path: Path, elsewhere: Path, identify: Callable[[Path], Identity]) -> Iterator[Scene]:
    """As ``scene``, with the class directory on another file system."""
    scene = Scene(tmp_path, elsewhere, identify)
    yield scene
    scene.ledger.close()


def test_nothing_open_nothing_done(tmp_path: Path) -> None:
    """After an orderly end there is nothing to reconcile."""
    ledger = Ledger(tmp_path / "ledger")
    assert recover(ledger) == []
    ledger.close()


def test_died_before_the_move(scene: Scene) -> None:
    """The file is still in the inbox: the decision is taken back and the file takes the way again."""
    ending = scene.recover()
    assert (ending.state, ending.destination) == ("returned", None)
    assert content(scene.inbox) == [CONTENT]
    assert content(scene.target) == []


def test_died_before_the_move_with_the_class_directory_gone(scene: Scene) -> None:
    """A class directory that is not there either is no obstacle."""
    scene.target.rmdir()
    assert scene.recover().state == "returned"


def test_died_after_the_move(scene: Scene) -> None:
    """The file has moved: the ledger learns where it lies."""
    os.rename(scene.source, scene.target / NAME)
    ending = scene.recover()
    assert (ending.state, ending.destination) == ("filed", str(scene.target / NAME))
    assert content(scene.target) == [CONTENT]


@pytest.mark.parametrize("taken", [1, 2])
def test_died_after_a_move_to_another_name(scene: Scene, taken: int) -> None:
    """A file that got a suffix because its name was taken is found under it, and the other is left alone."""
    stem, suffix = NAME.rsplit(".", 1)
    names = [NAME, f"{stem}-{DIGEST[:8]}.{suffix}", f"{stem}-{DIGEST[:8]}-2.{suffix}"]
    for name in names[:taken]:
        (scene.target / name).write_bytes(b"someone else")
    os.rename(scene.source, scene.target / names[taken])
    ending = scene.recover()
    assert (ending.state, ending.destination) == ("filed", str(scene.target / names[taken]))
    assert content(scene.target) == sorted([CONTENT, *[b"someone else"] * taken])


def test_suffixed_file_is_found_after_the_other_left(scene: Scene) -> None:
    """A file filed under a suffix is found also when the one that had its name was taken away since."""
    stem, suffix = NAME.rsplit(".", 1)
    os.rename(scene.source, scene.target / f"{stem}-{DIGEST[:8]}.{suffix}")
    assert scene.recover().state == "filed"


def test_died_between_link_and_unlink(scene: Scene) -> None:
    """A file with two names loses the one in the inbox: filed, in exactly one place."""
    os.link(scene.source, scene.target / NAME)
    ending = scene.recover()
    assert (ending.state, ending.destination) == ("filed", str(scene.target / NAME))
    assert content(scene.inbox) == []
    assert content(scene.target) == [CONTENT]


def test_died_between_copy_and_unlink(far: Scene) -> None:
    """A file copied whole to another file system is known by its digest, and leaves the inbox."""
    shutil.copy2(far.source, far.target / NAME)
    assert far.recover().state == "filed"
    assert content(far.inbox) == []
    assert content(far.target) == [CONTENT]


def test_died_after_copy_and_unlink(far: Scene) -> None:
    """A file that is on another file system only is found there by its digest."""
    shutil.move(far.source, far.target / NAME)
    ending = far.recover()
    assert (ending.state, ending.destination) == ("filed", str(far.target / NAME))


@pytest.mark.parametrize("unit_ns", [100, 10**9, 2 * 10**9])
@pytest.mark.parametrize("removed", [False, True])
def test_a_copy_where_times_are_coarse(far: Scene, unit_ns: int, removed: bool) -> None:
    """SMB keeps times to 100 ns, others to 1 or 2 s: the copy is known all the same, before and after the unlink."""
    found = far.source.stat()
    copy = far.target / NAME
    shutil.copy2(far.source, copy)
    os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns // unit_ns * unit_ns))
    if removed:
        far.source.unlink()
    ending = far.recover()
    assert (ending.state, ending.destination) == ("filed", str(copy))
    assert (content(far.inbox), content(far.target)) == ([], [CONTENT])


def test_incomplete_copy_is_no_copy(far: Scene) -> None:
    """A file of the same name and size with other bytes is not taken for the copy: the file stays in the inbox."""
    (far.target / NAME).write_bytes(b"x" * len(CONTENT))
    assert far.recover().state == "returned"
    assert content(far.inbox) == [CONTENT]


def test_file_rewritten_after_the_copy_stays(far: Scene) -> None:
    """A producer who rewrites the file in place after the crash, at the same size, does not lose the new bytes."""
    shutil.copy2(far.source, far.target / NAME)
    newer = CONTENT[::-1]
    found = far.source.stat()
    with far.source.open("r+b") as file:
        file.write(newer)
    os.utime(far.source, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))
    far.recover()
    assert content(far.inbox) == [newer]


def test_file_that_is_nowhere_is_missing(scene: Scene) -> None:
    """A file neither in the inbox nor filed is told as missing: a person must look."""
    scene.source.unlink()
    ending = scene.recover()
    assert (ending.state, ending.destination) == ("missing", None)


class TestMountsGone:
    """An unmounted inbox shows the empty directory beneath: nothing can be told of what was on it."""

    def unmounted(self, directory: Path) -> Path:
        away = directory.with_name(f"{directory.name} away")
        directory.rename(away)
        directory.mkdir()
        return away

    def mounted(self, directory: Path, away: Path) -> None:
        directory.rmdir()
        away.rename(directory)

    def test_a_file_out_of_sight_is_not_missing(self, scene: Scene) -> None:
        """Nothing is ended while the inbox is another directory; when it is back the file is found."""
        away = self.unmounted(scene.inbox)
        with pytest.raises(Retry, match="is not the directory it was"):
            recover(scene.ledger)
        scene.inbox.rmdir()
        with pytest.raises(Retry):
            recover(scene.ledger)
        scene.inbox.mkdir()
        self.mounted(scene.inbox, away)
        assert scene.recover().state == "returned"

    def test_a_source_out_of_sight_is_not_removed(self, far: Scene) -> None:
        """Killed between copy and unlink, and the inbox unmounted: the source is removed when it is back, not never."""
        shutil.copy2(far.source, far.target / NAME)
        away = self.unmounted(far.inbox)
        with pytest.raises(Retry):
            recover(far.ledger)
        self.mounted(far.inbox, away)
        assert far.recover().state == "filed"
        assert content(far.inbox) == []

    def test_a_copy_out_of_sight_is_not_made_twice(self, far: Scene) -> None:
        """With the class directory unmounted, the copy that lies on it counts."""
        shutil.copy2(far.source, far.target / NAME)
        away = self.unmounted(far.target)
        with pytest.raises(Retry):
            recover(far.ledger)
        self.mounted(far.target, away)
        assert far.recover().state == "filed"
        assert content(far.inbox) == []

    def test_replaced_for_good(self, scene: Scene) -> None:
        """If a person says that it is no missing mount, what was there is missing."""
        self.unmounted(scene.inbox)
        with pytest.raises(Fatal, match="--directories-replaced") as caught:
            at_start(scene.ledger, scene.inbox.parent)
        assert caught.value.code is Exit.DIRECTORY
        scene.ledger.forget_directories()
        assert scene.recover().state == "missing"

    def test_file_systems_that_renumber_tell_nothing(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """On FAT and FUSE a directory has another inode number after each mount: that is no reason to wait."""
        exfat = mounts.Mount(1, 0, "/", "exfat", "/dev/sdb1", frozenset())
        monkeypatch.setattr(mounts, "of", lambda _: exfat)
        self.unmounted(scene.inbox)
        assert scene.recover().state == "missing"


class TestMissingAtTheStart:
    """A directory that files were moved to before, and that is beneath a mount that is gone."""

    @pytest.mark.parametrize(
        ("device", "inode", "there", "refused"),
        [
            (0, 0, True, False),  # as it was
            (1, 0, True, False),  # after a reboot that gave the device another number
            (0, 1, True, False),  # made anew where it was
            (1, 1, True, True),
            (0, 0, False, False),  # removed: it will be made anew
            (1, 0, False, True),  # it would be made on another file system
        ],
    )
    def test_what_it_was(self, tmp_path: Path, device: int, inode: int, there: bool, refused: bool) -> None:
        """Refused if neither file system nor directory are those of the last move, unless a person says so."""
        directory = tmp_path / "sorted" / "Hand"
        directory.mkdir(parents=True)
        found = directory.stat()
        book = Ledger(tmp_path / "ledger")
        row = (os.fsencode(directory), found.st_dev + device, found.st_ino + inode)
        book._db.execute("insert into place values (?, ?, ?)", row)
        if not there:
            shutil.rmtree(tmp_path / "sorted")
        with pytest.raises(Fatal, match="Hand is not on the file system") if refused else contextlib.nullcontext():
            refuse_lost_mounts(book, [tmp_path / "new", directory])
        book.forget_directories()
        refuse_lost_mounts(book, [directory])
        book.close()


def test_another_file_of_the_name_is_left_alone(scene: Scene) -> None:
    """A new file in the inbox that merely has the name of a filed one is not touched."""
    os.rename(scene.source, scene.target / NAME)
    scene.source.write_bytes(b"the next patient")
    assert scene.recover().state == "filed"
    assert content(scene.inbox) == [b"the next patient"]


def test_strange_names_at_the_destination_end_the_search(tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
    """A taken name with an endless extension does not make the start hang."""
    target = tmp_path / "Hand"
    target.mkdir()
    name = "a." + "b" * 253
    scene = Scene(tmp_path, target, identify, name)
    (target / name).write_bytes(b"someone else")

    def late(*_: Any) -> None:
        raise AssertionError("recovery does not end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(3)
    try:
        assert scene.recover().state == "returned"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        scene.ledger.close()


def test_file_rewritten_before_the_move_is_no_missing_file(scene: Scene) -> None:
    """A file that its producer overwrote while the daemon was dead is given back, not called missing."""
    scene.source.write_bytes(b"a newer version")
    ending = scene.recover()
    assert (ending.state, "changed" in (ending.note or "")) == ("returned", True)
    assert content(scene.inbox) == [b"a newer version"]


def test_a_time_beyond_what_sqlite_holds(tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
    """A file that is dated after 2262-04-11 is decided upon, and known again after a crash that followed its move."""
    (tmp_path / "Hand").mkdir()
    scene = Scene(tmp_path, tmp_path / "Hand", _far_ahead(identify))
    scene.source.rename(scene.target / NAME)
    assert scene.recover().state == "filed"
    scene.ledger.close()


def _far_ahead(identify: Callable[[Path], Identity]) -> Callable[[Path], Identity]:
    def dated(path: Path) -> Identity:
        os.utime(path, (10**10,) * 2)
        if os.lstat(path).st_mtime_ns < 1 << 63:
            pytest.skip("this file system knows no such time")
        return identify(path)

    return dated
