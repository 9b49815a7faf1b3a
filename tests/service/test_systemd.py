"""The daemon, as a real process, tells the service manager, for which a socket stands, how it is."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from numpy.random import default_rng

from tests.support import waiting
from tests.support.daemon import Daemon
from tests.support.dropped_files import picture
from tests.support.service_manager import ServiceManager
from tests.support.waiting import LONGEST_S
from watcher.service import systemd

FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\n"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def daemon(root: Path, manager: ServiceManager, **environ: str) -> Daemon:
    made = Daemon(root, FAST, stub=True)
    made.environ = {**manager.environ, **environ}
    return made


def drop(daemon: Daemon, name: str = "a.jpeg") -> None:
    (daemon.inbox / name).write_bytes(picture(default_rng(1)))


@pytest.mark.parametrize("abstract", [False, True])
def test_from_start_to_stop(tmp_path: Path, abstract: bool) -> None:
    """READY only when the model is loaded and the inbox watched, then figures, at last STOPPING; also abstract."""
    manager = ServiceManager(f"@mednet-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    (tmp_path / "hang").touch()
    started = daemon(tmp_path, manager, STUB_HANG_LOAD=str(tmp_path / "hang")).start(wait=False)
    with started:
        started.until(lambda: "STATUS=starting" in manager.hear())
        time.sleep(0.5)
        assert manager.heard == ["STATUS=starting"]
        (tmp_path / "hang").unlink()
        started.until(lambda: "READY=1" in manager.hear())
        drop(started)
        started.until_filed(1)
        started.until(lambda: any(told.startswith("STATUS=1 sorted, 0 review") for told in manager.hear()))
        assert started.stop() == 0
    assert manager.hear()[-1] == "STOPPING=1"
    assert manager.count("STOPPING=1") == manager.count("READY=1") == 1
    manager.socket.close()


def test_a_failed_start_is_never_ready(tmp_path: Path, manager: ServiceManager) -> None:
    """Without its inbox the daemon ends, and was not ready; STATUS says why."""
    started = daemon(tmp_path, manager)
    started.inbox.rmdir()
    started.start(wait=False)
    assert started.process is not None
    assert started.process.wait(timeout=LONGEST_S) == 5
    first, last = manager.hear()
    assert (first, last.startswith("STATUS=failed: "), str(started.inbox) in last) == ("STATUS=starting", True, True)


def test_an_idle_inbox_feeds_the_watchdog(tmp_path: Path, manager: ServiceManager) -> None:
    """With nothing to do the watchdog is fed in time, also when scans are far apart."""
    started = daemon(tmp_path, manager, STUB_LIMIT_S=str(0.2 * waiting.slowness()))
    started.config.write_text(started.config.read_text().replace("scan_interval_s: 0.3", "scan_interval_s: 3600"))
    with started:
        assert manager.longest_silence_s(3 * manager.watchdog_s) < manager.watchdog_s
        assert started.events("daemon.stuck") == []


def test_slow_work_feeds_the_watchdog(tmp_path: Path, manager: ServiceManager) -> None:
    """A backlog that takes far longer than a station's limit is no reason to bite: each batch gets done."""
    slowness = waiting.slowness()
    started = daemon(tmp_path, manager, STUB_LIMIT_S=str(slowness), STUB_INFER_S=str(0.5 * slowness))
    started.config.write_text(started.config.read_text() + "batch: {size: 1}\n")
    with started:
        for number in range(6):
            drop(started, f"{number}.jpeg")
        assert manager.longest_silence_s(3 * slowness) < manager.watchdog_s
        started.until_filed(6)
        assert started.events("daemon.stuck") == []


def hung_network(root: Path, started: Daemon) -> Callable[[], None]:
    (root / "hang").touch()
    drop(started)
    return (root / "hang").unlink


def hung_ledger(root: Path, started: Daemon) -> Callable[[], None]:
    ledger = sqlite3.connect(root / "state" / "ledger.sqlite3", isolation_level=None)
    ledger.execute("begin exclusive")
    drop(started)
    return ledger.close


# The thread of the ledger files, takes over what the dead have left and looks for verdicts: one of them is stuck.
@pytest.mark.parametrize(
    ("hang", "stations"),
    [(hung_network, {"classify"}), (hung_ledger, {"filing", "takeover", "verdicts"})],
    ids=["network", "ledger"],
)
def test_a_stuck_station_starves_the_watchdog(
    tmp_path: Path, manager: ServiceManager, hang: Callable[[Path, Daemon], Callable[[], None]], stations: set[str]
) -> None:
    """While the loop turns but one station hangs, the watchdog is not fed, the log and STATUS say which it is.

    When it gets on after all, so does the feeding.
    """
    hang_file = str(tmp_path / "hang")
    with daemon(tmp_path, manager, STUB_LIMIT_S=str(waiting.slowness()), STUB_HANG_NETWORK=hang_file) as started:
        drop(started, "first.jpeg")  # so that the decoder has started, and is not the one that is stuck
        started.until_filed(1)
        release = hang(tmp_path, started)
        started.until(lambda: bool(started.events("daemon.stuck")))
        [told] = started.events("daemon.stuck")
        assert (told["owes"], told["level"]) == (1, "critical")
        assert told["station"] in stations
        fed = manager.count("WATCHDOG=1")
        assert manager.longest_silence_s(1.5 * manager.watchdog_s) > 1.4 * manager.watchdog_s
        assert manager.count("WATCHDOG=1") == fed
        assert manager.hear()[-1] == f"STATUS={told['station']} is stuck"
        release()
        started.until_filed(2)
        started.until(lambda: manager.count("WATCHDOG=1") > fed)
        assert len(started.events("daemon.unstuck")) == 1


def test_a_hung_loop_starves_the_watchdog(tmp_path: Path, manager: ServiceManager) -> None:
    """A file system that does not answer holds the loop itself: nobody feeds the watchdog.

    What systemd then sends tells on standard error where each thread is.
    """
    with daemon(tmp_path, manager, STUB_HANG_LOOK=str(tmp_path / "hang")) as started:
        (tmp_path / "hang").touch()
        os.link(started.config, started.inbox / "a.jpeg")  # gives no event, so the scan finds it and looks
        time.sleep(2 * manager.watchdog_s)
        assert manager.longest_silence_s(1.5 * manager.watchdog_s) > 1.4 * manager.watchdog_s
        assert started.stop(signal.SIGABRT) == -signal.SIGABRT
    assert "in identify" in started.log.read_text()


def test_a_stopped_decoder_is_replaced(tmp_path: Path, manager: ServiceManager) -> None:
    """A decoder that hangs is no reason to bite: the pool ends it, and its file is tried again."""
    slowness = waiting.slowness()
    started = daemon(tmp_path, manager, STUB_LIMIT_S=str(3 * slowness))
    started.config.write_text(started.config.read_text() + f"decode: {{timeout_s: {slowness}}}\n")
    with started:
        drop(started, "first.jpeg")
        started.until_filed(1)
        assert started.process is not None
        [child] = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGSTOP)
        drop(started)
        assert manager.longest_silence_s(3 * slowness) < manager.watchdog_s
        started.until_filed(2)
        assert started.outcomes()[1]["class"] is not None
        assert started.events("daemon.stuck") == []


def test_nobody_to_tell(tmp_path: Path) -> None:
    """Without a manager, with one that is gone, or for another process, nothing is sent and nothing fails."""
    systemd.SystemdNotifier(None).ready()
    systemd.SystemdNotifier(str(tmp_path / "gone")).ready()
    environ = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid() + 1), "NOTIFY_SOCKET": "/x"}
    assert systemd.from_environment(environ).watchdog_s is None
    assert environ == {}
    assert systemd.from_environment({"WATCHDOG_USEC": "1500000"}).watchdog_s == 1.5


def test_reloading_has_the_time(manager: ServiceManager) -> None:
    """RELOADING=1 comes in one message with the monotonic time in microseconds, as systemd asks."""
    before = time.monotonic_ns() // 1000
    systemd.SystemdNotifier(manager.environ["NOTIFY_SOCKET"]).reloading()
    first, second = manager.hear()[0].split("\n")
    key, _, value = second.partition("=")
    assert (first, key) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_a_status_is_one_line(manager: ServiceManager) -> None:
    """No text becomes a second message."""
    systemd.SystemdNotifier(manager.environ["NOTIFY_SOCKET"]).status("a\nREADY=1")
    assert manager.hear() == ["STATUS=a READY=1"]
