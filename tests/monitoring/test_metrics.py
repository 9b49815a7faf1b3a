"""The metrics add up, and agree with the ledger and the disk."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import waiting
from tests.support.daemon import Daemon, mednet
from tests.support.dropped_files import Producer, check, metrics
from tests.support.waiting import LONGEST_S
from watcher.core.errors import Fatal
from watcher.monitoring import metrics_server
from watcher.monitoring.counters import Histogram
from watcher.monitoring.metrics import Metrics

FAST = "inbox: {settle_s: 0.1, patience_s: 0.3, scan_interval_s: 0.3}\nmetrics: {port: 0}\n"


def test_figures_add_up_over_a_crash(tmp_path: Path) -> None:
    """seen = sorted + review + quarantined + pending, before a kill and after it, and each as on disk."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    producer = Producer(daemon, seed=8)
    with daemon:
        producer.drop(50)
        daemon.until_filed(20)
        daemon.stop(signal.SIGKILL)
        producer.drop(30)
        with daemon.start():
            daemon.until(lambda: not list(daemon.inbox.iterdir()))
            daemon.until(lambda: metrics(daemon)["mednet_files_pending"] == 0)
            told = metrics(daemon)
            assert daemon.stop() == 0
    assert told["mednet_files_seen_total"] == 80
    check(daemon, producer.dropped, told)


def test_pending_and_withdrawn(tmp_path: Path) -> None:
    """A file that waits is pending; one that its producer takes away again is withdrawn, not lost."""
    slow = FAST.replace("patience_s: 0.3", "patience_s: 60")
    with Daemon(tmp_path, slow, stub=True) as daemon:
        (daemon.inbox / "half.jpeg").write_bytes(b"\xff\xd8\xff")
        daemon.until(lambda: metrics(daemon)["mednet_files_pending"] == 1)
        (daemon.inbox / "half.jpeg").unlink()
        daemon.until(lambda: metrics(daemon)["mednet_files_pending"] == 0)
        told = metrics(daemon)
    assert (told["mednet_files_seen_total"], told["mednet_files_withdrawn_total"]) == (1, 1)


def test_an_inbox_that_is_gone_is_told(tmp_path: Path) -> None:
    """mednet_inbox_reachable is 0 while the inbox can not be listed, and 1 again when it is back."""
    with Daemon(tmp_path, FAST, stub=True) as daemon:
        daemon.until(lambda: metrics(daemon)["mednet_inbox_reachable"] == 1)
        daemon.inbox.rename(tmp_path / "away")
        daemon.until(lambda: metrics(daemon)["mednet_inbox_reachable"] == 0)
        (tmp_path / "away").rename(daemon.inbox)
        daemon.until(lambda: metrics(daemon)["mednet_inbox_reachable"] == 1)


def test_a_port_that_is_taken_is_told() -> None:
    """The error says which key to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Fatal, match=r"metrics\.port"):
        Metrics(dict).serve(taken.getsockname()[1], "127.0.0.1")


def test_off_by_default(tmp_path: Path) -> None:
    """Without a port nothing listens, and the log says nothing of metrics."""
    with Daemon(tmp_path, FAST.replace("metrics: {port: 0}\n", ""), stub=True) as daemon:
        assert daemon.events("metrics.serving") == []
        assert daemon.stop() == 0
    assert mednet("check-config", "--config", str(daemon.config)).returncode == 0


def test_times_classes_and_backlog(tmp_path: Path) -> None:
    """Each filed file is once in every histogram of its stages; the backlog is the disk's, also after a restart."""
    daemon = Daemon(tmp_path, FAST, stub=True)
    producer = Producer(daemon, seed=5)
    with daemon:
        assert "mednet_last_filed_timestamp_seconds" not in metrics(daemon)
        producer.drop(40)
        daemon.until_filed(40)
        daemon.until(lambda: metrics(daemon)["mednet_files_pending"] == 0)
        told = metrics(daemon)
        outcomes = Counter((line["class"], line["event"].removeprefix("image.")) for line in daemon.outcomes())
        classified = {key: count for key, count in outcomes.items() if key[0] is not None}
        assert {key: told[f"mednet_files_classified_total,{key[0]},{key[1]}"] for key in classified} == classified
        quarantined = sum(value for name, value in told.items() if name.startswith("mednet_files_quarantined_total"))
        assert quarantined == 40 - sum(classified.values())
        for stage, count in (("total", 40), ("move", 40), ("queue", 40), ("infer", sum(classified.values()))):
            assert told[f"mednet_stage_seconds_count,{stage}"] == count
        assert told["mednet_confidence_count"] == told["mednet_batch_images_sum"] == sum(classified.values())
        assert abs(told["mednet_last_filed_timestamp_seconds"] - time.time()) < 60
        assert told["mednet_disk_free_bytes,inbox"] > 0
        backlog = {place: told[f"mednet_backlog_files,{place}"] for place in ("review", "quarantine")}
        assert backlog["review"] == told["mednet_files_filed_total,review"] > 0
        assert daemon.stop() == 0
        (next((tmp_path / "review").iterdir())).unlink()  # a person has seen to one
        with daemon.start():
            again = metrics(daemon)["mednet_last_filed_timestamp_seconds"]
            assert again == pytest.approx(told["mednet_last_filed_timestamp_seconds"], abs=1)
            assert metrics(daemon)["mednet_backlog_files,review"] == backlog["review"] - 1
            assert metrics(daemon)["mednet_backlog_files,quarantine"] == backlog["quarantine"]


def test_the_oldest_pending_file_has_its_age(tmp_path: Path) -> None:
    """It grows while a file waits, and is 0 when none does."""
    with Daemon(tmp_path, FAST.replace("patience_s: 0.3", "patience_s: 60"), stub=True) as daemon:
        assert metrics(daemon)["mednet_oldest_pending_seconds"] == 0
        (daemon.inbox / "half.jpeg").write_bytes(b"\xff\xd8\xff")
        daemon.until(lambda: metrics(daemon)["mednet_oldest_pending_seconds"] > 1.5)
        (daemon.inbox / "half.jpeg").unlink()
        daemon.until(lambda: metrics(daemon)["mednet_oldest_pending_seconds"] == 0)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not there")
def test_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    """The metrics that the daemon serves pass Prometheus's own linter."""
    with Daemon(tmp_path, FAST, stub=True) as daemon:
        Producer(daemon, seed=1).drop(10)
        daemon.until_filed(10)
        where = daemon.events("metrics.serving")[-1]
        with urllib.request.urlopen(f"http://{where['address']}:{where['port']}/metrics", timeout=LONGEST_S) as answer:
            text = answer.read()
    linted = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=LONGEST_S, check=False
    )
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, b"")


def read(port: int, address: str = "127.0.0.1") -> bytes:
    with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=LONGEST_S) as answer:
        return bytes(answer.read())


class TestServer:
    @pytest.fixture
    def port(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
        monkeypatch.setattr(metrics_server._Handler, "timeout", 1.0)
        monkeypatch.setattr(metrics_server._Server, "request_queue_size", 64)  # so that no connection is held up
        port, stop = Metrics(dict).serve(0, "127.0.0.1")
        yield port
        stop()

    def test_silent_clients_cost_few_threads_and_not_for_long(self, port: int) -> None:
        """Fifty that connect and say nothing take no more than a few threads; soon others are answered again."""
        before = threading.active_count()
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        waiting.until(lambda: threading.active_count() > before)
        for _ in range(10):
            assert threading.active_count() - before <= metrics_server.MAX_CLIENTS
            time.sleep(0.02)
        waiting.until(lambda: threading.active_count() <= before)
        assert b"mednet_watcher_info" in read(port)
        waiting.until(lambda: threading.active_count() <= before)
        for each in silent:
            each.close()

    def test_one_who_does_not_read_the_answer(self, port: int, capfd: pytest.CaptureFixture[str]) -> None:
        """Neither he nor one who breaks off, or talks nonsense, leaves a word or a thread."""
        for said in (b"GET /metrics HTTP/1.0\r\n\r\n", b"rubbish\r\n\r\n", b"\0" * 70_000):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(said)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        time.sleep(0.5)
        assert b"mednet_watcher_info" in read(port)
        assert capfd.readouterr() == ("", "")

    def test_ipv6(self) -> None:
        """Metrics are served at an IPv6 address."""
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
        port, stop = Metrics(dict).serve(0, "::1")
        assert b"mednet_watcher_info" in read(port, "[::1]")
        stop()

    def test_a_name_that_is_none(self) -> None:
        """An address that can not be resolved is the operator's mistake, told as such."""
        with pytest.raises(Fatal, match="can not be served at nowhere"):
            Metrics(dict).serve(0, "nowhere.invalid")


def test_histogram_bounds() -> None:
    """A value at a bound counts below it; beyond all bounds it counts in +Inf alone."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert list(histogram.buckets()) == [("1", 2), ("2", 3), ("+Inf", 4)]
    assert histogram.sum == 12.0
