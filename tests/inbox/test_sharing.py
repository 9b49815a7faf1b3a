"""Shared mode: several workers on one inbox. Each file is handled exactly once, whoever dies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemon import Daemon, digest, mednet
from tests.support.dropped_files import Producer, check, picture
from tests.support.waiting import LONGEST_S
from watcher.core import no_overwrite
from watcher.core.errors import Fatal, Retry
from watcher.filing import put_back
from watcher.inbox import claims, ownership
from watcher.inbox.claims import DIRECTORY, Claim, Claims, count_files, owners, release
from watcher.inbox.scan import Inbox

FAST = "inbox: {shared: true, settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"


class Pair:
    """Two workers with one configuration, each with a log of its own."""

    def __init__(self, root: Path, extra: str = "") -> None:
        self.first = Daemon(root, FAST + extra, stub=True)
        self.second = Daemon(root, FAST + extra, stub=True)
        self.second.log = root / "log2"

    def outcomes(self) -> int:
        return len(self.first.outcomes()) + len(self.second.outcomes())

    def drained(self) -> bool:
        """Nothing is left in the inbox, nor claimed."""
        return not any(path.is_file() and path.name != "id" for path in self.first.inbox.rglob("*"))


def test_two_workers_and_one_is_killed(tmp_path: Path) -> None:
    """Of 2,000 files that two workers share, one killed midway: each is filed once, and both had their part."""
    pair = Pair(tmp_path)
    share(pair, files=2000)


@pytest.mark.proof
def test_ten_thousand_files_and_one_worker_is_killed(tmp_path: Path) -> None:
    """Of 10,000 files that two workers share, one killed midway, each is filed once."""
    share(Pair(tmp_path), files=10_000)


def share(pair: Pair, files: int) -> float:
    """Let two workers sort files, kill one midway, and see that each file was filed once. Seconds it took."""
    started = time.monotonic()
    producer = Producer(pair.first, seed=4)
    with pair.first, pair.second:
        for _ in range(files // 100):
            producer.drop(100)
        pair.second.until(lambda: pair.outcomes() > files // 3 and bool(pair.second.outcomes()))
        assert pair.second.stop(signal.SIGKILL) == -signal.SIGKILL
        pair.second.process = None
        pair.first.until(pair.drained)
        assert pair.first.stop() == 0
    for note in (pair.first.root / "quarantine").glob(f".*{no_overwrite.PARTIAL}"):
        note.unlink()  # half a note, of the killed one: the other leaves it for an hour
    check(pair.first, producer.dropped)
    owners = Counter(line["owner"] for daemon in (pair.first, pair.second) for line in daemon.events("daemon.starting"))
    assert owners == {"worker-1": 1, "worker-2": 1}
    assert pair.first.outcomes()
    assert pair.second.outcomes()
    return time.monotonic() - started


@pytest.mark.parametrize("name", ["taken", "claimed", "decided", "renamed", "moved", "filed"])
def test_a_worker_killed_at_any_step_is_taken_over(tmp_path: Path, name: str) -> None:
    """The other worker, never restarted, ends what the dead one had begun."""
    pair = Pair(tmp_path)
    producer = Producer(pair.first, seed=9)
    pair.second.environ["MEDNET_FAILPOINT"] = f"{name}:3" if name in ("taken", "renamed") else name
    pair.second.start()
    producer.drop(60)
    assert pair.second.process is not None
    assert pair.second.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
    assert not producer.dropped - pair.first.digests(), "lost at the very moment of the kill"
    pair.second.environ.clear()
    with pair.first:
        pair.first.until(pair.drained)
        assert pair.first.stop() == 0
    check(pair.first, producer.dropped)


def test_killed_while_taking_over(tmp_path: Path) -> None:
    """Killed in the middle of taking over a dead worker's claims: the next start ends what both had begun."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    claimed = daemon.inbox / DIRECTORY / "worker-2"
    claimed.mkdir(parents=True)
    images = [picture(np.random.default_rng(number)) for number in range(10)]
    for number, data in enumerate(images):
        (claimed / f"{number}.jpeg").write_bytes(data)
    daemon.environ["MEDNET_FAILPOINT"] = "adopted:3"
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
    daemon.environ.clear()
    with daemon.start():
        daemon.until_filed(10)
        assert daemon.stop() == 0
    check(daemon, Counter(digest(data) for data in images))


def test_a_clean_stop_gives_claims_back(tmp_path: Path) -> None:
    """Files that a worker has claimed and not filed are in the inbox again after SIGTERM."""
    daemon = Daemon(tmp_path, FAST.replace("patience_s: 0.3", "patience_s: 60"), stub=True)
    with daemon:
        (daemon.inbox / "half.jpeg").write_bytes(picture(np.random.default_rng(1))[:-20])
        daemon.until(lambda: (daemon.inbox / DIRECTORY / "worker-1" / "half.jpeg").exists())
        assert daemon.stop() == 0
    assert (daemon.inbox / "half.jpeg").exists()
    assert daemon.events("inbox.given_back")[0]["files"] == 1


def test_an_inbox_that_was_replaced_is_shared_again(tmp_path: Path) -> None:
    """Away for a while and back as another directory, as after a mount: the worker goes on by itself."""
    with Daemon(tmp_path, FAST, stub=True) as daemon:
        daemon.inbox.rename(tmp_path / "away")
        daemon.until(lambda: len(daemon.events("inbox.unreachable")) > 0)
        daemon.inbox.mkdir()
        (daemon.inbox / "x.jpeg").write_bytes(picture(np.random.default_rng(1)))
        daemon.until_filed(1)
        assert daemon.stop() == 0


def test_a_daemon_alone_frees_what_workers_left(tmp_path: Path) -> None:
    """After the setting was taken back, what dead workers had claimed is sorted like everything else."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    daemon.environ["MEDNET_FAILPOINT"] = "taken:3"
    producer = Producer(daemon, seed=3)
    producer.drop(20)
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
    daemon.environ.clear()
    daemon.config.write_text(daemon.config.read_text().replace("shared: true", "shared: false"))
    with daemon.start():
        daemon.until_filed(20)
        assert daemon.stop() == 0
    check(daemon, producer.dropped)


@pytest.mark.parametrize("point", ["decided", "published", "moved"])
def test_workers_end_what_a_daemon_alone_left(tmp_path: Path, point: str) -> None:
    """The other way round, killed while it copied to another file system: two workers start, no file is doubled."""
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        output = f"output: {{sorted: {elsewhere}/sorted}}\n"
        alone = Daemon(tmp_path, output, stub=True)
        alone.environ["MEDNET_FAILPOINT"] = point
        producer = Producer(alone, seed=3)
        producer.drop(20)
        alone.start(wait=False)
        assert alone.process is not None
        assert alone.process.wait(timeout=LONGEST_S) == -signal.SIGKILL
        pair = Pair(tmp_path, output)
        for daemon in (pair.first, pair.second):
            daemon.places[1] = Path(elsewhere) / "sorted"
            daemon.start(wait=False)
        with pair.first, pair.second:
            pair.first.until(pair.drained)
            for daemon in (pair.first, pair.second):  # before that SIGTERM is no orderly end
                daemon.until(lambda daemon=daemon: bool(daemon.events("daemon.ready")))  # type: ignore[misc]
            assert pair.first.stop() == pair.second.stop() == 0
            pair.first.process = pair.second.process = None
        check(pair.first, producer.dropped)


@pytest.mark.parametrize("across", [False, True])
def test_of_equal_files_that_two_workers_sort_at_once_one_is_the_first(tmp_path: Path, across: bool) -> None:
    """Of two equal files under two names that two processes decide upon at once, one is a duplicate, always."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if across and os.path.isdir("/dev/shm") else tmp_path) as output:
        rules = f"collisions: {{other_name_same_bytes: quarantine}}\noutput: {{sorted: {output}/sorted}}\n"
        pair = Pair(tmp_path, f"{rules}batch: {{size: 4}}\n")
        pair.first.places[1] = Path(output) / "sorted"
        for daemon in (pair.first, pair.second):
            daemon.environ["STUB_MOVE_S"] = "0.05"  # long enough for the other to decide meanwhile
        rng = np.random.default_rng(12)
        images: list[bytes] = []
        with pair.first.start(), pair.second.start():
            while len(images) < 200 and not _shared(pair):  # who takes which file is chance
                for _ in range(40):
                    images.append(picture(rng, 60))
                    for name in ("a", "b"):
                        (tmp_path / "outside").write_bytes(images[-1])
                        (tmp_path / "outside").rename(pair.first.inbox / f"{name}{len(images)}.jpeg")
                pair.first.until(lambda: pair.outcomes() == 2 * len(images))
            assert pair.first.stop() == pair.second.stop() == 0
            pair.first.process = pair.second.process = None
        check(pair.first, Counter(digest(data) for data in images for _ in range(2)))
    lines = [line for daemon in (pair.first, pair.second) for line in daemon.outcomes()]
    told = Counter((line["digest"], line["event"], line["reason"]) for line in lines)
    assert told == Counter(
        (digest(data), *rest)
        for data in images
        for rest in (("image.sorted", None), ("image.quarantined", "duplicate"))
    )
    assert _shared(pair), "no pair was shared by both: nothing was tried"


def _shared(pair: Pair) -> bool:
    """Return True if of any two equal files one went to each worker."""
    first, second = ({line["digest"] for line in daemon.outcomes()} for daemon in (pair.first, pair.second))
    return bool(first & second)


def test_alone_and_shared_exclude_each_other(tmp_path: Path) -> None:
    """Neither a daemon that wants the inbox for itself nor one that shares it starts beside the other kind."""
    root = tmp_path
    with Daemon(root, FAST, stub=True):
        (root / "alone.yaml").write_text("inbox: {shared: false}\n")
        ended = mednet("run", "--config", str(root / "alone.yaml"))
        assert (ended.returncode, "another daemon" in ended.stderr) == (6, True)
    (root / "shared.yaml").write_text("inbox: {shared: true}\n")
    with Daemon(root, "inbox: {shared: false}\n", stub=True):
        ended = mednet("run", "--config", str(root / "shared.yaml"))
        assert (ended.returncode, "another daemon" in ended.stderr) == (6, True)


def test_another_state_directory_is_refused(tmp_path: Path) -> None:
    """Workers of one inbox share one ledger: who has another is told so, not let in."""
    with Daemon(tmp_path, FAST, stub=True):
        (tmp_path / "other.yaml").write_text("inbox: {shared: true}\nstate: {path: elsewhere}\n")
        ended = mednet("run", "--config", str(tmp_path / "other.yaml"))
    assert (ended.returncode, "another state directory" in ended.stderr) == (5, True)


def test_status_names_the_workers(tmp_path: Path) -> None:
    """``status`` says who shares the inbox, and that nobody does after they stopped."""
    pair = Pair(tmp_path)
    with pair.first, pair.second:
        told = json.loads(mednet("status", "--json", "--config", str(pair.first.config)).stdout)
        assert (told["running"], sorted(told["workers"])) == (True, ["worker-1", "worker-2"])
        assert pair.first.stop() == pair.second.stop() == 0
        pair.first.process = pair.second.process = None
    assert mednet("status", "--config", str(pair.first.config)).returncode == 1


def test_a_number_is_free_again_after_its_worker_died(tmp_path: Path) -> None:
    """The next worker takes the lowest number that nobody holds."""
    pair = Pair(tmp_path)
    with pair.first, pair.second:
        pair.first.stop(signal.SIGKILL)
        pair.first.start()
    assert [line["owner"] for line in pair.first.events("daemon.starting")] == ["worker-1", "worker-1"]


class TestClaims:
    """Claiming, without a daemon."""

    def test_only_one_gets_a_file(self, tmp_path: Path) -> None:
        """The first claim takes the file, the second finds it gone."""
        first, second = Claims(tmp_path, "worker-1"), Claims(tmp_path, "worker-2")
        (tmp_path / "x").write_bytes(b"x")
        assert [first.take("x"), second.take("x")] == [Claim.TAKEN, Claim.GONE]
        assert (first.path / "x").read_bytes() == b"x"

    def test_a_name_in_hand_waits(self, tmp_path: Path) -> None:
        """A second file of a name that is being sorted stays in the inbox; it replaces nothing."""
        mine = Claims(tmp_path, "worker-1")
        for data in (b"first", b"second"):
            (tmp_path / "x").write_bytes(data)
            claim = mine.take("x")
        assert claim is Claim.BUSY
        assert ((mine.path / "x").read_bytes(), (tmp_path / "x").read_bytes()) == (b"first", b"second")

    def test_release_overwrites_nothing(self, tmp_path: Path) -> None:
        """Given back to an inbox where the name was taken meanwhile, a file gets another."""
        mine = Claims(tmp_path, "worker-1")
        (tmp_path / "x.png").write_bytes(b"first")
        mine.take("x.png")
        (tmp_path / "x.png").write_bytes(b"second")
        assert release(tmp_path, "worker-1") == ["x-1.png"]
        assert ((tmp_path / "x.png").read_bytes(), (tmp_path / "x-1.png").read_bytes()) == (b"second", b"first")

    @pytest.mark.parametrize("died", ["taking", "releasing"])
    def test_no_file_has_two_names_for_good(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: str) -> None:
        """Without renameat2 (NFS), a worker that dies at a claim or at its return leaves one file, or will have."""
        monkeypatch.setattr(no_overwrite, "rename_in_one_call", lambda *_: False)
        mine = Claims(tmp_path, "worker-1")
        (tmp_path / "x.png").write_bytes(b"x")

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            if died == "releasing":
                mine.take("x.png")
            patch.setattr(no_overwrite, "unlink_or_undo", die)  # what link and unlink come to in between
            mine.take("x.png") if died == "taking" else release(tmp_path, "worker-1")
        assert len([path for path in tmp_path.rglob("x*") if path.is_file()]) == (1 if died == "taking" else 2)
        assert release(tmp_path, "worker-1") == ["x.png"]
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "x.png"]

    def test_a_new_mount_gets_its_directory(self, tmp_path: Path) -> None:
        """If the inbox is replaced by another directory, claiming goes on in that one."""
        mine = Claims(tmp_path / "inbox", "worker-1")
        mine.path.mkdir(parents=True)
        shutil.rmtree(tmp_path / "inbox")
        (tmp_path / "inbox").mkdir()
        (tmp_path / "inbox" / "x").touch()
        assert mine.take("x") is Claim.TAKEN

    def test_adoption_leaves_a_name_that_is_in_hand(self, tmp_path: Path) -> None:
        """Of a dead worker's claims, one whose name is claimed here already waits for the next time."""
        dead, mine = Claims(tmp_path, "worker-1"), Claims(tmp_path, "worker-2")
        for each, name in ((dead, "x"), (dead, "y"), (mine, "x")):
            each.path.mkdir(parents=True, exist_ok=True)
            (each.path / name).write_bytes(each.worker.encode())
        assert mine.adopt("worker-1") == ["y"]
        assert (os.listdir(dead.path), (mine.path / "x").read_bytes()) == (["x"], b"worker-2")


class TestLinks:
    """A link where claims should lie, as anybody can put there who may write in the inbox, leads nowhere."""

    @pytest.fixture(params=["all claims", "one worker's"])
    def elsewhere(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
        """A directory that does not belong to the inbox, with a file in it, and a link to it."""
        inner = tmp_path / "elsewhere" / "worker-1"
        inner.mkdir(parents=True)
        (inner / "secret").write_bytes(b"not ours to move")
        (tmp_path / "inbox").mkdir()
        if request.param == "all claims":
            (tmp_path / "inbox" / DIRECTORY).symlink_to(tmp_path / "elsewhere")
        else:
            (tmp_path / "inbox" / DIRECTORY).mkdir()
            (tmp_path / "inbox" / DIRECTORY / "worker-1").symlink_to(inner)
        yield inner
        assert [path.name for path in inner.iterdir()] == ["secret"]

    def test_nothing_is_claimed_into_it(self, tmp_path: Path, elsewhere: Path) -> None:
        """A claim fails, and the file stays in the inbox."""
        (tmp_path / "inbox" / "x").touch()
        with pytest.raises(Retry):
            Claims(tmp_path / "inbox", "worker-1").take("x")
        assert (tmp_path / "inbox" / "x").exists()

    def test_nothing_is_taken_out_of_it(self, tmp_path: Path, elsewhere: Path) -> None:
        """Neither as a dead worker's claims nor as one's own; nor is it counted or swept."""
        inbox = tmp_path / "inbox"
        assert release(inbox, "worker-1") == []
        assert Claims(inbox, "worker-2").adopt("worker-1") == []
        assert (owners(inbox), count_files(inbox)) == ([], 0)
        with pytest.raises(Retry):
            next(Inbox(Claims(inbox, "worker-1").path, own=True).scan())

    def test_a_worker_does_not_start_there(self, tmp_path: Path, elsewhere: Path) -> None:
        """Shared mode is refused with exit code 5."""
        with pytest.raises(Fatal) as caught:
            ownership.take_shared(tmp_path / "inbox", tmp_path / "state")
        assert caught.value.code == 5
        assert os.listdir(elsewhere.parent) == ["worker-1"]

    def test_nothing_is_put_back_through_it(self, tmp_path: Path) -> None:
        """``retry`` and ``undo`` refuse a link in the place where they would put files first."""
        (tmp_path / "elsewhere" / "operator").mkdir(parents=True)
        (tmp_path / "inbox").mkdir()
        (tmp_path / "inbox" / DIRECTORY).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Fatal, match="can not be used"):
            put_back.prepare_landing(tmp_path / "inbox", tmp_path / "inbox")

    def test_the_daemon_leaves_it_alone(self, tmp_path: Path) -> None:
        """A producer who makes a link to the class directories does not make the daemon sort them again."""
        (tmp_path / "sorted" / "Hand").mkdir(parents=True)
        (tmp_path / "sorted" / "Hand" / "x.jpeg").write_bytes(picture(np.random.default_rng(1)))
        daemon = Daemon(tmp_path, FAST.replace("shared: true, ", ""), stub=True)
        (daemon.inbox / DIRECTORY).symlink_to(tmp_path / "sorted")
        with daemon.start():
            (daemon.inbox / "y.jpeg").write_bytes(picture(np.random.default_rng(2)))
            daemon.until_filed(1)
            time.sleep(0.5)  # another scan
            assert daemon.stop() == 0
        assert [line["name"] for line in daemon.outcomes()] == ["y.jpeg"]
        assert (tmp_path / "sorted" / "Hand" / "x.jpeg").exists()


def test_directories_of_nobody_are_left_alone(tmp_path: Path) -> None:
    """Directories beside the claims of workers and operators have no owner, and are not taken over."""
    for name in ("worker-1", "operator", "worker-x", "Hand", "daemon"):
        (tmp_path / DIRECTORY / name).mkdir(parents=True)
    assert owners(tmp_path) == ["operator", "worker-1"]


def test_a_full_house_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker more than there may be gets exit code 6."""
    monkeypatch.setattr(claims, "MOST_WORKERS", 1)
    (tmp_path / "inbox").mkdir()
    first = ownership.take_shared(tmp_path / "inbox", tmp_path / "state")
    with pytest.raises(Fatal) as caught:
        ownership.take_shared(tmp_path / "inbox", tmp_path / "state")
    assert caught.value.code == 6
    first.release()


def test_ledger_of_two_workers_has_no_gaps(tmp_path: Path) -> None:
    """Decisions of both have ids of their own, one after the other."""
    pair = Pair(tmp_path)
    producer = Producer(pair.first, seed=6)
    with pair.first, pair.second:
        producer.drop(200)
        pair.first.until(lambda: pair.outcomes() >= 200)
        assert pair.first.stop() == pair.second.stop() == 0
        pair.first.process = pair.second.process = None
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "ledger.sqlite3")) as ledger:
        ids = [row[0] for row in ledger.execute("select id from decision where outcome != 'returned' order by id")]
    assert ids == list(range(1, len(ids) + 1))
    assert os.listdir(pair.first.inbox) == [DIRECTORY]


def test_status_counts_what_is_claimed(tmp_path: Path) -> None:
    """A claimed file is pending like one that still lies in the inbox itself."""
    claimed = tmp_path / "inbox" / DIRECTORY / "worker-1"
    claimed.mkdir(parents=True)
    (claimed / "x.jpeg").touch()
    (tmp_path / "inbox" / "MOUNTED").touch()
    (tmp_path / "config.yaml").write_text("inbox: {shared: true, sentinel: MOUNTED}\n")
    told = json.loads(mednet("status", "--json", "--config", str(tmp_path / "config.yaml")).stdout)
    assert told["waiting"] == 1
