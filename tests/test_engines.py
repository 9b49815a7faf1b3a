"""What computes the network: whichever it is, the same answers; and the one that is asked for."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from watcher import assets, checkpoint, classify, decode, engines, mednet, onednn
from watcher.errors import Exit, Fatal
from watcher.mednet import MedNetConfig

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
@pytest.mark.parametrize("count", [1, 5, 70])
def test_answers_are_those_of_the_network(kind: str, runtime: engines.Runtime, count: int) -> None:
    """Logits and features of every image, whatever the network and however many images come, in their places."""
    net, batch = net_of(KINDS[kind]), images(count)
    expected = plain(net, batch)
    made = engines.engine(net, CPU, runtime)
    assert made.runtime == runtime
    logits, features = made.compute(batch)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(features, expected.features, atol=1e-5, rtol=1e-4)
    assert logits.dtype == features.dtype == np.float32


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_shipped_network_answers_the_same(runtime: engines.Runtime) -> None:
    """Logits and features of the shipped weights are within 1e-4 of the network's own, on whatever image."""
    net, batch = classify.build(checkpoint.load(assets.weights())), images(40)
    expected = plain(net, batch)
    logits, features = engines.engine(net, CPU, runtime).compute(batch)
    assert abs(logits - expected.logits.numpy()).max() < 1e-4
    assert abs(features - expected.features.numpy()).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_reach_is_all_that_counts_and_no_more(kind: str) -> None:
    """Beyond a network's reach a pixel changes no feature; in the last row and column within it, it does."""
    net, batch = net_of(KINDS[kind]).double(), torch.from_numpy(images(1)).double().requires_grad_()
    maps = net.convs[:-1](batch)  # before the last activation, below which all may be zero
    maps.sum().backward()
    assert batch.grad is not None
    touched = batch.grad[0, 0] != 0
    reach = net.config.reach
    assert not touched[reach:].any() and not touched[:, reach:].any()
    assert touched[reach - 1].any() and touched[:, reach - 1].any()


def test_reach_of_the_networks_there_are() -> None:
    """Without pooling all of an image counts; of the shipped form's 64 x 64 pixels the last four each way do not."""
    assert (mednet.BASELINE.reach, mednet.IMPROVED.reach, mednet.PLUS.reach) == (64, 64, 60)


class TestChoice:
    def test_onnx_runtime_where_it_is(self) -> None:
        """Installed, it is taken without being asked for."""
        assert engines.engine(net_of(POOLED), CPU).runtime == "onnxruntime"

    @pytest.mark.usefixtures("without_onnx_runtime")
    def test_torch_where_it_is_not(self) -> None:
        """The core install classifies by torch, and nobody has to say so."""
        made = engines.engine(net_of(POOLED), CPU)
        assert made.runtime == "torch"
        np.testing.assert_allclose(made.compute(images(3))[0], plain(net_of(POOLED), images(3)).logits, atol=1e-5)

    @pytest.mark.usefixtures("without_onnx_runtime")
    def test_asked_for_and_not_there(self) -> None:
        """A start that asks for it by name fails with code 4, and says what to install."""
        with pytest.raises(Fatal, match="onnxruntime") as caught:
            engines.engine(net_of(POOLED), CPU, "onnxruntime")
        assert caught.value.code == Exit.MODEL and "mednet-watcher[onnx]" in caught.value.advice

    def test_torch_asked_for(self) -> None:
        """By name torch is taken although the other is there."""
        assert engines.engine(net_of(POOLED), CPU, "torch").runtime == "torch"

    def test_another_device_is_torchs(self) -> None:
        """ONNX Runtime is for the CPU only; what is given to another device leaves the network where it was."""
        net = net_of(POOLED)
        assert engines.engine(net, torch.device("meta"), "onnxruntime").runtime == "torch"
        assert {each.device.type for each in net.parameters()} == {"cpu"}

    def test_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bfloat16, which is torch's, where it is asked for and faster; else float32, in which the thresholds are."""
        taken: list[object] = []
        monkeypatch.setattr(onednn, "convolutions", lambda net, precision: taken.append(precision))
        for fast in (True, False):
            monkeypatch.setattr(onednn, "fast_in_bfloat16", lambda fast=fast: fast)
            assert engines.engine(net_of(POOLED), CPU, "torch").runtime == "torch"
            made = engines.engine(net_of(POOLED), CPU, precision="bfloat16")
            assert made.runtime == ("torch" if fast else "onnxruntime")
        assert taken == [torch.float32, torch.bfloat16, torch.float32]
