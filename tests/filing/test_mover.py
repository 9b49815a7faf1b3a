"""Filing: one mover, nothing overwritten, nothing lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.core import no_overwrite
from watcher.core.errors import Exit, Fatal, Retry, Vanished
from watcher.core.records import Identity
from watcher.filing import mover, quarantine_notes
from watcher.filing.mover import Mover

Identify = Callable[[Path], Identity]
CONTENT = b"a radiograph"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
AWKWARD = [
    b"plain.png",
    b"new\nline.png",
    b"\xff\xfe\x80.jpg",
    b".hidden",
    b"no-suffix",
    b"a." + b"b" * 253,
    b"c" * 255,
]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not know RENAME_NOREPLACE, as NFS and some FUSE ones do not."""

    class Libc:
        def renameat2(self, *_: Any) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(no_overwrite, "_libc", Libc())


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class TestMove:
    @pytest.mark.parametrize("raw", AWKWARD)
    def test_moves_under_its_own_name(self, inbox: Path, target: Path, identify: Identify, raw: bytes) -> None:
        """A file keeps its name, whatever bytes it is of, and is the very same file."""
        name = os.fsdecode(raw)
        (inbox / name).write_bytes(CONTENT)
        stamp = identify(inbox / name)
        path = Mover(inbox).move(name, stamp, DIGEST, target)
        assert path == target / name
        assert identify(path) == stamp
        assert content(inbox) == {}

    @pytest.mark.parametrize("raw", AWKWARD)
    def test_taken_name_gets_a_suffix(self, inbox: Path, target: Path, raw: bytes) -> None:
        """A taken name is never overwritten: the newcomer gets another, however long or strange its own is."""
        name = os.fsdecode(raw)
        for number in range(4):
            (inbox / name).write_bytes(str(number).encode())
            _within(5, lambda: Mover(inbox).move(name, None, DIGEST, target))
        assert sorted(content(target).values()) == [b"0", b"1", b"2", b"3"]
        assert (target / name).read_bytes() == b"0"
        assert content(inbox) == {}

    def test_racing_threads_overwrite_nothing(self, tmp_path: Path, target: Path) -> None:
        """Of many files moved to one name at one moment each survives."""
        inboxes = [tmp_path / f"inbox{number}" for number in range(8)]
        for number, inbox in enumerate(inboxes):
            inbox.mkdir()
            for turn in range(20):
                (inbox / f"{turn}.png").write_bytes(f"{number}/{turn}".encode())
        barrier = threading.Barrier(len(inboxes))

        def run(inbox: Path) -> None:
            for turn in range(20):
                barrier.wait()
                Mover(inbox).move(f"{turn}.png", None, None, target)

        threads = [threading.Thread(target=run, args=(inbox,)) for inbox in inboxes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = sorted(f"{number}/{turn}".encode() for number in range(8) for turn in range(20))
        assert sorted(content(target).values()) == expected

    def test_another_file_of_the_name_stays(self, inbox: Path, target: Path, identify: Identify) -> None:
        """A file that took the name after the decision is not moved on it: Vanished, and both files stay."""
        path = inbox / "a.png"
        path.write_bytes(b"old")
        stamp = identify(path)
        (inbox / "new").write_bytes(b"new")
        os.rename(path, inbox / "kept")
        os.rename(inbox / "new", path)
        with pytest.raises(Vanished):
            Mover(inbox).move("a.png", stamp, None, target)
        assert content(inbox) == {"a.png": b"new", "kept": b"old"}
        assert content(target) == {}

    def test_file_rewritten_in_place_stays(self, inbox: Path, target: Path, identify: Identify) -> None:
        """A file whose bytes changed after the decision is another file, also at the same size."""
        path = inbox / "a.png"
        path.write_bytes(b"old")
        stamp = identify(path)
        path.write_bytes(b"new")
        os.utime(path, ns=(0, stamp.mtime_ns + 1))
        with pytest.raises(Vanished):
            Mover(inbox).move("a.png", stamp, None, target)
        assert content(inbox) == {"a.png": b"new"}

    def test_swap_between_look_and_rename_is_undone(
        self, inbox: Path, target: Path, identify: Identify, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file swapped in at the last instant is given back to the inbox under its name."""
        path = inbox / "a.png"
        path.write_bytes(b"old")
        stamp = identify(path)
        rename = no_overwrite.rename_noreplace

        def swap_first(source: Path, to: Path) -> None:
            monkeypatch.setattr(no_overwrite, "rename_noreplace", rename)
            (inbox / "new").write_bytes(b"newer")
            os.replace(inbox / "new", path)
            rename(source, to)

        monkeypatch.setattr(no_overwrite, "rename_noreplace", swap_first)
        with pytest.raises(Vanished):
            Mover(inbox).move("a.png", stamp, None, target)
        assert content(inbox) == {"a.png": b"newer"}
        assert content(target) == {}

    def test_file_that_is_gone_has_vanished(self, inbox: Path, target: Path) -> None:
        """A file no longer in the inbox raises Vanished, not Retry: there is nothing to try again."""
        with pytest.raises(Vanished):
            Mover(inbox).move("a.png", None, None, target)

    def test_removed_target_directory_is_made_again(self, inbox: Path, target: Path) -> None:
        """A class directory that somebody removed meanwhile, parents and all, is made again."""
        (inbox / "a.png").write_bytes(CONTENT)
        path = Mover(inbox).move("a.png", None, DIGEST, target / "deep" / "Hand")
        assert path == target / "deep" / "Hand" / "a.png"
        assert path.read_bytes() == CONTENT

    def test_failing_surroundings_raise_retry(self, inbox: Path, target: Path) -> None:
        """Something in the way of the target directory raises Retry, and the file stays in the inbox."""
        (inbox / "a.png").write_bytes(CONTENT)
        (target / "Hand").write_bytes(b"a file where a directory should be")
        with pytest.raises(Retry):
            Mover(inbox).move("a.png", None, DIGEST, target / "Hand")
        assert content(inbox) == {"a.png": CONTENT}

    def test_link_is_moved_not_followed(self, inbox: Path, target: Path, tmp_path: Path) -> None:
        """A symbolic link is moved as the link it is; what it points to is not touched."""
        (tmp_path / "secret").write_bytes(b"secret")
        (inbox / "a.png").symlink_to(tmp_path / "secret")
        path = Mover(inbox).move("a.png", None, None, target)
        assert os.readlink(path) == str(tmp_path / "secret")
        assert (tmp_path / "secret").read_bytes() == b"secret"

    def test_flush_survives_and_forgets(self, inbox: Path, target: Path) -> None:
        """Flush syncs the directories touched since the last flush; one that is gone raises Retry, once."""
        mover = Mover(inbox)
        (inbox / "a.png").write_bytes(CONTENT)
        mover.move("a.png", None, None, target)
        shutil.rmtree(target)
        with pytest.raises(Retry, match="target"):
            mover.flush()
        mover.flush()

    @pytest.mark.parametrize(("device", "inode", "lost"), [(0, 0, False), (1, 0, False), (0, 1, False), (1, 1, True)])
    def test_what_is_mounted_there_now(self, inbox: Path, target: Path, device: int, inode: int, lost: bool) -> None:
        """A share that comes back under another number is the same directory; another directory on another is none."""
        filing = Mover(inbox)
        filing.expect(target)
        filing._expected[target] = target.stat().st_dev + device, target.stat().st_ino + inode
        (inbox / "a.jpeg").write_bytes(b"x")
        with pytest.raises(Retry, match="has its mount gone") if lost else contextlib.nullcontext():
            filing.move("a.jpeg", None, None, target)
        assert bool(content(target)) is not lost

    def test_an_inbox_unmounted_right_after_a_move(self, inbox: Path, target: Path) -> None:
        """A source directory that is gone after the move is no failure: the file has arrived."""
        (inbox / "a.png").write_bytes(CONTENT)
        mover = Mover(inbox)
        mover.move("a.png", None, None, target)
        inbox.rename(inbox.with_name("away"))
        mover.flush()
        assert (target / "a.png").read_bytes() == CONTENT

    def test_a_subdirectory_taken_right_after_a_move(self, inbox: Path, target: Path) -> None:
        """A consumer takes whole subdirectories, with what has just come: there is nothing left here to sync."""
        (inbox / "a.png").write_bytes(CONTENT)
        mover = Mover(inbox)
        mover.expect(target)
        mover.move("a.png", None, None, target, below="ward/monday")
        (target / "ward").rename(inbox / "taken")
        mover.flush()
        assert (inbox / "taken" / "monday" / "a.png").read_bytes() == CONTENT

    def test_a_subdirectory_that_went_with_its_mount(self, inbox: Path, target: Path) -> None:
        """Nobody took it: what was moved there may not be on disk."""
        (inbox / "a.png").write_bytes(CONTENT)
        mover = Mover(inbox)
        mover.move("a.png", None, None, target, below="ward")
        shutil.rmtree(target / "ward")
        mover._expected[target] = target.stat().st_dev + 1, target.stat().st_ino + 1
        with pytest.raises(Retry, match="ward"):
            mover.flush()


class TestLinkFallback:
    def test_moves(self, inbox: Path, target: Path, identify: Identify, no_renameat2: None) -> None:
        """Without renameat2 a file moves by link and unlink: the same file, one name."""
        (inbox / "a.png").write_bytes(CONTENT)
        stamp = identify(inbox / "a.png")
        path = Mover(inbox).move("a.png", stamp, DIGEST, target)
        assert identify(path) == stamp
        assert path.stat().st_nlink == 1
        assert content(inbox) == {}

    def test_overwrites_nothing(self, inbox: Path, target: Path, no_renameat2: None) -> None:
        """Without renameat2 a taken name makes the link fail, and the newcomer gets a suffix."""
        (inbox / "a.png").write_bytes(b"new")
        (target / "a.png").write_bytes(b"old")
        Mover(inbox).move("a.png", None, DIGEST, target)
        assert content(target) == {"a.png": b"old", f"a-{DIGEST[:8]}.png": b"new"}

    def test_tries_that_fail_do_not_pile_up(
        self, inbox: Path, target: Path, no_renameat2: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the inbox lets nothing go, each try leaves the file in exactly one place."""
        (inbox / "a.png").write_bytes(CONTENT)
        _keep(inbox / "a.png", monkeypatch)
        for _ in range(3):
            with pytest.raises(Retry):
                Mover(inbox).move("a.png", None, DIGEST, target)
        assert content(inbox) == {"a.png": CONTENT}
        assert content(target) == {}


class TestOtherFileSystem:
    def test_copies_then_unlinks(self, inbox: Path, elsewhere: Path, identify: Identify) -> None:
        """The bytes and the time arrive, the inbox is empty, and no hidden partial file stays behind."""
        (inbox / "a.png").write_bytes(CONTENT)
        stamp = identify(inbox / "a.png")
        path = Mover(inbox).move("a.png", stamp, DIGEST, elsewhere)
        assert content(elsewhere) == {"a.png": CONTENT}
        assert path.stat().st_mtime_ns == stamp.mtime_ns
        assert content(inbox) == {}

    @pytest.mark.parametrize("raw", AWKWARD)
    def test_overwrites_nothing(self, inbox: Path, elsewhere: Path, raw: bytes) -> None:
        """A taken name gets a suffix there as well, whatever the name."""
        name = os.fsdecode(raw)
        for number in range(3):
            (inbox / name).write_bytes(str(number).encode())
            _within(5, lambda: Mover(inbox).move(name, None, None, elsewhere))
        assert sorted(content(elsewhere).values()) == [b"0", b"1", b"2"]

    def test_wrong_digest_publishes_nothing(self, inbox: Path, elsewhere: Path) -> None:
        """Bytes other than those decided upon are not filed: Vanished, the file stays, no litter."""
        (inbox / "a.png").write_bytes(CONTENT)
        with pytest.raises(Vanished):
            Mover(inbox).move("a.png", None, "0" * 64, elsewhere)
        assert content(inbox) == {"a.png": CONTENT}
        assert content(elsewhere) == {}

    def test_the_copy_of_another_worker_is_left_alone(self, inbox: Path, elsewhere: Path) -> None:
        """Two workers may copy files of one name at once: each has a hidden name of its own."""
        (inbox / "a.png").write_bytes(CONTENT)
        theirs = elsewhere / ".0123456789abcdef.mednet-partial"
        theirs.write_bytes(b"a rad")
        Mover(inbox).move("a.png", None, DIGEST, elsewhere)
        assert content(elsewhere) == {"a.png": CONTENT, theirs.name: b"a rad"}

    def test_removed_target_directory_is_made_again(self, inbox: Path, elsewhere: Path) -> None:
        """A class directory removed meanwhile is made again on another file system too."""
        (inbox / "a.png").write_bytes(CONTENT)
        assert Mover(inbox).move("a.png", None, DIGEST, elsewhere / "Hand").read_bytes() == CONTENT

    def test_tries_that_fail_do_not_pile_up(
        self, inbox: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the inbox lets nothing go (mounted read-only, say), retries do not fill the other disk with copies."""
        (inbox / "a.png").write_bytes(CONTENT)
        _keep(inbox / "a.png", monkeypatch)
        for _ in range(3):
            with pytest.raises(Retry):
                Mover(inbox).move("a.png", None, DIGEST, elsewhere)
        assert content(inbox) == {"a.png": CONTENT}
        assert len(content(elsewhere)) <= 1

    def test_file_that_arrives_during_the_copy_is_kept(
        self, inbox: Path, elsewhere: Path, identify: Identify, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that takes the name while the first one's copy is made durable is not unlinked in its stead."""
        path = inbox / "a.png"
        path.write_bytes(CONTENT)
        stamp = identify(path)
        sync = no_overwrite.sync_directory

        def replace_first(directory: Path) -> None:
            sync(directory)
            (inbox / "new").write_bytes(b"another one")
            os.replace(inbox / "new", path)

        monkeypatch.setattr(no_overwrite, "sync_directory", replace_first)
        with contextlib.suppress(Vanished):
            Mover(inbox).move("a.png", stamp, DIGEST, elsewhere)
        assert b"another one" in content(inbox).values()

    @pytest.mark.parametrize("renamed", [True, False])
    def test_source_gone_after_the_copy(
        self, inbox: Path, elsewhere: Path, identify: Identify, monkeypatch: pytest.MonkeyPatch, renamed: bool
    ) -> None:
        """A file renamed or removed once its copy has a name has vanished: no unknown copy stays."""
        source = inbox / "a.png.part"
        source.write_bytes(CONTENT)
        stamp = identify(source)

        def reach(point: str) -> None:
            if point == "published":
                source.rename(inbox / "a.png") if renamed else source.unlink()

        monkeypatch.setattr(mover.failpoints, "reach", reach)
        with pytest.raises(Vanished):
            Mover(inbox).move(source.name, stamp, DIGEST, elsewhere)
        assert content(elsewhere) == {}
        assert content(inbox) == ({"a.png": CONTENT} if renamed else {})

    def test_what_is_no_regular_file_is_made_again(self, inbox: Path, elsewhere: Path) -> None:
        """A pipe has no bytes to copy: it is made again over there, under a name of its own, and leaves the inbox."""
        os.mkfifo(inbox / "pipe")
        (elsewhere / "pipe").touch()
        found = Mover(inbox).move("pipe", None, None, elsewhere)
        assert found == elsewhere / "pipe-1"
        assert stat.S_ISFIFO(found.lstat().st_mode)
        assert list(inbox.iterdir()) == []


class TestCopy:
    def test_leaves_the_source(self, inbox: Path, target: Path, identify: Identify) -> None:
        """A copy has the bytes and the time; the source stays as it is."""
        (inbox / "a.png").write_bytes(CONTENT)
        stamp = identify(inbox / "a.png")
        path = mover.copy(inbox / "a.png", stamp, DIGEST, target)
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (CONTENT, stamp.mtime_ns)
        assert identify(inbox / "a.png") == stamp

    def test_same_content_serves_again(self, inbox: Path, target: Path) -> None:
        """Copied twice, it is there once; other content of that name gets a suffix."""
        (inbox / "a.png").write_bytes(CONTENT)
        first = mover.copy(inbox / "a.png", None, DIGEST, target)
        assert mover.copy(inbox / "a.png", None, DIGEST, target) == first
        (inbox / "a.png").write_bytes(b"other")
        other = hashlib.sha256(b"other").hexdigest()
        mover.copy(inbox / "a.png", None, other, target)
        assert content(target) == {"a.png": CONTENT, f"a-{other[:8]}.png": b"other"}

    def test_absent_or_changed_source_has_vanished(self, inbox: Path, target: Path, identify: Identify) -> None:
        """Without the file that was decided upon nothing is copied."""
        with pytest.raises(Vanished):
            mover.copy(inbox / "a.png", None, None, target)
        (inbox / "a.png").write_bytes(CONTENT)
        stamp = identify(inbox / "a.png")
        (inbox / "a.png").write_bytes(b"other content")
        with pytest.raises(Vanished):
            mover.copy(inbox / "a.png", stamp, DIGEST, target)
        assert content(target) == {}


class TestExplain:
    @pytest.mark.parametrize("raw", AWKWARD)
    def test_writes_json_beside_the_file(self, inbox: Path, target: Path, raw: bytes) -> None:
        """The reason lies beside the file as JSON, under the file's name as far as that fits."""
        quarantine_notes.write(target / os.fsdecode(raw), {"reason": "empty", "detail": "no bytes"}, lambda _: False)
        [(name, text)] = content(target).items()
        assert os.fsencode(name).startswith(raw[: 255 - len("-01234567.reason.json")])
        assert len(os.fsencode(name)) == min(len(raw) + len(".reason.json"), 255)
        assert json.loads(text) == {"reason": "empty", "detail": "no bytes"}

    def test_long_names_that_begin_alike_have_a_reason_each(self, target: Path) -> None:
        """Also where the ending does not fit, no file goes without a reason for another's, or takes it away."""
        files = [target / ("n" * 250 + end) for end in ("a.png", "b.png")]
        for path in files:
            quarantine_notes.write(
                path, {"name": path.name[-5:], "reason": "empty", "what_to_do": "ask"}, lambda _: False
            )
        assert [json.loads(quarantine_notes.path_beside(path).read_text())["name"] for path in files] == [
            "a.png",
            "b.png",
        ]
        quarantine_notes.remove(files[0], lambda _: False)
        assert list(target.iterdir()) == [quarantine_notes.path_beside(files[1])]

    def test_overwrites_nothing_and_never_fails(self, inbox: Path, target: Path) -> None:
        """A file that has the reason's name already stays, and a missing directory is no error."""
        (target / "a.reason.json").write_bytes(b"mine")
        quarantine_notes.write(target / "a", {"reason": "empty"}, lambda _: False)
        quarantine_notes.write(target / "missing" / "a", {"reason": "empty"}, lambda _: False)
        assert content(target) == {"a.reason.json": b"mine"}

    def test_whole_or_not_at_all(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a disk that fills up while it is written there is no reason, and nothing in the way of a later one."""
        with monkeypatch.context() as patch:
            patch.setattr(no_overwrite, "rename_noreplace", _full)
            quarantine_notes.write(target / "a", {"reason": "empty"}, lambda _: False)
        with open("/dev/full", "wb") as full, monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", lambda path, data: path.touch() or os.write(full.fileno(), data))
            quarantine_notes.write(target / "a", {"reason": "empty"}, lambda _: False)
        assert content(target) == {}
        quarantine_notes.write(target / "a", {"reason": "empty"}, lambda _: False)
        assert list(content(target)) == ["a.reason.json"]


class TestPrepare:
    def test_makes_the_directory(self, tmp_path: Path) -> None:
        """Directory and parents are made; one that is there already is fine."""
        mover.prepare(tmp_path / "a" / "b")
        mover.prepare(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()

    def test_something_in_its_way_is_fatal(self, tmp_path: Path) -> None:
        """A file in the directory's place ends the daemon with exit code 5 and the path."""
        (tmp_path / "a").touch()
        with pytest.raises(Fatal, match="/a ") as caught:
            mover.prepare(tmp_path / "a")
        assert caught.value.code is Exit.DIRECTORY


def test_partials_from_before_the_clock_was_set_back(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nobody else copies, unfinished copies go even if their time lies ahead; else they stay for now."""
    partial = target / f".0123456789abcdef{no_overwrite.PARTIAL}"
    partial.touch()
    monkeypatch.setattr(mover.time, "time", lambda: partial.lstat().st_ctime - 3600)
    mover.clear_partials(target, 60)
    assert partial.exists()
    mover.clear_partials(target)
    assert not partial.exists()


class TestCandidates:
    NAMES = st.binary(min_size=1, max_size=255).map(lambda raw: raw.replace(b"/", b".").replace(b"\0", b"."))
    LONG = st.integers(1, 254).map(lambda stem: b"s" * stem + b"." + b"e" * (254 - stem))

    @given(NAMES | LONG, st.none() | st.text("0123456789abcdef", min_size=64, max_size=64))
    def test_are_usable_and_unique(self, raw: bytes, digest: str | None) -> None:
        """Candidates begin with the name itself, fit the file system, have no directory, and none comes twice."""
        names = list(itertools.islice(no_overwrite.candidates(os.fsdecode(raw), digest), 30))
        assert os.fsencode(names[0]) == raw
        assert all(0 < len(os.fsencode(name)) <= 255 and "/" not in name for name in names)
        assert len(set(names)) == len(names)

    def test_keep_the_extension(self) -> None:
        """The digest, then a number, come before the extension, so that a viewer still opens the file."""
        names = list(itertools.islice(no_overwrite.candidates("scan.1.png", "abcdef0123"), 4))
        assert names == ["scan.1.png", "scan.1-abcdef01.png", "scan.1-abcdef01-2.png", "scan.1-abcdef01-3.png"]
        assert list(itertools.islice(no_overwrite.candidates(".hidden", None), 2)) == [".hidden", ".hidden-1"]


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _keep(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The surroundings refuse to unlink this one file (tests run as root, whom permissions do not stop)."""
    unlink, rename = os.unlink, no_overwrite.rename_noreplace

    def refuse(path: Any, *rest: Any, **more: Any) -> None:
        if Path(path) == source:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        unlink(path, *rest, **more)

    def refuse_rename(path: Path, to: Path) -> None:
        if path == source and to.parent == source.parent:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        rename(path, to)

    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(no_overwrite, "rename_noreplace", refuse_rename)


def _within(seconds: float, act: Callable[[], object]) -> None:
    """Fail instead of hanging when ``act`` does not come to an end."""
    import signal

    def late(*_: Any) -> None:
        raise AssertionError(f"did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
