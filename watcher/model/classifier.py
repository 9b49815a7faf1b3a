"""A batch of images to logits and features, on the device there is."""

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
    """``logits`` (n, classes) and penultimate ``features`` (n, 80), float32."""

    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


def build(checkpoint: Checkpoint) -> mednet.MedNet:
    """The network of a checkpoint, in evaluation mode, float32 on the CPU, tried on one image.

    Raises:
        Fatal: exit code 4; the tensors do not fit the architecture, or the network not its classes.
    """
    try:
        net = mednet.MedNet(mednet.MedNetConfig.from_dict(checkpoint.architecture))
        state = {
            name: torch.from_numpy(np.array(value))
            for name, value in checkpoint.tensors.items()
            if not name.startswith(out_of_distribution.PREFIX)
        }
        net.load_state_dict(state)  # half precision on disk is widened here
        _try(net.eval(), len(checkpoint.classes))
    except (TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise _unfit(checkpoint, error) from error
    return net


@torch.inference_mode()
def _try(net: mednet.MedNet, classes: int) -> None:
    logits = net(torch.zeros(1, 1, net.config.side, net.config.side)).logits
    if logits.shape != (1, classes + net.config.none):
        raise ValueError(f"{logits.shape[1]} results for {classes} classes")
    if not logits.isfinite().all():
        raise ValueError("its results are no numbers")


def _unfit(checkpoint: Checkpoint, error: Exception) -> Fatal:
    return Fatal(
        f"the weights {checkpoint.name} do not fit their own architecture: {error}",
        "Set model.weights to a file made by this version of mednet-watcher.",
        Exit.MODEL,
    )


def choose_device(wanted: Device) -> torch.device:
    """The device for ``wanted``; ``auto`` is CUDA if there, else the CPU.

    Raises:
        Fatal: exit code 4; CUDA was asked for and is not there.
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
    """Holds the network. ``warn`` is told, in words, when it has to go on with less.

    ``runtime`` and ``precision`` say how it is computed on a CPU, see :func:`watcher.model.backends.engine`.
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
        # A lost device is no time to insist.
        self._after_loss: backends.Runtime = "torch" if runtime == "torch" else "auto"
        self._spare = net  # stays on the CPU: a lost device can not be read back
        self._use(device, runtime)

    def _use(self, device: torch.device, runtime: backends.Runtime) -> None:
        self.device = device
        self._engine = backends.engine(self._spare, device, runtime, self._precision)

    @property
    def runtime(self) -> str:
        """What computes the network: ``torch`` or ``onnxruntime``."""
        return self._engine.runtime

    @property
    def note(self) -> str | None:
        """Why it is not what it could be, or None."""
        return self._engine.note

    @property
    def classes(self) -> int:
        """Columns of the logits."""
        return self._spare.config.classes

    def __call__(self, images: npt.NDArray[np.uint8]) -> Scores:
        """Score images (n, 64, 64) uint8.

        Out of GPU memory: both halves one after the other, down to single
        images. Device lost, or a single image does not fit: the CPU from now on.
        """
        # Recovery comes after the except clauses: inside, the traceback would keep the batch's memory.
        try:
            return self._forward(images)
        except torch.OutOfMemoryError as error:
            if self.device.type == "cpu" and len(images) == 1:
                raise
            problem = str(error)
            halve = len(images) > 1
        except RuntimeError as error:  # of torch or of a CUDA library
            if self.device.type == "cpu":
                raise
            problem, halve = str(error), False
        if halve:
            self._warn("device.out_of_memory", f"halving a batch of {len(images)}")
            torch.cuda.empty_cache()
            half = len(images) // 2
            return _joined(self(images[:half]), self(images[half:]))
        self._warn("device.lost", f"going on with the CPU: {problem}")
        self._use(torch.device("cpu"), self._after_loss)
        return self._forward(images)

    def warm_up(self, size: int) -> None:
        """Pass once through every shape that batches of up to ``size`` images come in.

        The first pass of a shape allocates and tunes: not at a file's expense.
        """
        for shape in sorted({_rounded(count) for count in range(1, size + 1)}):
            self._forward(np.zeros((shape, decode.SIDE, decode.SIDE), np.uint8))

    def _forward(self, images: npt.NDArray[np.uint8]) -> Scores:
        count = len(images)
        # Few distinct shapes: the CPU kernels keep memory for each they have ever seen.
        padding = ((0, _rounded(count) - count), (0, 0), (0, 0))
        logits, features = self._engine.compute(decode.standardise(np.pad(images, padding)))
        return Scores(logits[:count], features[:count])


def _rounded(count: int) -> int:
    """The next power of two, and beyond 64 the next multiple of 64."""
    return -(-count // 64) * 64 if count > 64 else 1 << max(count - 1, 0).bit_length()


def _joined(first: Scores, second: Scores) -> Scores:
    return Scores(np.concatenate([first.logits, second.logits]), np.concatenate([first.features, second.features]))


def scoring(station: Classifier, checkpoint: Checkpoint) -> Callable[[npt.NDArray[np.uint8]], Scored]:
    """The station's logits with the out-of-distribution score that the checkpoint's own statistics give.

    Raises:
        Fatal: exit code 4; the statistics do not fit each other.
    """
    remembered = known(checkpoint)

    def score(images: npt.NDArray[np.uint8]) -> Scored:
        scores = station(images)
        return Scored(scores.logits, None if remembered is None else remembered.distance(scores.features))

    return score


def known(checkpoint: Checkpoint) -> out_of_distribution.Known | None:
    """What the checkpoint remembers of the images it was trained on, or None.

    Raises:
        Fatal: exit code 4; it does not fit the network's features.
    """
    try:
        found = out_of_distribution.of(checkpoint.tensors)
        wide = mednet.MedNetConfig.from_dict(checkpoint.architecture).hidden[1]
        if found is not None and found.directions.shape[1] != wide:
            raise ValueError(f"{found.directions.shape[1]} features are remembered, the network has {wide}")
    except (TypeError, ValueError) as error:
        raise _unfit(checkpoint, error) from error
    return found


def use_threads(threads: int) -> None:
    """CPU threads for inference; 0 means as many as there are cores for this process."""
    torch.set_num_threads(threads or available_cpus.count())
