"""The convolutions in oneDNN's layout compute what the network computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from watcher.core import shipped_files
from watcher.model import checkpoint, classifier, mednet, onednn_backend
from watcher.model.mednet import MedNetConfig

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")

POOLED = MedNetConfig(filters=(4, 8, 12), kernels=(5, 5, 3), pool=2, batch_norm=False, hidden=(20, 10))
"""Of the form that is shipped, smaller."""


def net_of(config: MedNetConfig) -> mednet.MedNet:
    torch.manual_seed(3)
    return mednet.MedNet(config).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("config", [POOLED, replace(mednet.IMPROVED, batch_norm=False)], ids=["pooled", "improved"])
@pytest.mark.parametrize("count", [1, onednn_backend.PART, onednn_backend.PART + 1, 3 * onednn_backend.PART])
@torch.inference_mode()
def test_maps_are_those_of_the_network(config: MedNetConfig, count: int) -> None:
    """However many images come, every one has the network's own maps, in its own place."""
    net, batch = net_of(config), images(count)
    through = onednn_backend.convolutions(net)
    assert through is not None
    torch.testing.assert_close(through(batch), net.convs(batch), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [replace(POOLED, activation="elu"), replace(POOLED, batch_norm=True)])
def test_what_onednn_has_not_is_left_to_the_network(config: MedNetConfig) -> None:
    """An ELU and a batch normalisation that is not folded have no layer of oneDNN: the network itself has to run."""
    assert onednn_backend.convolutions(net_of(config)) is None


def test_a_torch_without_onednn_runs_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds without oneDNN, for other processors, classify all the same."""
    with_it = classifier.Classifier(net_of(POOLED), torch.device("cpu"), runtime="torch")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    without = classifier.Classifier(net_of(POOLED), torch.device("cpu"), runtime="torch")
    grey = (images(5)[:, 0].clamp(-2, 2) * 60 + 125).byte().numpy()
    assert onednn_backend.convolutions(net_of(POOLED)) is None
    assert abs(with_it(grey).logits - without(grey).logits).max() < 1e-4


@pytest.mark.skipif(not onednn_backend.fast_in_bfloat16(), reason="this processor multiplies no matrices of bfloat16")
@torch.inference_mode()
def test_maps_in_bfloat16_are_almost_those_of_the_network() -> None:
    """Off by less than a hundredth of what there is, and float32 again."""
    net, batch = net_of(POOLED), images(onednn_backend.PART + 1)
    through = onednn_backend.convolutions(net, torch.bfloat16)
    assert through is not None
    ours, theirs = through(batch), net.convs(batch)
    assert ours.dtype == torch.float32
    assert 0 < (ours - theirs).abs().max() < 0.01 * theirs.abs().max()


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({"amx_bf16": True}, True), ({"amx_bf16": False, "avx512_bf16": True}, False), ({}, False)],
)
def test_bfloat16_only_where_it_is_faster(
    capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vector instructions for bfloat16 alone are slower than float32, and so they are not taken."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert onednn_backend.fast_in_bfloat16() is fast


def test_a_torch_that_tells_nothing_of_its_processor_has_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions do not say what the processor can."""
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not onednn_backend.fast_in_bfloat16()


@torch.inference_mode()
def test_the_shipped_network_decides_the_same() -> None:
    """The logits of the shipped weights differ by less than 1e-4 in the two layouts, on whatever image."""
    net = classifier.build(checkpoint.load(shipped_files.weights()))
    through, batch = onednn_backend.convolutions(net), images(40)
    assert through is not None, "what is shipped runs in oneDNN's layout"
    ours, theirs = net.head(through(batch)), net(batch)
    assert (ours.logits - theirs.logits).abs().max() < 1e-4
    assert (ours.features - theirs.features).abs().max() < 1e-4
