"""Every backend gives the same answers, and the one that is asked for computes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.repository import TOP
from watcher.config import settings
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.images import decode
from watcher.model import backends, checkpoint, classifier, mednet, onednn_backend, onnx_backend
from watcher.model.mednet import MedNetConfig
from watcher.service import load_model

CPU = torch.device("cpu")
POOLED = MedNetConfig(filters=(4, 8, 12), kernels=(5, 5, 3), pool=2, batch_norm=False, hidden=(20, 10))
"""Of the form that is shipped, smaller."""
KINDS = {
    "baseline": mednet.BASELINE,
    "improved": mednet.IMPROVED,
    "compressed": replace(mednet.IMPROVED, batch_norm=False, rank=8),
    "plus": mednet.PLUS,
    "pooled": POOLED,
    "general": replace(POOLED, classes=7, none=True, dropout=0.2),
}


def wanted(runtime: backends.Runtime) -> backends.Runtime:
    """It, where it is installed."""
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    return runtime


@pytest.fixture
def without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what import finds where it is not installed


def net_of(config: MedNetConfig) -> mednet.MedNet:
    torch.manual_seed(3)
    net = mednet.MedNet(config).eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as after a training
            layer.running_mean = torch.randn(layer.num_features) / 4
            layer.running_var = torch.rand(layer.num_features) + 0.5
    return net


def images(count: int) -> np.ndarray:
    grey = np.random.default_rng(count).integers(0, 256, (count, decode.SIDE, decode.SIDE), dtype=np.uint8)
    return decode.standardise(grey)


def plain(net: mednet.MedNet, batch: np.ndarray) -> mednet.Scores:
    with torch.inference_mode():
        return net(torch.from_numpy(batch))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@pytest.mark.parametrize("count", [1, 5, 130])
def test_answers_are_those_of_the_network(kind: str, runtime: backends.Runtime, count: int) -> None:
    """Logits and features of every image, whatever the network and however many images come, in their places."""
    net, batch = net_of(KINDS[kind]), images(count)
    expected = plain(net, batch)
    made = backends.engine(net, CPU, wanted(runtime))
    assert made.runtime == runtime
    logits, features = made.compute(batch)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(features, expected.features, atol=1e-5, rtol=1e-4)
    assert logits.dtype == features.dtype == np.float32


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_shipped_network_answers_the_same(runtime: backends.Runtime) -> None:
    """Logits and features of the shipped weights are within 1e-4 of the network's own, on whatever image."""
    net, batch = classifier.build(checkpoint.load(shipped_files.weights())), images(40)
    expected = plain(net, batch)
    logits, features = backends.engine(net, CPU, wanted(runtime)).compute(batch)
    assert abs(logits - expected.logits.numpy()).max() < 1e-4
    assert abs(features - expected.features.numpy()).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_used_side_is_all_that_counts_and_no_more(kind: str) -> None:
    """A pixel beyond the used side changes no feature; one in the last row or column within it does."""
    net, batch = net_of(KINDS[kind]).double(), torch.from_numpy(images(1)).double().requires_grad_()
    maps = net.convs[:-1](batch)  # before the last activation, below which all may be zero
    maps.sum().backward()
    assert batch.grad is not None
    touched = batch.grad[0, 0] != 0
    side = net.config.used_side
    assert not touched[side:].any() and not touched[:, side:].any()
    assert touched[side - 1].any() and touched[:, side - 1].any()


def test_used_side_of_the_networks() -> None:
    """Without pooling all of an image counts; of the shipped form's 64 x 64 pixels the last four each way do not."""
    assert (mednet.BASELINE.used_side, mednet.IMPROVED.used_side, mednet.PLUS.used_side) == (64, 64, 60)


class TestChoice:
    def test_onnx_runtime_where_it_is(self) -> None:
        """Installed, it is taken without being asked for."""
        pytest.importorskip("onnxruntime")
        assert backends.engine(net_of(POOLED), CPU).runtime == "onnxruntime"

    @pytest.mark.usefixtures("without_onnx_runtime")
    def test_torch_where_it_is_not(self) -> None:
        """The core install classifies by torch, and nobody has to say so."""
        made = backends.engine(net_of(POOLED), CPU)
        assert made.runtime == "torch"
        np.testing.assert_allclose(made.compute(images(3))[0], plain(net_of(POOLED), images(3)).logits, atol=1e-5)

    @pytest.mark.usefixtures("without_onnx_runtime")
    def test_asked_for_and_not_there(self) -> None:
        """A start that asks for it by name fails with code 4, and says what to install."""
        with pytest.raises(Fatal, match="onnxruntime") as caught:
            backends.engine(net_of(POOLED), CPU, "onnxruntime")
        assert caught.value.code == Exit.MODEL and "mednet-watcher[onnx]" in caught.value.advice

    @pytest.mark.parametrize("fault", ["raise TypeError('Descriptors cannot be created')", "", "raise OSError('lib')"])
    def test_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
        """Installed and broken, whatever its import raises: torch goes on and says why; by name it is fatal."""
        (tmp_path / "onnxruntime.py").write_text(fault)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)  # so that what there is now comes back, or nothing
        del sys.modules["onnxruntime"]
        monkeypatch.syspath_prepend(tmp_path)
        made = backends.engine(net_of(POOLED), CPU)
        assert made.runtime == "torch" and made.note is not None and "onnxruntime can not be used" in made.note
        with pytest.raises(Fatal, match="can not be used") as caught:
            backends.engine(net_of(POOLED), CPU, "onnxruntime")
        assert caught.value.code == Exit.MODEL

    def test_it_tells_nobody_of_its_work(self, tmp_path: Path) -> None:
        """Its official builds send telemetry unless they are told not to: no identifier is made, no socket is opened.

        The environment is that of a service: without what marks a CI, where it is silent by itself.
        """
        pytest.importorskip("onnxruntime")
        program = (
            "import os, numpy, torch; from watcher.model import backends, mednet;"
            "made = backends.engine(mednet.MedNet(mednet.PLUS).eval(), torch.device('cpu'), 'onnxruntime');"
            "made.compute(numpy.zeros((2, 1, 64, 64), numpy.float32));"
            "sockets = [to for each in os.listdir('/proc/self/fd')"
            " if os.path.islink(at := f'/proc/self/fd/{each}') and (to := os.readlink(at)).startswith('socket:')];"
            "print(made.runtime, sockets)"
        )
        environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(TOP)}
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=False
        )
        assert (ended.stdout, ended.stderr, ended.returncode) == ("onnxruntime []\n", "", 0)
        assert list(tmp_path.rglob("*")) == []

    def test_a_layer_it_has_no_operator_for(self) -> None:
        """Torch computes a layer for which ONNX has no operator."""
        net = net_of(POOLED)
        net.act = torch.nn.GELU()
        assert backends.engine(net, CPU).runtime == "torch"

    def test_its_own_errors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They have no ancestor but Exception: at the start torch goes on, later they are RuntimeError, as torch's."""
        pytest.importorskip("onnxruntime")
        made = backends.engine(net_of(POOLED), CPU)
        with pytest.raises(RuntimeError, match="ONNX Runtime"):
            made.compute(images(2)[:, :, :40, :40])
        monkeypatch.setattr(onnx_backend, "IR_VERSION", 999)
        made = backends.engine(net_of(POOLED), CPU)
        assert made.runtime == "torch" and made.note is not None and "999" in made.note

    def test_weights_for_other_images(self) -> None:
        """A network for another side is refused: it would see a corner of each image."""
        with pytest.raises(Fatal, match="32 x 32") as caught:
            backends.engine(net_of(replace(POOLED, side=32)), CPU)
        assert caught.value.code == Exit.MODEL

    def test_a_lost_device_is_no_time_to_insist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a GPU onnxruntime by name waits for the CPU; not there when the GPU is lost, torch goes on."""
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        warned: list[str] = []
        station = classifier.Classifier(
            net_of(POOLED), torch.device("meta"), lambda event, detail: warned.append(event), "onnxruntime"
        )
        grey = np.zeros((3, decode.SIDE, decode.SIDE), np.uint8)
        assert station(grey).logits.shape == (3, 6)
        assert (warned, station.device.type, station.runtime) == (["device.lost"], "cpu", "torch")

    def test_bfloat16_that_onednn_has_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network that has no bfloat16 form is computed as if it had not been asked for."""
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(onednn_backend, "fast_in_bfloat16", lambda: True)
        assert backends.engine(net_of(mednet.BASELINE), CPU, precision="bfloat16").runtime == "onnxruntime"

    def test_torch_asked_for(self) -> None:
        """By name torch is taken although the other is there."""
        assert backends.engine(net_of(POOLED), CPU, "torch").runtime == "torch"

    def test_another_device_is_torchs(self) -> None:
        """ONNX Runtime is for the CPU only; what is given to another device leaves the network where it was."""
        net = net_of(POOLED)
        assert backends.engine(net, torch.device("meta"), "onnxruntime").runtime == "torch"
        assert {each.device.type for each in net.parameters()} == {"cpu"}

    @pytest.mark.usefixtures("one_thread")
    def test_settings_reach_the_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """model.runtime, precision and threads are those that the network is computed with, and the log says which."""
        pytest.importorskip("onnxruntime")
        logged: list[dict[str, object]] = []
        logger = SimpleNamespace(info=lambda event, **more: logged.append(more), warning=lambda *_, **__: None)
        threads: list[int] = []
        load = onnx_backend.load
        monkeypatch.setattr(onnx_backend, "load", lambda net, side, n: threads.append(n) or load(net, side, n))
        asked: list[object] = []
        make = backends.engine
        monkeypatch.setattr(backends, "engine", lambda net, on, *how: asked.append(how) or make(net, on, *how))
        weights = checkpoint.load(shipped_files.weights())
        for runtime, precision in (("torch", "float32"), ("auto", "float32"), ("auto", "bfloat16")):
            model = {"runtime": runtime, "precision": precision, "threads": 1, "device": "cpu"}
            requests = settings.Config.model_validate({"model": model, "batch": {"size": 1}})
            load_model.load(requests, weights, logger)  # type: ignore[arg-type]
        assert asked == [("torch", "float32"), ("auto", "float32"), ("auto", "bfloat16")]
        assert [each["runtime"] for each in logged[:2]] == ["torch", "onnxruntime"]
        assert set(threads) == {1}

    def test_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bfloat16, which is torch's, where it is asked for and faster; else float32, in which the thresholds are."""
        taken: list[object] = []
        monkeypatch.setattr(onednn_backend, "convolutions", lambda net, precision: taken.append(precision))
        for fast in (True, False):
            monkeypatch.setattr(onednn_backend, "fast_in_bfloat16", lambda fast=fast: fast)
            assert backends.engine(net_of(POOLED), CPU, "torch").runtime == "torch"
            made = backends.engine(net_of(POOLED), CPU, precision="bfloat16")
            assert made.runtime == "onnxruntime"  # the stand-in has no convolutions to give
        assert taken == [torch.float32, torch.bfloat16, torch.float32]
