"""The classifier station: the same logits whatever the device goes through.

No GPU was at hand: running out of memory and losing the device are simulated by
a network that raises torch's own errors, and torch's meta device stands for one
that is not the CPU.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, classifier, mednet

SMALL = mednet.MedNetConfig(filters=(2, 3), kernels=(33, 17), hidden=(12, 8))

pytestmark = pytest.mark.usefixtures("one_thread")


class Limited(mednet.MedNet):
    """A network that runs out of memory on more than ``most`` images, and fails on any device but the CPU."""

    most = 1_000
    batches: list[int]

    def forward(self, images: torch.Tensor) -> mednet.Scores:
        self.batches.append(len(images))
        if images.device.type != "cpu":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> Limited:
        twin = copy.copy(self)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        twin.batches = self.batches
        return twin


@pytest.fixture
def net() -> Limited:
    torch.manual_seed(0)
    made = Limited(SMALL)
    made.batches = []
    return made.eval()  # type: ignore[no-any-return]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (13, 64, 64), dtype=np.uint8)


@pytest.fixture
def warnings() -> list[str]:
    return []


def station(net: mednet.MedNet, warnings: list[str], device: str = "cpu") -> classifier.Classifier:
    return classifier.Classifier(net, torch.device(device), lambda event, detail: warnings.append(event), "torch")


def test_scores_have_their_shapes(net: Limited, images: np.ndarray, warnings: list[str]) -> None:
    """Each image gets one row of logits and of features, float32, finite."""
    scores = station(net, warnings)(images)
    assert (scores.logits.shape, scores.features.shape) == ((13, 6), (13, 8))
    assert scores.logits.dtype == scores.features.dtype == np.float32
    assert np.isfinite(scores.logits).all()


def test_an_image_scores_the_same_in_any_company(net: Limited, images: np.ndarray, warnings: list[str]) -> None:
    """The scores of an image do not depend on the others of its batch."""
    station_ = station(net, warnings)
    alone = np.concatenate([station_(images[i : i + 1]).logits for i in range(len(images))])
    np.testing.assert_allclose(station_(images).logits, alone, atol=1e-5)


@pytest.mark.parametrize("most", [1, 2, 5, 12])
def test_out_of_memory_gives_the_same_by_halves(
    most: int, net: Limited, images: np.ndarray, warnings: list[str]
) -> None:
    """A batch too large for the device is scored in parts, in order, and each halving is told."""
    whole = station(net, [])(images)
    net.most = most
    halved = station(net, warnings)(images)
    np.testing.assert_allclose(halved.logits, whole.logits, atol=1e-5)
    np.testing.assert_allclose(halved.features, whole.features, atol=1e-5)
    assert warnings and set(warnings) == {"device.out_of_memory"}


def test_memory_of_the_failed_batch_is_free_before_the_halves_are_tried(images: np.ndarray) -> None:
    """Nothing, the error's traceback least of all, keeps the failed batch in memory during the second try."""
    torch.manual_seed(0)
    failed: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    class Failing(mednet.MedNet):
        def forward(self, images: torch.Tensor) -> mednet.Scores:
            if len(images) > 10:
                activation = images * 2
                failed.append(weakref.ref(activation))
                raise torch.OutOfMemoryError("CUDA out of memory")
            alive.extend(ref() is not None for ref in failed)
            return super().forward(images)

    station(Failing(SMALL).eval(), [])(images)
    assert alive and not any(alive)


def test_lost_device_falls_back_to_the_cpu(net: Limited, images: np.ndarray, warnings: list[str]) -> None:
    """The batch in hand is scored on the CPU, loudly, and so is every later one, without another try of the device."""
    expected = station(copy.deepcopy(net), [])(images).logits
    net.batches.clear()
    lost = station(net, warnings, "meta")
    np.testing.assert_allclose(lost(images).logits, expected, atol=1e-5)
    assert lost.device.type == "cpu"
    lost(images)
    assert warnings == ["device.lost"]
    assert len(net.batches) == 3


def test_single_image_that_does_not_fit_falls_back(images: np.ndarray, warnings: list[str]) -> None:
    """A device without memory for even one image is given up for the CPU; no image is dropped."""
    torch.manual_seed(0)

    class Tiny(mednet.MedNet):
        def forward(self, images: torch.Tensor) -> mednet.Scores:
            if images.device.type != "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    tiny = Tiny(SMALL).eval()
    expected = station(copy.deepcopy(tiny), [])(images).logits
    found = station(tiny, warnings, "meta")(images)
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    assert warnings[-1] == "device.lost" and warnings.count("device.lost") == 1


@pytest.mark.parametrize("error", [torch.AcceleratorError, torch.OutOfMemoryError])
def test_nothing_left_to_fall_back_to(error: type[RuntimeError], images: np.ndarray, warnings: list[str]) -> None:
    """An error of the CPU itself is raised: it is not tried again for ever."""

    class Broken(mednet.MedNet):
        def forward(self, images: torch.Tensor) -> mednet.Scores:
            raise error("broken")

    with pytest.raises(error, match="broken"):
        station(Broken(SMALL).eval(), warnings)(images)


def test_choice_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto takes CUDA if it is there and the CPU if not; cpu never asks; cuda without CUDA is fatal with code 4."""
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert classifier.choose_device("auto").type == ("cuda" if there else "cpu")
        assert classifier.choose_device("cpu").type == "cpu"
    assert classifier.choose_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Fatal) as caught:
        classifier.choose_device("cuda")
    assert caught.value.code is Exit.MODEL


class TestBuild:
    @staticmethod
    def of(net: mednet.MedNet, dtype: type = np.float32) -> checkpoint.Checkpoint:
        tensors = {
            name: value.numpy().astype(dtype) if value.is_floating_point() else value.numpy()
            for name, value in net.state_dict().items()
        }
        return checkpoint.Checkpoint("n", net.config.to_dict(), tuple("abcdef"), tensors)

    def test_gives_the_network_of_the_checkpoint(self, net: Limited, images: np.ndarray) -> None:
        """A network built from its checkpoint, through a file's JSON, scores bit for bit the same."""
        built = classifier.build(self.of(net))
        assert not built.training
        np.testing.assert_array_equal(station(built, [])(images).logits, station(net, [])(images).logits)

    def test_widens_half_precision(self, net: Limited) -> None:
        """Half precision on disk is float32 in memory."""
        built = classifier.build(self.of(net, np.float16))
        assert all(p.dtype == torch.float32 for p in built.parameters())

    @pytest.mark.parametrize("change", [{"filters": (2, 4)}, {"batch_norm": False}, {"classes": 5}, {"rank": 3}])
    def test_tensors_that_do_not_fit_are_fatal(self, net: Limited, change: dict[str, Any]) -> None:
        """Weights that are not of their architecture end the start with exit code 4."""
        wrong = replace(self.of(net), architecture=replace(SMALL, **change).to_dict())
        with pytest.raises(Fatal) as caught:
            classifier.build(wrong)
        assert caught.value.code is Exit.MODEL

    @pytest.mark.parametrize("count", [0, 5, 7])
    def test_classes_that_are_not_its_own_are_fatal(self, net: Limited, count: int) -> None:
        """A network with other than as many results as there are classes is refused, not found out by an image."""
        with pytest.raises(Fatal, match=f"6 results for {count} classes") as caught:
            classifier.build(replace(self.of(net), classes=tuple("abcdefg"[:count])))
        assert caught.value.code is Exit.MODEL

    def test_results_that_are_no_numbers_are_fatal(self, net: Limited) -> None:
        """Weights of a training that diverged."""
        found = self.of(net)
        broken = {n: value * np.nan if value.dtype.kind == "f" else value for n, value in found.tensors.items()}
        with pytest.raises(Fatal, match="not finite numbers"):
            classifier.build(replace(found, tensors=broken))

    def test_an_architecture_of_another_form_is_fatal(self, net: Limited) -> None:
        """A list, say."""
        with pytest.raises(Fatal):
            classifier.build(replace(self.of(net), architecture=[1, 2]))

    @pytest.mark.parametrize("architecture", [{"unknown": 1}, {"kernels": [99, 99]}, {"hidden": [1]}, {"filters": []}])
    def test_architecture_that_is_none_is_fatal(self, net: Limited, architecture: dict[str, Any]) -> None:
        """An architecture that can not be built ends the start with exit code 4."""
        wrong = replace(self.of(net), architecture={**SMALL.to_dict(), **architecture})
        with pytest.raises(Fatal) as caught:
            classifier.build(wrong)
        assert caught.value.code is Exit.MODEL
