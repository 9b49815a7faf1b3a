"""What Prometheus reads: it adds up, and agrees with the ledger and the disk."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from accounts import Producer, check, metrics
from harness import Daemon, mednet

from watcher.errors import Fatal
from watcher.metrics import Metrics

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
