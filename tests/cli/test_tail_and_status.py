"""``tail`` and ``status``: what a person on call asks first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from numpy.random import default_rng

from tests.support import waiting
from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import picture
from tests.support.repository import TOP
from watcher.cli import daemon_state, main
from watcher.cli.commands import status
from watcher.config import loader
from watcher.core.errors import Exit, Fatal
from watcher.core.records import Decision, Ending, Identity, MoveOrder, Outcome, Timing
from watcher.filing import destinations
from watcher.filing.destinations import Destinations
from watcher.ledger import status_counts
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger
from watcher.service.doctor import program_checks

FILE = {
    "event": "image.review", "level": "warning", "timestamp": "2026-11-22T22:10:01.554989Z", "name": "a\\x1b.jpeg",
    "class": "CXR", "confidence": 0.61, "reason": "low_confidence", "destination": "/r/a.jpeg", "total_ms": 48.2,
    "id": 1, "batch": 1, "digest": None, "runner_up": "Hand", "detail": None, "model": None, "device": "cpu",
    "queue_ms": 1, "decode_ms": 1, "infer_ms": 1, "move_ms": 1,
}  # fmt: skip
TROUBLE = {"event": "filing.failed", "level": "error", "timestamp": "2026-11-22T22:11:01Z", "detail": "\x1b[2Jfull"}
SORTED = {**FILE, "event": "image.sorted", "level": "info", "class": "Hand", "reason": None, "name": "b.jpeg"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.log"
    lines = [json.dumps(FILE), json.dumps(TROUBLE), "Fatal Python error: Aborted", json.dumps(SORTED)]
    path.write_text("\n".join(lines) + "\n")
    return path


def shown(*words: str) -> list[str]:
    ended = mednet("tail", *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_for_people(file: Path) -> None:
    """A line for each, safe for any terminal; what is no log line is shown as it is."""
    first, second, third, fourth = shown(str(file))
    assert all(
        word in first for word in ("review", "CXR 0.6100", "low_confidence", "a\\x1b.jpeg -> /r/a.jpeg", "48 ms")
    )
    assert "filing.failed" in second
    assert "\x1b" not in second
    assert third == "Fatal Python error: Aborted"
    assert "sorted" in fourth


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--event", "image.*"], 2),
        (["--event", "image.sorted", "--event", "filing.failed"], 2),
        (["--level", "warning"], 2),
        (["--level", "error"], 1),
        (["--class", "Hand"], 1),
        (["--reason", "low_confidence"], 1),
        (["--name", "b*"], 1),
        (["-n", "1"], 1),
        ([], 4),
    ],
)
def test_filters(file: Path, words: list[str], count: int) -> None:
    """Each leaves what was asked for, and all of them together narrow it."""
    assert len(shown(str(file), *words)) == count


def test_nothing_found_is_told(file: Path) -> None:
    """If no line passes the filters, because a class is misspelt for example, that is told beside the output."""
    ended = mednet("tail", str(file), "--class", "Nose")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr == f"No line of {file} matches the options.\n"
    assert mednet("tail", str(file), "--class", "CXR").stderr == ""


def test_json_stays_json(file: Path) -> None:
    """For other programs: the lines as they were."""
    assert [json.loads(line) for line in shown(str(file), "--json", "--event", "image.*")] == [FILE, SORTED]


def test_from_a_pipe() -> None:
    """As from journalctl -o cat."""
    command = [sys.executable, "-m", "watcher", "tail", "-"]
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    ended = subprocess.run(command, input=json.dumps(FILE), capture_output=True, text=True, env=environ, check=True)
    assert "low_confidence" in ended.stdout


def test_following_over_rotations(tmp_path: Path) -> None:
    """-f shows every line that comes, also after the file was moved away, or copied and cut."""
    path = tmp_path / "x.log"
    path.write_text("0\n")
    command = [sys.executable, "-m", "watcher", "tail", "-f", str(path)]
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        with path.open("a") as file:
            file.write("1\n")
        assert process.stdout.readline() == "1\n"
        path.rename(tmp_path / "x.log.1")
        path.write_text("2\n")
        assert process.stdout.readline() == "2\n"
        path.write_text("3\n" * 2)
        time.sleep(waiting.slowness())
        os.truncate(path, 0)
        time.sleep(waiting.slowness())
        with path.open("a") as file:
            file.write("4\n")
        assert [process.stdout.readline() for _ in range(2)] == ["3\n", "4\n"]
        process.terminate()


def test_without_a_log_file(tmp_path: Path) -> None:
    """It says where else to look."""
    (tmp_path / "config.yaml").touch()
    ended = mednet("tail", cwd=tmp_path)
    assert (ended.returncode, "journalctl" in ended.stderr) == (2, True)


@pytest.mark.parametrize(("name", "told"), [("typo.log", "No such file"), (".", "Is a directory")])
def test_what_is_no_log_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    """A typo or a directory: exit code 5 and what is wrong with it, no traceback."""
    monkeypatch.chdir(tmp_path)
    assert main.main(["tail", name]) == Exit.DIRECTORY
    assert told in capsys.readouterr().err


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[loader.Config]:
    """The settings of a daemon whose state directory this process may not enter."""
    (tmp_path / "config.yaml").touch()
    (tmp_path / "inbox").mkdir()
    (tmp_path / "state").mkdir(mode=0)
    settings = loader.load(tmp_path / "config.yaml", {})
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    yield settings
    os.seteuid(user)
    (tmp_path / "state").chmod(0o700)


def test_who_may_not_look_is_not_told_that_nothing_runs(closed: loader.Config) -> None:
    """Another user's state can not be read: an error with what to do, never a wrong answer."""
    with pytest.raises(Fatal, match="can not be entered") as told:
        daemon_state.collect(closed)
    assert (told.value.code, "root" in told.value.advice) == (Exit.DIRECTORY, True)
    assert program_checks.ledger(closed.state.path / "ledger.sqlite3").state == "fail"
    with pytest.raises(Fatal, match="can not be entered"):
        LedgerReader(closed.state.path / "ledger.sqlite3")


def test_a_place_that_can_not_be_listed_is_not_empty(tmp_path: Path) -> None:
    """Review may hold thousands for all that is known: so it says, and no metric says 0."""
    where = Destinations(tmp_path / "sorted", tmp_path / "away", tmp_path, tmp_path / "rejected")
    (tmp_path / "a.jpeg").touch()
    counts = destinations.backlog(where)
    assert counts == {"review": None, "quarantine": 1}
    assert status.backlog_text(counts) == "review can not be listed, quarantine 1"
    assert status.backlog_text({"review": 0, "quarantine": 0}) == "nothing"


def test_counts_today_and_all_time(tmp_path: Path) -> None:
    """Files filed before midnight, local time, do not count as today's."""
    yesterday = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(seconds=1)
    times = iter([yesterday.astimezone(UTC)] * 2 + [datetime.now(UTC)] * 9)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "inbox").mkdir()
    (tmp_path / "state").mkdir()
    book = Ledger(tmp_path / "state" / "ledger.sqlite3", lambda: next(times))
    for outcome in (Outcome.SORTED, Outcome.REVIEW):
        order = MoveOrder("a", Identity(1, 2, 3, 4), "d", Decision(outcome, "Hand", 0.9), Timing(0.0))
        with book.transaction():
            [number] = book.record_decisions([order], [str(tmp_path)], None, tmp_path / "inbox")
        book.record_endings([Ending(number, "filed", "/x/a")])
    book.close()
    ended = mednet("status", "--json", cwd=tmp_path)
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["running"]) == (1, False)
    assert (told["today"], told["total"]) == ({"review": 1}, {"review": 1, "sorted": 1})


def status_of(daemon: Daemon) -> dict[str, object]:
    return dict(json.loads(mednet("status", "--json", "--config", str(daemon.config)).stdout))


def test_status_while_it_runs_and_after(tmp_path: Path) -> None:
    """Backlog, the oldest pending file, the last error and the space left; also of a daemon that is gone."""
    fast = "inbox: {settle_s: 0.1, patience_s: 60, scan_interval_s: 0.3}\n"
    with Daemon(tmp_path, fast, stub=True) as daemon:
        (daemon.inbox / "good.jpeg").write_bytes(picture(default_rng(200)))
        daemon.until_filed(1)
        (daemon.inbox / "half.jpeg").write_bytes(b"\xff\xd8\xff")
        (tmp_path / "review" / "old.jpeg").touch()
        (tmp_path / "quarantine" / "x.reason.json").touch()
        time.sleep(1.1)
        daemon.until(lambda: status_of(daemon)["waiting"] == 1)
        told = status_of(daemon)
        assert (told["running"], told["waiting"], told["last_error"]) == (True, 1, None)
        assert told["backlog"] == {"review": 1, "quarantine": 0}
        assert told["oldest_pending_s"] > 1
        assert told["disk_free_bytes"]["inbox"] > 0
        daemon.inbox.rename(tmp_path / "away")
        daemon.until(lambda: bool(daemon.events("inbox.unreachable")))
        (tmp_path / "away").rename(daemon.inbox)
        assert daemon.stop() == 0
    ended = mednet("status", "--config", str(daemon.config))
    assert ended.returncode == 1
    assert "inbox.unreachable" in ended.stdout
    assert "backlog     review 1" in ended.stdout


ERROR = {"timestamp": "2026-03-01T12:00:00.000000Z", "event": "filing.failed", "detail": "the disk is full"}


class TestTheLastError:
    """It is told with its age, and whether things went well again since."""

    def told(self, *, started: str | None = None, worked: str | None = None) -> str:
        daemon = {"started_at": started} if started else None
        now = datetime(2026, 3, 1, 15, 0, tzinfo=UTC)
        return status.last_error_text(daemon_state.last_error(ERROR, daemon, worked, now))

    def test_a_present_one(self) -> None:
        """Work and starts before the error do not count as signs that it is over."""
        for since in (None, "2026-03-01T11:59:59.000+00:00"):
            told = self.told(started=since, worked=since)
            assert told == "3h ago, 2026-03-01T12:00:00.000000Z  filing.failed  the disk is full; no file done since"

    def test_one_that_is_over(self) -> None:
        """A file done since, or a daemon started since, is said first: the error is no present state."""
        told = self.told(started="2026-03-01T12:30:00.000+00:00", worked="2026-03-01T14:00:00.000+00:00")
        assert told.startswith("over, 3h ago, 2026-03-01T12:00:00.000000Z  filing.failed  the disk is full; ")
        assert told.endswith("work went on since, the last at 2026-03-01T14:00:00.000+00:00")
        told = self.told(started="2026-03-01T12:30:00.000+00:00")
        assert told.startswith("over, 3h ago")
        assert told.endswith("the daemon was started since, at 2026-03-01T12:30:00.000+00:00")

    def test_a_config_that_was_refused(self) -> None:
        """The files that the old config went on with do not make it good: the next start would fail still."""
        refused = {**ERROR, "event": "reload.refused"}
        later, now = "2026-03-01T14:00:00.000+00:00", datetime(2026, 3, 1, 15, 0, tzinfo=UTC)
        for facts, told in (
            ({}, "; no config taken since"),
            ({"reloaded_at": "2026-03-01T11:00:00+00:00"}, "; no config taken since"),
            ({"reloaded_at": later}, f"; the config was taken since, at {later}"),
            ({"started_at": later}, f"; the daemon was started since, at {later}"),
        ):
            text = status.last_error_text(daemon_state.last_error(refused, facts, later, now))
            assert text.endswith(told), text
            assert text.startswith("over") is ("no config" not in told)

    def test_none(self) -> None:
        """If no error was ever logged, that is said; a damaged time stamp hides no error."""
        assert status.last_error_text(daemon_state.last_error(None, None, None, datetime.now(UTC))) == "none"
        odd = daemon_state.last_error({**ERROR, "timestamp": "?"}, None, None, datetime.now(UTC))
        assert "filing.failed" in status.last_error_text(odd)

    def test_what_counts_as_work(self, tmp_path: Path) -> None:
        """Files that the daemon filed, or recorded in shadow mode, count as work; files that were put back do not."""
        path, times = tmp_path / "ledger", iter(range(9))
        book = Ledger(path, clock=lambda: datetime(2026, 3, 1, 12, next(times), tzinfo=UTC))
        sure, back = Decision(Outcome.SORTED, "Hand", 0.9), Decision(Outcome.RESTORED, None, 0.0, "undo")
        expected = []
        for decision, state in ((sure, "filed"), (sure, "shadowed"), (sure, "returned"), (back, "filed")):
            order = MoveOrder("a", Identity(1, 2, 3, 4), "d" * 64, decision, Timing(0.0))
            with book.transaction():
                [number] = book.record_decisions([order], ["/x"], "m")
            book.record_endings([Ending(number, state, "/x/a" if state == "filed" else None)])
            expected.append(status_counts.count_for_status(path, datetime.now(UTC)))
        book.close()
        assert [str(tally.last_work_at)[14:16] for tally in expected] == ["01", "03", "03", "03"]
        assert [str(tally.last_filed_at)[14:16] for tally in expected] == ["01", "01", "01", "01"]
