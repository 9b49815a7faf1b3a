"""The real thing: MedNIST's validation images through the shipped weights and the daemon.

They are not in the repository. Where ``../shared/mednist`` is absent, and
``MEDNIST`` names no directory with the archive and the split either, these
tests are skipped.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemon import Daemon, digest
from tests.support.repository import TOP
from watcher.cli import judge_weights
from watcher.core import shipped_files
from watcher.core.errors import Reject
from watcher.images.decode import grey64
from watcher.model import checkpoint, classifier, mednet
from watcher.training.data import labelled_images
from watcher.training.fit import calibration, compression, evaluation

HOME = Path(os.environ.get("MEDNIST", TOP.parent / "shared" / "mednist"))
ARCHIVE, SPLIT = HOME / "mednist-train-valid.tar.xz", HOME / "split.csv"

CLASSES = {"ChestCT", "BreastMRI", "CXR", "AbdomenCT", "HeadCT", "Hand"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_data,
    pytest.mark.skipif(not ARCHIVE.exists(), reason="MedNIST is not at hand (../shared/mednist or $MEDNIST)"),
]


@pytest.fixture(scope="module")
def truth() -> dict[str, str]:
    """The class of each validation image, by its path."""
    with SPLIT.open(newline="") as file:
        return {row["path"]: row["class"] for row in csv.DictReader(file) if row["split"] == "valid"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, truth: dict[str, str]) -> Path:
    """The 5,833 validation images, unpacked."""
    root = tmp_path_factory.mktemp("mednist")
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if member.name.removeprefix("./") in truth:
                archive.extract(member, root, filter="data")
    return root


@pytest.fixture(scope="module")
def examples(data: Path) -> labelled_images.Examples:
    """The validation images, decoded once for all tests."""
    found = labelled_images.load(labelled_images.listing(data, SPLIT, "valid"))
    assert len(found.images) == 5833
    return found


@pytest.fixture(scope="module")
def judged(examples: labelled_images.Examples) -> Callable[[str], evaluation.Evaluation]:
    """Judges weights on the validation images, once for all tests, as ``evaluate`` does."""

    @functools.cache
    def judge(name: str) -> evaluation.Evaluation:
        return judge_weights.evaluate(checkpoint.load(shipped_files.weights(f"{name}.safetensors")), examples)

    return judge


@pytest.mark.parametrize(("name", "most"), [("mednet-general", 2), ("mednet-plus", 0), ("mednet-improved", 4)])
def test_shipped_weights_are_what_their_card_says(
    judged: Callable[[str], evaluation.Evaluation], name: str, most: int
) -> None:
    """Few errors, confidence that is calibrated to 0.2 % (15 bins), and at most one error among the surest; small."""
    report = judged(name)
    assert report.total - report.correct <= most
    assert report.reliability.error <= 0.002
    assert report.sure_errors <= 1
    assert shipped_files.weights(f"{name}.safetensors").stat().st_size <= 10e6


def test_plus_is_worse_than_improved_in_no_class(judged: Callable[[str], evaluation.Evaluation]) -> None:
    """Side by side on the validation images: of every class at least as many are told right."""
    reports = [judged(f"mednet-{name}") for name in ("plus", "improved")]
    plus, improved = (dict(zip(report.classes, report.confusion.diagonal(), strict=True)) for report in reports)
    assert plus.keys() == improved.keys() == CLASSES
    assert all(plus[name] >= improved[name] for name in CLASSES)


@pytest.mark.parametrize(("name", "least", "most"), [("mednet-general", 0.995, 1), ("mednet-improved", 0.999, 6)])
def test_nearly_all_are_filed_and_filed_right(
    judged: Callable[[str], evaluation.Evaluation], name: str, least: float, most: int
) -> None:
    """The thresholds file at least this share of the images, and at most so many of them wrong.

    The network that knows unrelated images files at least 99.5 %, at most one in
    5,000 wrong, and leaves one in 200 to a person; the older one is surer, and errs.
    """
    report = judged(name)
    assert report.filed is not None
    assert report.filed.mean() >= least
    assert (report.filed & ~report.right).sum() <= most


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.proof)])
def test_compiled_network_agrees_with_the_trained_one(examples: labelled_images.Examples, every: int) -> None:
    """The trained ``mednet-plus``, the folded and the halved form of it, and the shipped one decide alike.

    Tolerances of the logits: 0.001 folded, 0.02 in half precision. Factored and tuned on labels that are not smoothed
    any more, the shipped ones are larger (which its temperature sets right): they move by up to 5, no decision does.
    ``make proof`` does so for all images, not for every fourth.
    """
    trained, shipped = (
        classifier.build(checkpoint.load(shipped_files.weights(f"{place}mednet-plus.safetensors")))
        for place in ("trained/", "")
    )
    images = examples.images[::every]
    folded = mednet.fold_batch_norm(trained)
    before, after = calibration.predict(trained, images)[0], calibration.predict(folded, images)[0]
    np.testing.assert_allclose(after, before, atol=1e-3, rtol=0)
    halved = calibration.predict(compression.in_half_precision(folded), images)[0]
    np.testing.assert_allclose(halved, before, atol=0.02, rtol=0)
    sent = calibration.predict(shipped, images)[0]
    np.testing.assert_allclose(sent, before, atol=5, rtol=0)
    assert all((logits.argmax(axis=1) == before.argmax(axis=1)).all() for logits in (after, halved, sent))


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("mednet-general", 4),
        pytest.param("mednet-general", 1, marks=pytest.mark.proof),
        pytest.param("mednet-improved", 1, marks=pytest.mark.proof),
    ],
)
def test_daemon_sorts_them(
    tmp_path: Path,
    data: Path,
    truth: dict[str, str],
    judged: Callable[[str], evaluation.Evaluation],
    name: str,
    every: int,
) -> None:
    """Dropped at once, all end in a class or review directory, once each, as ``evaluate`` says.

    ``make proof`` does so with all 5,833 images, not with every fourth.
    """
    dropped: Counter[str] = Counter()
    paths = list(truth)[::every]
    with Daemon(tmp_path, f"model: {{weights: {shipped_files.weights(f'{name}.safetensors')}}}\n") as daemon:
        for path in paths:
            content = (data / path).read_bytes()
            dropped[digest(content)] += 1
            (daemon.root / "staged").write_bytes(content)
            (daemon.root / "staged").rename(daemon.inbox / path.replace("/", "-"))
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    assert daemon.digests() == dropped
    assert not list((daemon.root / "quarantine").iterdir())
    assert len(daemon.outcomes()) == len(paths)
    filed = [line for line in daemon.outcomes() if line["event"] == "image.sorted"]
    report = judged(name)
    assert report.filed is not None and not [error for error in report.errors if error.predicted is None]
    expected = {path.replace("/", "-") for path, sure in zip(truth, report.filed, strict=True) if sure}
    assert {line["name"] for line in filed} == expected & {path.replace("/", "-") for path in paths}
    wrong = {line["name"] for line in filed if not line["name"].startswith(f"{line['class']}-")}
    assert wrong <= {error.path.replace("/", "-") for error in report.errors}


def test_no_hole_passes_for_a_picture(data: Path, truth: dict[str, str]) -> None:
    """A 512-byte block of zeros on any 512-byte boundary of a file is noticed; every tenth file is tried."""
    unnoticed = []
    for path in list(truth)[::10]:
        whole = (data / path).read_bytes()
        for at in range(0, len(whole), 512):
            size = len(whole[at : at + 512])
            with contextlib.suppress(Reject):
                grey64(whole[:at] + bytes(size) + whole[at + size :])
                unnoticed.append((path, at))
    assert unnoticed == []
