"""Compute the logits and features of batches of images, on a GPU or a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from watcher.core import available_cpus
from watcher.core.errors import Exit, Fatal
from watcher.core.records import Scored
from watcher.images import decode
from watcher.model import backends, mednet, out_of_distribution
from watcher.model.checkpoint import Checkpoint

Device = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True)
class Scores:
    """The results for n images: ``logits`` (n, classes) and penultimate ``features`` (n, 80), both float32."""

    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


def build(checkpoint: Checkpoint) -> mednet.MedNet:
    """Return the network of a checkpoint, in evaluation mode and as float32 on the CPU, after a test on one image.

    Raises:
        Fatal: The tensors do not fit the architecture, or the network does not fit the classes (exit code 4).
    """
    try:
        net = mednet.MedNet(mednet.MedNetConfig.from_dict(checkpoint.architecture))
        state = {
            name: torch.from_numpy(np.array(value))
            for name, value in checkpoint.tensors.items()
            if not name.startswith(out_of_distribution.PREFIX)
        }
        net.load_state_dict(state)  # this converts half precision to float32
        _test_on_one_image(net.eval(), len(checkpoint.classes))
    except (TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise _unfit(checkpoint, error) from error
    return net


@torch.inference_mode()
def _test_on_one_image(net: mednet.MedNet, classes: int) -> None:
    logits = net(torch.zeros(1, 1, net.config.side, net.config.side)).logits
    if logits.shape != (1, classes + net.config.none):
        raise ValueError(f"{logits.shape[1]} results for {classes} classes")
    if not logits.isfinite().all():
        raise ValueError("its results are not finite numbers")


def _unfit(checkpoint: Checkpoint, error: Exception) -> Fatal:
    return Fatal(
        f"the weights {checkpoint.name} do not fit their own architecture: {error}",
        "Set model.weights to a file made by this version of mednet-watcher.",
        Exit.MODEL,
    )


def choose_device(wanted: Device) -> torch.device:
    """Return the device for a setting. ``auto`` is CUDA if there is a device, else the CPU.

    Raises:
        Fatal: CUDA was asked for and is not available (exit code 4).
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise Fatal(
            "model.device is cuda, but torch finds no CUDA device",
            "Install the driver and a CUDA build of torch, or set model.device to auto or cpu.",
            Exit.MODEL,
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


class Classifier:
    """The network on a device. If the device fails, it goes on with smaller batches or on the CPU.

    Args:
        net: The network, on the CPU.
        device: The device to compute on.
        warn: A function that is called with an event and a text when the device fails.
        runtime: The library to use on a CPU, see :func:`watcher.model.backends.engine`.
        precision: The precision on a CPU, see there.
    """

    def __init__(
        self,
        net: mednet.MedNet,
        device: torch.device,
        warn: Callable[[str, str], None] = lambda event, detail: None,
        runtime: backends.Runtime = "auto",
        precision: backends.Precision = "float32",
    ) -> None:
        self._warn = warn
        self._precision: backends.Precision = precision
        # After the loss of a device, any library will do.
        self._fallback_runtime: backends.Runtime = "torch" if runtime == "torch" else "auto"
        self._cpu_net = net  # it stays on the CPU, because nothing can be read from a lost device
        self._use(device, runtime)

    def _use(self, device: torch.device, runtime: backends.Runtime) -> None:
        self.device = device
        self._engine = backends.engine(self._cpu_net, device, runtime, self._precision)

    @property
    def runtime(self) -> str:
        """The library that computes the network: ``torch`` or ``onnxruntime``."""
        return self._engine.runtime

    @property
    def note(self) -> str | None:
        """The reason why an installed ONNX Runtime is not used, or None."""
        return self._engine.note

    @property
    def classes(self) -> int:
        """The number of columns of the logits."""
        return self._cpu_net.config.classes

    def __call__(self, images: npt.NDArray[np.uint8]) -> Scores:
        """Score images (n, 64, 64), uint8.

        If the GPU has too little memory, the two halves of the batch are computed one after the other, down to single
        images. If a single image does not fit or the device is lost, the CPU computes everything from then on.
        """
        # The recovery comes after the except clauses, because inside them the traceback keeps the batch's memory.
        try:
            return self._forward(images)
        except torch.OutOfMemoryError as error:
            if self.device.type == "cpu" and len(images) == 1:
                raise
            problem = str(error)
            halve = len(images) > 1
        except RuntimeError as error:  # from torch or a CUDA library
            if self.device.type == "cpu":
                raise
            problem, halve = str(error), False
        if halve:
            self._warn("device.out_of_memory", f"halving a batch of {len(images)}")
            torch.cuda.empty_cache()
            half = len(images) // 2
            return _joined(self(images[:half]), self(images[half:]))
        self._warn("device.lost", f"going on with the CPU: {problem}")
        self._use(torch.device("cpu"), self._fallback_runtime)
        return self._forward(images)

    def warm_up(self, size: int) -> None:
        """Compute a batch of each shape that batches of up to ``size`` images can have.

        The first batch of a shape is slow, because it allocates memory and tunes. No file should wait for that.
        """
        for shape in sorted({_rounded(count) for count in range(1, size + 1)}):
            self._forward(np.zeros((shape, decode.SIDE, decode.SIDE), np.uint8))

    def _forward(self, images: npt.NDArray[np.uint8]) -> Scores:
        count = len(images)
        # Few shapes are used, because the CPU kernels keep memory for every shape that they have seen.
        padding = ((0, _rounded(count) - count), (0, 0), (0, 0))
        logits, features = self._engine.compute(decode.standardise(np.pad(images, padding)))
        return Scores(logits[:count], features[:count])


def _rounded(count: int) -> int:
    """Round up to a power of two, and beyond 64 to a multiple of 64."""
    return -(-count // 64) * 64 if count > 64 else 1 << max(count - 1, 0).bit_length()


def _joined(first: Scores, second: Scores) -> Scores:
    return Scores(np.concatenate([first.logits, second.logits]), np.concatenate([first.features, second.features]))


def make_scorer(classifier: Classifier, checkpoint: Checkpoint) -> Callable[[npt.NDArray[np.uint8]], Scored]:
    """Return a function that computes logits and, if the checkpoint knows its images, out-of-distribution scores.

    Raises:
        Fatal: The known images do not fit the network (exit code 4).
    """
    known = known_images(checkpoint)

    def score(images: npt.NDArray[np.uint8]) -> Scored:
        scores = classifier(images)
        return Scored(scores.logits, None if known is None else known.distance(scores.features))

    return score


def known_images(checkpoint: Checkpoint) -> out_of_distribution.KnownImages | None:
    """Return the images that the checkpoint was trained on, as it stores them, or None if it has none.

    Raises:
        Fatal: They do not fit the features of the network (exit code 4).
    """
    try:
        known = out_of_distribution.from_tensors(checkpoint.tensors)
        width = mednet.MedNetConfig.from_dict(checkpoint.architecture).hidden[1]
        if known is not None and known.directions.shape[1] != width:
            raise ValueError(f"{known.directions.shape[1]} features are stored, the network has {width}")
    except (TypeError, ValueError) as error:
        raise _unfit(checkpoint, error) from error
    return known


def use_threads(threads: int) -> None:
    """Set the number of CPU threads for inference. 0 stands for one for each core that this process may use."""
    torch.set_num_threads(threads or available_cpus.count())
