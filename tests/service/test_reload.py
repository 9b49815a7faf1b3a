"""SIGHUP: the config read anew, whole or not at all, while files keep coming."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Sampler, digest
from tests.support.dicom_files import SHADE, dicom
from tests.support.dropped_files import Producer, check, metrics
from tests.support.reloadable_daemon import ReloadableDaemon
from tests.support.service_manager import ServiceManager
from tests.support.waiting import LONGEST_S
from watcher.config import settings
from watcher.core import shipped_files
from watcher.core.errors import Reject
from watcher.images import decode
from watcher.model import checkpoint
from watcher.service import reload


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that are not those shipped."""
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    checkpoint.save(replace(checkpoint.load(shipped_files.weights()), name="other"), path)
    return path


def test_a_change_applies_to_what_comes_next(tmp_path: Path) -> None:
    """Another directory, threshold or decoder limit counts from the next file on, in the same process."""
    site = ReloadableDaemon(tmp_path)
    with site.daemon:
        assert site.sort()["event"] == "image.sorted"
        told = site.reload(site.base + "review: {min_confidence: 1}\noutput: {review: elsewhere}\n")
        assert (told["event"], told["changed"]) == ("reload.done", ["output.review", "review.min_confidence"])
        assert Path(str(site.sort()["destination"])).parent == tmp_path / "elsewhere"
        assert site.reload(site.base + "decode: {max_bytes: 100}\n")["changed"] == [
            "output.review",
            "decode.max_bytes",
            "review.min_confidence",
        ]
        assert site.sort()["reason"] == "too_large"
        assert site.daemon.stop() == 0
    assert len(site.daemon.events("daemon.starting")) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("batch: {sise: 3}\n", "did you mean `size`"),
        ("model: {weights: none.safetensors}\n", "does not exist"),
        ("state: {path: state2}\n", "state.path can not change while the daemon runs"),
        ("output: {quarantine: blocked}\n", "blocked can not be made"),
    ],
)
def test_a_bad_config_leaves_the_old_in_force(tmp_path: Path, wrong: str, told: str) -> None:
    """The log says what is wrong, and nothing of the new config applies, not even what is right in it."""
    site = ReloadableDaemon(tmp_path)
    (tmp_path / "blocked").touch()
    with site.daemon:
        answer = site.reload(site.base + "review: {min_confidence: 1}\n" + wrong)
        assert (answer["event"], answer["level"]) == ("reload.refused", "error")
        assert told in str(answer["problem"])
        line = site.sort()
        assert (line["event"], line["reason"]) == ("image.sorted", None)
        assert site.reload(site.base)["changed"] == []
        assert site.daemon.stop() == 0


def test_names_change_and_the_inbox_does_not(tmp_path: Path) -> None:
    """The names of DICOM files are others from the next one on; whether directories are sorted needs a restart."""
    site = ReloadableDaemon(tmp_path)
    with site.daemon:
        answer = site.reload(site.base.replace("{settle_s", "{recursive: true, settle_s"))
        assert str(answer["problem"]) == "inbox.recursive can not change while the daemon runs"
        answer = site.reload(site.base + 'output: {dicom_name: "{Modality}"}\n')
        assert (answer["event"], answer["changed"]) == ("reload.done", ["output.dicom_name"])
        (tmp_path / "a").write_bytes(dicom((SHADE // 8).astype("uint8")))
        (tmp_path / "a").rename(site.daemon.inbox / "a")
        site.daemon.until_filed(1)
        assert Path(site.daemon.outcomes()[0]["destination"]).name == "unknown.dcm"
        assert site.daemon.stop() == 0


def test_systemd_hears_of_it(tmp_path: Path, other: Path) -> None:
    """RELOADING=1 with its time, then READY=1: after a good reload and after a refused one, of which STATUS tells.

    So does a metric: the next start would fail.
    """
    manager = ServiceManager(str(tmp_path / "notify"))
    site = ReloadableDaemon(tmp_path, "metrics: {port: 0}\n")
    site.daemon.environ = manager.environ
    with site.daemon:
        successful = "mednet_config_last_reload_successful"
        assert metrics(site.daemon)[successful] == 1
        site.reload(site.base + f"model: {{weights: {other}}}\n")
        site.reload("nonsense: {}\n")
        site.daemon.until(lambda: manager.count("READY=1") == 3)
        assert metrics(site.daemon)[successful] == 0
        refused = "; the config on disk was refused"
        site.daemon.until(lambda: any(word.endswith(refused) for word in manager.hear()))
        site.reload(site.base)
        assert metrics(site.daemon)[successful] == 1
        site.daemon.until(lambda: manager.count("READY=1") == 4 and not manager.heard[-1].endswith(refused))
    told = [word.split("\n")[0] for word in manager.hear() if word.startswith(("READY", "RELOADING"))]
    assert told == ["READY=1", *["RELOADING=1", "READY=1"] * 3]
    manager.socket.close()


def test_weights_replaced_in_place(tmp_path: Path, other: Path) -> None:
    """A weights file with other bytes is a change: the next file is classified, and recorded, by the new model."""
    shutil.copy(shipped_files.weights(), tmp_path / "w.safetensors")
    site = ReloadableDaemon(tmp_path, "model: {weights: w.safetensors}\n")
    with site.daemon:
        before = site.sort()
        shutil.copy(other, tmp_path / "w.safetensors")
        assert site.reload(site.base)["model"] == checkpoint.load(other).digest
        after = site.sort()
    assert (before["model"], after["model"]) == (
        checkpoint.load(shipped_files.weights()).digest,
        checkpoint.load(other).digest,
    )
    assert before["class"] != after["class"]


def test_asked_before_it_is_ready(tmp_path: Path) -> None:
    """A SIGHUP during the start is carried out as soon as it has started."""
    site = ReloadableDaemon(tmp_path)
    (tmp_path / "hang").touch()
    site.daemon.environ["STUB_HANG_LOAD"] = str(tmp_path / "hang")
    with site.daemon.start(wait=False) as daemon:
        daemon.until(lambda: bool(daemon.events("daemon.starting")))
        time.sleep(0.3)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        (tmp_path / "hang").unlink()
        daemon.until(lambda: bool(daemon.events("reload.done")))
        assert daemon.stop() == 0


def test_stopped_while_it_loads(tmp_path: Path, other: Path) -> None:
    """A SIGTERM in the middle of a reload ends the daemon as ever; what was being made is not used."""
    site = ReloadableDaemon(tmp_path)
    site.daemon.environ["STUB_HANG_LOAD"] = str(tmp_path / "hang")
    with site.daemon as daemon:
        (tmp_path / "hang").touch()
        daemon.config.write_text(site.base + f"model: {{weights: {other}}}\ndecode: {{timeout_s: 9}}\n")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: bool(daemon.events("reload.started")))
        daemon.process.send_signal(signal.SIGTERM)
        daemon.until(lambda: bool(daemon.events("daemon.stopping")))
        (tmp_path / "hang").unlink()
        assert daemon.process.wait(timeout=LONGEST_S) == 0
    assert daemon.events("reload.done", "daemon.failed", "daemon.crashed") == []


def test_an_error_that_nobody_foresaw_refuses_the_reload(tmp_path: Path, other: Path) -> None:
    """After any error while something new is made, the old config stays in force, and sorting goes on."""
    site = ReloadableDaemon(tmp_path)
    site.daemon.environ["STUB_FAIL_LOAD"] = str(tmp_path / "fail")
    with site.daemon:
        (tmp_path / "fail").touch()
        told = site.reload(site.base + f"model: {{weights: {other}}}\n")
        assert (told["event"], told["problem"]) == ("reload.refused", "KeyError: 'nobody foresaw this'")
        assert site.sort()["event"] == "image.sorted"
        (tmp_path / "fail").unlink()
        assert site.reload(site.base + f"model: {{weights: {other}}}\n")["event"] == "reload.done"
        assert site.daemon.stop() == 0


@pytest.mark.parametrize("shared", [False, True])
def test_many_reloads_while_files_stream_in(tmp_path: Path, other: Path, shared: bool) -> None:
    """Good and bad configs, other weights, limits and batches, by dozens of SIGHUPs under load: no file is lost.

    Each was classified by the very model that its decision names.
    """
    site = ReloadableDaemon(tmp_path)
    base = site.base.replace("settle_s", "shared: true, settle_s") if shared else site.base
    site.daemon.config.write_text(base)
    producer, chance, greys = Producer(site.daemon, seed=3), random.Random(3), {}
    changes = [
        "",
        f"model: {{weights: {other}}}\n",
        f"model: {{weights: {other}}}\nbatch: {{size: 3, max_wait_ms: 200}}\ndecode: {{timeout_s: 9}}\n",
        "decode: {max_pixels: 5000}\nbatch: {size: 200}\n",
        "inbox: {path: elsewhere}\n",
        "model: {weights: nowhere}\n",
    ]
    hangups = 40

    def empty() -> bool:
        return not any(path.is_file() and path.name != "id" for path in site.daemon.inbox.rglob("*"))

    with site.daemon:
        assert site.daemon.process is not None
        for _ in range(hangups):
            more = chance.choice(changes)
            text = base if "inbox" not in more else base.replace("{", "{path: elsewhere, ", 1)
            (tmp_path / "config.new").write_text(text + ("" if "inbox" in more else more))
            os.replace(tmp_path / "config.new", site.daemon.config)
            site.daemon.process.send_signal(signal.SIGHUP)
            producer.drop(25)
            time.sleep(chance.uniform(0, 0.08))
        for more in changes[:2]:  # on a busy machine the storm may pass between two reloads: each model has its turn
            site.daemon.config.write_text(base + more)
            before = len(site.daemon.events("reload.done"))
            site.daemon.process.send_signal(signal.SIGHUP)
            site.daemon.until(lambda before=before: len(site.daemon.events("reload.done")) > before)
            producer.drop(5)
            site.daemon.until(empty)
        assert site.daemon.stop() == 0
    check(site.daemon, producer.dropped)
    done = site.daemon.events("reload.done")
    assert len({line["model"] for line in done}) == 2
    assert site.daemon.events("reload.refused")
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "ledger.sqlite3")) as ledger:
        rows = ledger.execute("select digest, class, model from decision where class is not null").fetchall()
    for key, label, model in rows:
        greys.setdefault(key, {})[model] = label
    classes = list(checkpoint.load(other).classes)
    levels = _levels(site.daemon)
    for key, by_model in greys.items():
        for model, label in by_model.items():
            shift = model == checkpoint.load(other).digest
            assert label == classes[(levels[key] + shift) % 6]
    assert {model for _, _, model in rows} == {line["model"] for line in done}


def _levels(daemon: Daemon) -> dict[str, int]:
    """Of every image on disk, by digest, the class that the stand-in network reads from its brightness."""
    found = {}
    for path in (path for place in daemon.places for path in place.rglob("*.jpeg")):
        data = path.read_bytes()
        with contextlib.suppress(Reject):
            found[digest(data)] = int(decode.grey64(data).mean() / 256 * 6)
    return found


def test_whatever_concerns_the_network_makes_it_anew() -> None:
    """Every setting of the model, besides the weights (told by their digest), and the batch size."""
    own = {f"model.{name}" for name in settings.Model.model_fields if name != "weights"}
    assert own | {"batch.size"} == reload.NETWORK


def test_with_the_real_network(tmp_path: Path) -> None:
    """The shipped network and another threshold beside it: swapped without a restart, and sorting goes on."""
    sampler, path = Sampler(), tmp_path / "strict.safetensors"
    shipped = checkpoint.load(shipped_files.weights())
    strict = checkpoint.save(replace(shipped, thresholds={**shipped.thresholds, "min_confidence": 1.0}), path)
    with Daemon(tmp_path) as daemon:
        (daemon.inbox / "a.jpeg").write_bytes(sampler.jpeg("Hand"))
        daemon.until_filed(1)
        site = ReloadableDaemon(tmp_path, daemon=daemon)
        base = daemon.config.read_text()
        assert "CUDA" in str(site.reload(base + "model: {device: cuda}\n").get("problem", "CUDA is there"))
        checkpoint.save(replace(shipped, classes=shipped.classes[:5]), tmp_path / "five.safetensors")
        told = site.reload(base + "model: {weights: five.safetensors}\n")
        assert (told["event"], "results for 5 classes" in str(told["problem"])) == ("reload.refused", True)
        assert site.reload(base + "model: {weights: strict.safetensors}\n")["model"] == strict.digest
        (daemon.inbox / "b.jpeg").write_bytes(sampler.jpeg("Hand"))
        daemon.until_filed(2)
        assert daemon.stop() == 0
    first, second = daemon.outcomes()
    assert (first["event"], first["model"]) == ("image.sorted", shipped.digest)
    assert (second["event"], second["reason"], second["model"]) == ("image.review", "low_confidence", strict.digest)
