"""Log lines go where they should, as often as they should, and are as the catalogue of events says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from numpy.random import default_rng

from tests.proofs.rotation import prove
from tests.support import event_catalogue, waiting
from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import picture
from tests.support.reloadable_daemon import FAST, ReloadableDaemon
from tests.support.repository import TOP
from tests.support.waiting import LONGEST_S
from watcher.images import decode
from watcher.monitoring import log
from watcher.monitoring.log_output import LineOutput, LogFile
from watcher.monitoring.rate_limit import WINDOW_S, RateLimiter
from watcher.service import log_lines


def lines(*paths: Path) -> list[str]:
    return [line for path in paths for line in path.read_text().splitlines()]


class TestFile:
    def test_moved_away_and_made_anew(self, tmp_path: Path) -> None:
        """After a rotation by rename the next line goes to the new file, whether somebody made one or not."""
        path = tmp_path / "x.log"
        file = LogFile(path)
        file.write("1\n")
        path.rename(tmp_path / "x.log.1")
        path.touch()
        file.write("2\n")
        path.rename(tmp_path / "x.log.2")
        file.write("3\n")
        file.close()
        assert [lines(tmp_path / f"x.log{n}") for n in (".1", ".2", "")] == [["1"], ["2"], ["3"]]

    def test_copied_and_truncated(self, tmp_path: Path) -> None:
        """After copytruncate lines begin at the new start: no hole of zeros."""
        path = tmp_path / "x.log"
        file = LogFile(path)
        file.write("1\n")
        shutil.copy(path, tmp_path / "x.log.1")
        os.truncate(path, 0)
        file.write("2\n")
        file.close()
        assert (path.read_bytes(), (tmp_path / "x.log.1").read_bytes()) == (b"2\n", b"1\n")

    def test_written_between_copy_and_cut(self, tmp_path: Path) -> None:
        """Lines that the copy does not have are written again; those that it has are not."""
        path = tmp_path / "x.log"
        file = LogFile(path)
        for number in range(5):
            file.write(f"{number}\n")
        shutil.copy(path, tmp_path / "x.log.1")
        (tmp_path / "x.log.2").write_text("a b c d e f")
        for number in range(5, 8):
            file.write(f"{number}\n")
        os.truncate(path, 0)
        for number in range(8, 10):
            file.write(f"{number}\n")
        file.close()
        assert lines(tmp_path / "x.log.1") == list("01234")
        assert sorted(lines(path)) == list("56789")

    def test_copied_while_a_line_was_written(self, tmp_path: Path) -> None:
        """The half line at the end of the copy is taken off; the line comes back whole, and once."""
        path, copy = tmp_path / "x.log", tmp_path / "x.log.1"
        file = LogFile(path)
        for number in range(3):
            file.write(f"line {number}\n")
        copy.write_bytes(path.read_bytes()[:-3])
        os.truncate(path, 0)
        file.write("line 3\n")
        file.close()
        assert copy.read_text() == "line 0\nline 1\n"
        assert sorted(lines(path)) == ["line 2", "line 3"]

    def test_cut_again_while_lines_come_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A second rotation in the middle of writing the first one's lines again: each line is there once."""
        path, written, write = tmp_path / "x.log", [], os.write

        def rotate(fd: int, data: bytes) -> int:
            count = write(fd, data)
            written.append(data)
            if data == b"line 6\n" and written.count(data) == 2:  # comes back for the first time
                shutil.copy(path, tmp_path / "x.log.2")
            if data == b"line 8\n" and written.count(data) == 2:
                os.truncate(path, 0)
            return count

        monkeypatch.setattr(os, "write", rotate)
        file = LogFile(path)
        for number in range(10):
            file.write(f"line {number}\n")
            if number == 4:
                shutil.copy(path, tmp_path / "x.log.1")
        os.truncate(path, 0)
        for number in range(10, 12):
            file.write(f"line {number}\n")
        file.close()
        found = lines(path, *tmp_path.glob("x.log.*"))
        assert sorted(found) == sorted(f"line {number}" for number in range(12))

    def test_cut_without_a_copy(self, tmp_path: Path) -> None:
        """Somebody emptied the file on purpose: nothing comes back."""
        path = tmp_path / "x.log"
        file = LogFile(path)
        (tmp_path / "x.log.1").write_text("another\n")
        file.write("1\n")
        os.truncate(path, 0)
        file.write("2\n")
        file.close()
        assert lines(path) == ["2"]

    def test_a_directory_that_goes_away(self, tmp_path: Path) -> None:
        """Without its directory lines are lost and counted, nothing fails; when it is back they are written."""
        path = tmp_path / "logs" / "x.log"
        path.parent.mkdir()
        file = LogFile(path)
        shutil.rmtree(path.parent)
        file.write("1\n")
        assert file.lost == 1
        path.parent.mkdir()
        file.write("2\n")
        file.close()
        assert lines(path) == ["2"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk(self) -> None:
        """Lines that can not be written are counted."""
        file = LogFile(Path("/dev/full"))
        file.write("1\n")
        file.close()
        assert file.lost == 1


class Stalled:
    """A pipe whose reader has stalled: full."""

    def __init__(self, unshared: bool) -> None:
        self.reader, self.writer = os.pipe()
        self.stream = os.fdopen(self.writer, "w")
        self.output = LineOutput(self.stream, patience_s=0.3)
        self.written = 0
        if not unshared:  # as where another user made it
            self.output._fd = self.writer
        while not self.output.lost:
            self.write()

    def write(self, size: int = 0) -> None:
        """The next line: its number, and ``size`` bytes more."""
        self.output.write(f"{self.written} {'x' * size}\n")
        self.written += 1

    def drain(self) -> bytes:
        """Read all that there is."""
        found = b""
        while select.select([self.reader], [], [], 0)[0]:
            found += os.read(self.reader, 1 << 20)
        return found


@pytest.fixture(params=[True, False])
def stalled(request: pytest.FixtureRequest) -> Iterator[Stalled]:
    pipe = Stalled(request.param)
    yield pipe
    for fd in {pipe.reader, pipe.output._fd} - {pipe.writer}:
        os.close(fd)
    pipe.stream.close()


class TestStalledReader:
    def test_nothing_waits_but_once(self, stalled: Stalled) -> None:
        """A full pipe costs one line's patience (0.3 s); what comes after is lost at once, and counted."""
        started = time.monotonic()
        for _ in range(1000):
            stalled.write()
        assert time.monotonic() - started < 1000 * 0.3 / 10
        assert (stalled.output.lost, stalled.output.lost_before()) == (1001, 0), "told when lines are written again"

    def test_goes_on_with_the_reader(self, stalled: Stalled) -> None:
        """Lines are written again as soon as the reader reads, and the number of those missing is told once."""
        stalled.write()
        stalled.drain()
        stalled.write()
        assert stalled.drain() == f"{stalled.written - 1} \n".encode()
        assert [stalled.output.lost_before() for _ in range(2)] == [2, 0]

    def test_no_line_is_torn(self, stalled: Stalled) -> None:
        """A line that was begun is finished before the next, however long it is and however often he stalls."""
        found = b""
        for _ in range(6):
            found += stalled.drain()
            for _ in range(5):
                stalled.write(50_000)
        while stalled.output._rest:
            found += stalled.drain()
            stalled.write()
        lines = (found + stalled.drain()).splitlines()
        assert all(len(line) in (50_000 + len(line.split()[0]) + 1, len(line.split()[0]) + 1) for line in lines)
        assert len({line.split()[0] for line in lines}) == len(lines) == stalled.written - stalled.output.lost
        assert max(map(len, lines)) > 50_000

    def test_others_at_the_pipe_are_not_disturbed(self, stalled: Stalled) -> None:
        """The flags of the pipe stay as they were, since other processes share them."""
        assert os.get_blocking(stalled.writer)


def test_a_pipe_without_a_reader_does_not_hold_up_the_start(tmp_path: Path) -> None:
    """A named pipe as log.file that nobody reads is an error at once, not a wait."""
    os.mkfifo(tmp_path / "p")
    with pytest.raises(OSError, match="No such device"):
        LogFile(tmp_path / "p")


@dataclass
class Piped:
    """The real daemon, its output a named pipe, whose reader reads when he is asked to."""

    daemon: Daemon
    reader: int
    started: subprocess.Popen[bytes]
    found: bytes = b""

    def read(self) -> bytes:
        """All that came so far."""
        while select.select([self.reader], [], [], 0.1)[0] and (data := os.read(self.reader, 1 << 20)):
            self.found += data
        return self.found

    def sort(self, *names: str) -> None:
        """Drop files, and wait until none is left in the inbox."""
        rng = default_rng(1)
        for name in names:
            (self.daemon.inbox / name).write_bytes(picture(rng))
        waiting.until(lambda: not os.listdir(self.daemon.inbox))


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Piped]:
    daemon, pipe = Daemon(tmp_path, FAST, stub=True), tmp_path / "p"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    with pipe.open("wb") as output:
        process = subprocess.Popen([*daemon.command, str(daemon.config)], stdout=output, env=environ)
    yield Piped(daemon, reader, process)
    process.kill()
    process.wait()
    os.close(reader)


def test_a_stalled_reader_does_not_stop_the_sorting(piped: Piped) -> None:
    """All is sorted, and a reader who goes on is told how many lines he lacks. Those he has are whole."""
    names = [f"{number}.jpeg" for number in range(600)]
    piped.sort(*names)
    piped.read()
    piped.sort("last.jpeg")
    assert b"last.jpeg" in piped.read()
    piped.started.terminate()
    assert piped.started.wait(timeout=LONGEST_S) == 0
    found = [json.loads(line) for line in piped.read().splitlines()]
    event_catalogue.check_text(piped.found)
    [lost] = [line for line in found if line["event"] == "log.lines_lost"]
    images = sum(line["event"].startswith("image.") for line in found)
    assert (lost["lines"], found[-1]["event"]) == (len(names) + 1 - images, "daemon.stopped")
    assert lost["lines"] > 0


def test_a_stalled_reader_does_not_hold_up_the_end(piped: Piped) -> None:
    """SIGTERM ends the daemon, too, while its output is stuck."""
    piped.sort(*(f"{number}.jpeg" for number in range(400)))
    piped.started.terminate()
    assert piped.started.wait(timeout=LONGEST_S) == 0


def test_a_log_file_that_fails_is_told_where_it_can_be(tmp_path: Path) -> None:
    """Its directory is gone: the output says how many lines it lacks, once a minute for as long, and at the end."""
    now, path = [0.0], tmp_path / "logs" / "x.log"
    path.parent.mkdir()
    with (tmp_path / "out").open("w") as stream:
        journal = log.DaemonLog(LineOutput(stream), lambda: now[0])
        journal.use("json", "info", LogFile(path))
        shutil.rmtree(path.parent)
        lost = []
        for now[0] in (1.0, 2.0, 30.0, 62.0, 63.0):
            journal.logger.info("inbox.reachable")
            journal.flush()
            lost.append([json.loads(line)["lines"] for line in lines(tmp_path / "out") if "log.lines_lost" in line])
        assert lost == [[1], [1], [1], [1, 4], [1, 4]], "the file lacks the warning itself, too"
        path.parent.mkdir()
        journal.logger.info("inbox.reachable")
        journal.flush()
        journal.use("json", "info")
    told = [json.loads(line) for line in lines(path)]
    assert [line["event"] for line in told] == ["inbox.reachable", "log.lines_lost"]
    assert (told[1]["lines"], told[1]["place"]) == (2, str(path))


class TestRepeats:
    def setup_method(self) -> None:
        self.now = 0.0
        self.repeats = RateLimiter(lambda: self.now)

    def hold(self, event: str = "filing.failed", method: str = "error", **fields: object) -> bool:
        return self.repeats.hold(method, {"event": event, **fields})

    def test_the_first_is_told_at_once(self) -> None:
        """And the others after a while, as one, with the last one's fields and their number."""
        assert [self.hold(files=n) for n in range(4)] == [False, True, True, True]
        assert self.repeats.due() == []
        self.now = WINDOW_S
        assert self.repeats.due() == [("error", {"event": "filing.failed", "files": 3, "repeated": 3})]
        assert self.hold() is True, "the summary begins a window of its own"

    def test_nothing_is_forgotten_at_the_end(self) -> None:
        """Lines that are held when the daemon stops are told."""
        self.hold()
        self.hold()
        assert [line["repeated"] for _, line in self.repeats.due(all=True)] == [1]
        assert self.repeats.due(all=True) == []

    def test_rare_ones_are_all_told(self) -> None:
        """One a window is no repetition."""
        for number in range(5):
            self.now = number * WINDOW_S
            assert not self.hold()
        assert self.repeats.due(all=True) == []

    @pytest.mark.parametrize(
        ("event", "method"), [("image.review", "warning"), ("daemon.stuck", "critical"), ("inbox.reachable", "info")]
    )
    def test_what_must_be_told_each_time(self, event: str, method: str) -> None:
        """The fate of each file, the daemon's life, and what is no trouble."""
        assert not any(self.hold(event, method) for _ in range(3))

    def test_kinds_apart(self) -> None:
        """One kind of trouble does not hide another."""
        assert not self.hold("filing.failed")
        assert not self.hold("inbox.unreachable")


def test_repeated_trouble_in_the_real_daemon(tmp_path: Path) -> None:
    """A place that stays closed is told once, and at the end how often it failed since."""
    with Daemon(tmp_path, FAST, stub=True) as daemon:
        shutil.rmtree(tmp_path / "review")
        (tmp_path / "review").touch()
        for number in range(3):
            (daemon.inbox / f"{number}.jpeg").write_bytes(picture(default_rng(_dark())))
            daemon.until(lambda number=number: _tried(tmp_path / "state" / "ledger.sqlite3") == number + 1)
        daemon.until(lambda: len(daemon.events("filing.failed")) == 1)
        last = json.loads((tmp_path / "state" / "last-error.json").read_text())
        assert daemon.stop() == 0
    first, rest = daemon.events("filing.failed")
    assert "repeated" not in first
    assert rest["repeated"] >= 1
    assert last == first


def _tried(path: Path) -> int:
    """Return how many files the daemon could not move so far."""
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        told = "select count(distinct name) from decision join ending on decision = id where state = 'returned'"
        return int(ledger.execute(told).fetchone()[0])


def _dark() -> int:
    """A seed whose picture the stand-in network is unsure of."""
    return next(seed for seed in range(100) if decode.grey64(picture(default_rng(seed))).mean() < 40)


def test_the_file_has_what_the_output_has(tmp_path: Path) -> None:
    """Every line, as JSON, also when the output is for people; and a reload moves it elsewhere."""
    site = ReloadableDaemon(tmp_path)
    base = site.base.replace("log: {format: json}", "log: {format: json, file: a.log}")
    site.daemon.config.write_text(base)
    with site.daemon:
        site.sort()
        assert lines(tmp_path / "a.log") == site.daemon.log.read_text().splitlines()
        assert site.reload(base.replace("a.log", "b.log"))["changed"] == ["log.file"]
        site.sort()
        assert site.daemon.stop() == 0
    assert lines(tmp_path / "a.log") + lines(tmp_path / "b.log") == site.daemon.log.read_text().splitlines()


def test_the_level_can_be_changed_by_a_reload(tmp_path: Path) -> None:
    """From `warning` on, sorted files are no longer told."""
    site = ReloadableDaemon(tmp_path)
    with site.daemon:
        (tmp_path / "config.yaml").write_text(site.base.replace("format: json", "format: json, level: warning"))
        assert site.daemon.process is not None
        site.daemon.process.send_signal(1)
        site.daemon.until(lambda: bool(site.daemon.events("reload.started")))
        time.sleep(waiting.slowness())  # that it was done is told at a level that is no longer written
        (site.daemon.inbox / "a.jpeg").write_bytes(picture(default_rng(200)))
        site.daemon.until(lambda: not os.listdir(site.daemon.inbox))
        assert site.daemon.stop() == 0
    assert site.daemon.events("image.sorted", "reload.done", "daemon.stopped") == []


@pytest.mark.parametrize("place", ["inbox/x.log", "sorted/x.log", "quarantine/deep/x.log"])
def test_a_log_among_the_images_is_refused(tmp_path: Path, place: str) -> None:
    """The daemon would sort its own log."""
    (tmp_path / "config.yaml").write_text(f"log: {{file: {place}}}\n")
    ended = mednet("check-config", "--config", str(tmp_path / "config.yaml"))
    assert (ended.returncode, "log.file: must not lie inside" in ended.stderr) == (3, True)


def test_a_log_that_can_not_be_opened_is_told(tmp_path: Path) -> None:
    """At the start with exit code 5, before anything is touched."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "config.yaml").write_text("log: {file: none/x.log}\n")
    ended = mednet("run", "--config", str(tmp_path / "config.yaml"))
    assert (ended.returncode, "log.file" in ended.stderr) == (5, True)
    assert not (tmp_path / "state").exists()


def test_a_crash_is_one_line_with_its_traceback() -> None:
    """JSON all the same."""
    stream = io.StringIO()
    logger = log.configure("json", "info", stream)
    try:
        raise ValueError("x\ny")
    except ValueError:
        logger.critical("daemon.crashed", exc_info=True)
    [line] = stream.getvalue().splitlines()
    assert "ValueError: x\ny" in json.loads(line)["exception"]


def test_the_catalogue_refuses_what_it_does_not_know() -> None:
    """An unknown event, a missing field, a surplus one and a wrong type are each refused: so it can fail."""
    good = {"event": "inbox.given_back", "level": "info", "timestamp": "2026-11-22T22:10:01.554989Z", "files": 3}
    event_catalogue.check_line(good)
    for bad in ({"event": "inbox.unheard_of"}, {"files": "3"}, {"more": 1}, {"timestamp": "now"}, {"level": "debug"}):
        with pytest.raises(AssertionError):
            event_catalogue.check_line({**good, **bad})
    with pytest.raises(AssertionError):
        event_catalogue.check_line({key: value for key, value in good.items() if key != "files"})


def test_every_event_of_the_source_is_in_the_catalogue() -> None:
    """Every event that the code logs is in the catalogue, and nothing else is."""
    import re

    source = "".join(path.read_text() for path in (TOP / "watcher").rglob("*.py"))
    call = r'(?:(?:\.(?:info|warning|error|critical)|_warn)\(\s*|_notice\("[a-z]+", )'
    logged = set(re.findall(call + r'"([a-z]+\.[a-z_]+)"', source))
    logged |= set(log_lines.EVENTS.values())
    assert logged == set(event_catalogue.catalogue().schema["properties"]["event"]["enum"])


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not there")
def test_logrotate_by_rename_loses_nothing(tmp_path: Path) -> None:
    """The real logrotate while lines are written: each is there once, whole (`make rotate`: a million)."""
    found = prove(tmp_path, 30_000, "create")
    assert (found.lost, found.torn, found.doubled) == (0, 0, 0)
    assert found.rotations >= 1


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not there")
def test_logrotate_by_copytruncate_loses_nothing(tmp_path: Path) -> None:
    """Lines that logrotate does not copy before it cuts are written again: each line is there once, whole."""
    found = prove(tmp_path, 30_000, "copytruncate")
    assert (found.lost, found.torn, found.doubled) == (0, 0, 0)
    assert found.rotations >= 1
