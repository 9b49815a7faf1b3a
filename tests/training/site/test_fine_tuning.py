"""A site teaches the network, and new weights are put in force only if no class is worse by them."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from watcher.cli import judge_weights, main
from watcher.config import loader
from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, mednet, out_of_distribution, promotions, weights_in_force
from watcher.monitoring import drift
from watcher.training.site import fine_tuning, promotion_gate, rehearsal, site_images
from watcher.training.site.promotion_gate import Predictions

CLASSES = ("ChestCT", "Hand")
NONE = 2

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(kind: int, count: int, seed: int) -> np.ndarray:
    """Kind 0 is bright above, 1 bright below, 2 striped, 3 a frame: another hospital's 1."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 60, (count, 64, 64))
    if kind == 0:
        made[:, :28] += 150
    elif kind == 1:
        made[:, 36:] += 150
    elif kind == 2:
        made[:, :, ::8] += 180
    else:
        made[:, 8:56, 8:56] += 150
    return made.astype(np.uint8)


TUNING = fine_tuning.Tuning(steps=60, site=8, rehearsed=48, copies=0, learning_rate=0.005, weight=0.5)


@pytest.fixture(scope="module")
def net() -> mednet.MedNet:
    """A random trunk, and a head that knows kinds 0, 1 and 2."""
    torch.manual_seed(0)
    config_ = mednet.MedNetConfig(
        classes=3, none=True, filters=(4, 6), kernels=(5, 5), pool=4, hidden=(64, 24), batch_norm=False
    )
    blank = mednet.MedNet(config_).eval()
    images = np.concatenate([pictures(kind, 30, kind) for kind in range(3)])
    labels = np.repeat([0, 1, NONE], 30)
    inputs, answers = torch.from_numpy(rehearsal.layer_outputs(blank, images)), torch.from_numpy(labels)
    optimizer = torch.optim.Adam([*blank.fc2.parameters(), *blank.fc3.parameters()], 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(blank.fc3(blank.act(blank.fc2(inputs))), answers).backward()
        optimizer.step()
    return blank.half().float()  # as it comes from a file


@pytest.fixture(scope="module")
def memory(net: mednet.MedNet) -> rehearsal.Rehearsal:
    train, valid = (np.concatenate([pictures(kind, 40, 10 * part + kind) for kind in range(3)]) for part in (1, 2))
    labels = np.repeat([0, 1, NONE], 40)
    return rehearsal.Rehearsal(
        rehearsal.trunk(net), rehearsal.layer_outputs(net, train), labels, rehearsal.layer_outputs(net, valid), labels
    )


@pytest.fixture(scope="module")
def present(net: mednet.MedNet, memory: rehearsal.Rehearsal) -> Predictions:
    """Return the predictions of the weights in force on the rehearsal: all are right."""
    return fine_tuning._predictions(
        fine_tuning.calibrate(net, memory, memory.train[:1], memory.train_labels[:1], len(CLASSES), 0.9),
        memory,
        len(CLASSES),
    )


def right(net: mednet.MedNet, images: np.ndarray, label: int) -> float:
    return float((fine_tuning.predict(net, rehearsal.layer_outputs(net, images))[0].argmax(axis=1) == label).mean())


class TestAdapt:
    def test_learns_the_site_and_forgets_nothing(
        self, net: mednet.MedNet, memory: rehearsal.Rehearsal, present: Predictions
    ) -> None:
        """Images told wrong are told right, also such as were not taught; what is rehearsed stays as it was."""
        new, rest = pictures(3, 40, 7), pictures(3, 40, 8)
        labels = np.ones(40, np.int64)
        assert right(net, rest, 1) < 0.5
        found = fine_tuning.adapt(net, memory, new, labels, CLASSES, 0.9, present, replace(TUNING, steps=300))
        assert right(found.net, rest, 1) > 0.9
        for kind in range(3):
            assert right(found.net, pictures(kind, 40, 99), kind) > 0.9
        far = found.known.distance(fine_tuning.predict(found.net, rehearsal.layer_outputs(net, rest))[1])
        assert np.median(far) <= found.limits.max_distance, "what is like the site's images is known"

    def test_goes_only_so_far_that_nothing_is_forgotten(
        self, net: mednet.MedNet, memory: rehearsal.Rehearsal, present: Predictions
    ) -> None:
        """Verdicts that contradict what is known pull the network less far than would cost a class."""
        wrong = pictures(0, 40, 7)
        found = fine_tuning.adapt(
            net, memory, wrong, np.ones(40, np.int64), CLASSES, 0.9, present, replace(TUNING, weight=20.0)
        )
        for kind in range(3):
            assert right(found.net, pictures(kind, 40, 99), kind) > 0.8

    def test_is_held_against_what_the_weights_in_force_file(
        self, net: mednet.MedNet, memory: rehearsal.Rehearsal
    ) -> None:
        """If those file more of a class than any tuning would, as promote is going to see, no tuning is taken."""
        taught, labels = pictures(3, 12, 7), np.ones(12, np.int64)

        def tuned(present: Predictions) -> bool:
            found = fine_tuning.adapt(net, memory, taught, labels, CLASSES, 0.5, present, TUNING)
            return not torch.equal(found.net.fc3.weight, net.fc3.weight)

        named = np.minimum(memory.valid_labels, 1)
        assert not tuned(Predictions(named, memory.valid_labels < NONE))
        assert tuned(Predictions(named, np.zeros(len(named), np.bool_)))

    def test_no_validation_error_is_not_certainty(
        self, net: mednet.MedNet, memory: rehearsal.Rehearsal, present: Predictions
    ) -> None:
        """If every rehearsed image is told right, as here, confidence says that so many tell it, and is not 1."""
        found = fine_tuning.calibrate(net, memory, memory.train[:1], memory.train_labels[:1], len(CLASSES), 0.9)
        assert (present.label == memory.valid_labels)[memory.valid_labels < len(CLASSES)].all()
        assert found.temperature > 0.2 and 0.9 < found.confidence.mean() < 1 - 1 / 82

    def test_what_is_like_a_changed_image_is_known_too(
        self, net: mednet.MedNet, memory: rehearsal.Rehearsal, present: Predictions
    ) -> None:
        """The turned, retoned and degraded copies of a site's images are remembered: no two pictures are the same."""
        taught, labels, tuning = pictures(3, 12, 7), np.ones(12, np.int64), replace(TUNING, copies=3)
        found = fine_tuning.adapt(net, memory, taught, labels, CLASSES, 0.9, present, tuning)
        copies, _ = fine_tuning._site_outputs(net, taught, labels, CLASSES, tuning)
        assert len(copies) == 48
        assert found.known.distance(fine_tuning.predict(found.net, copies)[1]).max() < 1e-3

    def test_a_little_worse_everywhere_is_worse(
        self, net: mednet.MedNet, memory: rehearsal.Rehearsal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Errors that are within noise for every class count as forgetting where together they are not."""
        labels = np.repeat(np.arange(5), 40)
        spread = replace(memory, valid_labels=labels)
        worse = labels.copy()
        worse[::20] = (labels[::20] + 1) % 5  # two of each class
        one = labels.copy()
        one[0] = 1
        filed = np.zeros(len(labels), bool)  # so that the gate has nothing to say
        monkeypatch.setattr(fine_tuning, "_predictions", lambda labels, *_: Predictions(labels, filed))
        assert fine_tuning._is_worse(Predictions(labels, filed), worse, spread, "abcde")  # type: ignore[arg-type]
        assert not fine_tuning._is_worse(Predictions(worse, filed), labels, spread, "abcde")  # type: ignore[arg-type]
        assert not fine_tuning._is_worse(Predictions(labels, filed), one, spread, "abcde")  # type: ignore[arg-type]

    def test_changes_the_last_layers_only(
        self, net: mednet.MedNet, memory: rehearsal.Rehearsal, present: Predictions
    ) -> None:
        """The rehearsal stays true of the new network to the bit, and the old one is not touched.

        A zero below zero, as half precision makes them, is one of the bits: by them the rehearsal knows its trunk.
        """
        net = copy.deepcopy(net)
        with torch.no_grad():
            net.fc1.weight[0, 0] = -0.0
        before = {name: value.clone() for name, value in net.state_dict().items()}
        found = fine_tuning.adapt(net, memory, pictures(3, 12, 7), np.ones(12, np.int64), CLASSES, 0.9, present, TUNING)
        assert rehearsal.trunk(found.net) == rehearsal.trunk(net)
        assert not torch.equal(found.net.state_dict()["fc3.weight"], before["fc3.weight"])
        assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


class TestRehearsal:
    def test_round_trip(self, tmp_path: Path, memory: rehearsal.Rehearsal) -> None:
        """Features come back to within half of a 255th of their column's range, labels and trunk as they were."""
        rehearsal.save(memory, tmp_path / "r")
        found = rehearsal.load(tmp_path / "r")
        assert found.trunk == memory.trunk
        np.testing.assert_array_equal(found.train_labels, memory.train_labels)
        np.testing.assert_array_equal(found.valid_labels, memory.valid_labels)
        step = np.concatenate([memory.train, memory.valid]).max(axis=0) / 255
        assert (np.abs(found.train - memory.train) <= step * 0.51 + 1e-6).all()
        assert (tmp_path / "r").stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("content", [b"", b"garbage" * 100])
    def test_what_is_none(self, tmp_path: Path, content: bytes) -> None:
        """A damaged file is refused as such."""
        (tmp_path / "r").write_bytes(content)
        with pytest.raises(Fatal) as caught:
            rehearsal.load(tmp_path / "r")
        assert caught.value.code is Exit.MODEL


class TestSite:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name, kind in (("Hand", 1), ("outlier", 2)):
            (tmp_path / "site" / name).mkdir(parents=True)
            for number, image in enumerate(pictures(kind, 10, kind)):
                Image.fromarray(image).save(tmp_path / "site" / name / f"{number}.png")
        return tmp_path / "site"

    def test_labels_are_the_weights_own(self, root: Path) -> None:
        """Classes have the weights' numbers, whichever directories there are; outlier is the one after the last."""
        data = site_images.load(root, CLASSES)
        assert sorted(set(zip([path.split("/")[0] for path in data.paths], data.labels.tolist(), strict=True))) == [
            ("Hand", 1),
            ("outlier", NONE),
        ]

    def test_what_was_rejected_as_no_image_is_left_out(self, root: Path) -> None:
        """A rejected file that does not decode is told and teaches nothing; one of a class is refused."""
        (root / "outlier" / "letter.png").write_bytes(b"no image")
        data = site_images.load(root, CLASSES)
        assert [path for path, *_ in data.broken] == ["outlier/letter.png"]
        assert len(data.images) == len(data.paths) == 20
        (root / "Hand" / "torn.png").write_bytes(b"no image")
        with pytest.raises(Fatal, match=r"1 images can not be decoded: Hand/torn\.png"):
            site_images.load(root, CLASSES)

    def test_nothing_is_passed_over_in_silence(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A link to an image that is gone, a directory or class that can not be read: all refused."""
        (root / "Hand" / "link.png").symlink_to("/nowhere/a.png")
        with pytest.raises(Fatal, match=r"1 images can not be decoded: Hand/link\.png .*No such file"):
            site_images.load(root, CLASSES)
        (root / "Hand" / "link.png").unlink()
        (root / "Hand" / "more").mkdir()
        with monkeypatch.context() as patch:
            scandir = os.scandir

            def refused(path: Any) -> Any:
                if str(path).endswith("more"):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return scandir(path)

            patch.setattr(os, "scandir", refused)
            with pytest.raises(Fatal, match=r"Hand/more can not be read: Permission denied") as caught:
                site_images.load(root, CLASSES)
            assert caught.value.code is Exit.DIRECTORY
        (root / "CXR").symlink_to("/nowhere/CXR")
        with pytest.raises(Fatal, match=r"CXR is a link that leads nowhere"):
            site_images.load(root, CLASSES)

    def test_split_keeps_copies_together_and_is_the_same_each_time(self, root: Path) -> None:
        """Some of each class are held back; a copy of an image that is learnt is never judged by."""
        for number in range(10):
            (root / "Hand" / f"copy{number}.png").write_bytes((root / "Hand" / f"{number}.png").read_bytes())
        learn, held = site_images.split(site_images.load(root, CLASSES))
        assert (len(learn.labels), len(held.labels)) == (14 + 7, 6 + 3)
        seen = {image.tobytes() for image in learn.images}
        assert not any(image.tobytes() in seen for image in held.images)
        assert site_images.split(site_images.load(root, CLASSES))[1].paths == held.paths

    def test_directory_of_no_class(self, root: Path) -> None:
        """A directory that is no class's is named, instead of being taught as something."""
        (root / "Hand").rename(root / "Foot")
        with pytest.raises(Fatal, match="Foot") as caught:
            site_images.load(root, CLASSES)
        assert caught.value.code is Exit.DIRECTORY


class TestGate:
    def reference(self, labels: list[int], before: list[int], after: list[int]) -> promotion_gate.ReferenceSet:
        """Labels as told; NONE means review."""
        said = [Predictions(np.array(each) % NONE, np.array(each) != NONE) for each in (before, after)]
        return promotion_gate.ReferenceSet("set", np.array(labels), *said)

    def worse(self, ref: promotion_gate.ReferenceSet) -> dict[str, str | None]:
        return {line.label: line.worse for line in promotion_gate.compare([ref], CLASSES)}

    def test_no_difference_is_no_worse(self) -> None:
        """Weights pass against themselves."""
        assert self.worse(self.reference([0, 1, NONE], [0, 1, NONE], [0, 1, NONE])) == dict.fromkeys(
            (*CLASSES, "none of them")
        )

    def test_one_class_worse_is_enough(self) -> None:
        """Gains in one class do not make up for another's losses."""
        ref = self.reference([0] * 20 + [1] * 20, [0] * 20 + [0] * 20, [NONE] * 20 + [1] * 20)
        assert self.worse(ref) == {"ChestCT": "fewer are right", "Hand": None}

    def test_filed_wrong_instead_of_review_is_worse(self) -> None:
        """An image that was left to a person and is filed wrong now is worse, though no fewer are right."""
        ref = self.reference([0] * 20, [NONE] * 20, [1] * 20)
        assert self.worse(ref) == {"ChestCT": "more are filed wrong"}

    def test_outliers_filed_are_worse(self) -> None:
        """An image of none of the classes must stay with a person."""
        assert self.worse(self.reference([NONE] * 20, [NONE] * 20, [1] * 20)) == {"none of them": "more are filed"}

    @pytest.mark.parametrize(
        ("losses", "gains", "beyond"),
        [(0, 0, False), (3, 0, False), (6, 0, False), (7, 0, True), (20, 15, False), (30, 8, True)],
    )
    def test_noise_is_no_reason(self, losses: int, gains: int, beyond: bool) -> None:
        """A few images more or less are chance: the sign test's level decides (2**-7 < 0.01 < 2**-6)."""
        assert promotion_gate.significant(losses, gains) is beyond

    def test_page_shows_both_confusion_matrices(self) -> None:
        """The report has the verdict, each line, and the matrices before and after."""
        ref = self.reference([0] * 20, [0] * 20, [1] * 20)
        page = promotion_gate.page([ref], promotion_gate.compare([ref], CLASSES), CLASSES, {"new": "abc"})
        assert "**Refused**; ChestCT of set: fewer are right (20 right before, 0 after)" in page
        assert "| ChestCT | 20 | 0 | 0 |" in page
        assert "| ChestCT | 0 | 20 | 0 |" in page


class TestPromote:
    """The commands, with a small network in the place of the shipped one."""

    @pytest.fixture
    def shipped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: mednet.MedNet, memory: rehearsal.Rehearsal
    ) -> checkpoint.Checkpoint:
        place = tmp_path / "shipped"
        settled = fine_tuning.calibrate(net, memory, memory.train[:1], memory.train_labels[:1], 2, 0.95)
        saved = checkpoint.save(self.made(net, settled), place / "mednet.safetensors")
        rehearsal.save(memory, place / "rehearsal.safetensors")
        monkeypatch.setattr(shipped_files, "weights", lambda name="mednet.safetensors": place / name)
        (tmp_path / "config.yaml").write_text("")
        return saved

    def made(self, net: mednet.MedNet, settled: fine_tuning.Adapted) -> checkpoint.Checkpoint:
        limits = {"min_confidence": settled.limits.min_confidence, "max_distance": settled.limits.max_distance}
        tensors = {name: value.numpy() for name, value in net.state_dict().items()}
        return checkpoint.Checkpoint(
            "small", net.config.to_dict(), CLASSES, {**tensors, **settled.known.tensors()}, limits
        )

    @pytest.fixture
    def verdicts(self, tmp_path: Path) -> Path:
        (tmp_path / "verdicts" / "Hand").mkdir(parents=True)
        for number, image in enumerate(pictures(3, 60, 7)):
            Image.fromarray(image).save(tmp_path / "verdicts" / "Hand" / f"{number}.png")
        return tmp_path / "verdicts"

    def call(self, tmp_path: Path, *words: object) -> int:
        return main.main([*map(str, words), "--config", str(tmp_path / "config.yaml")])

    def in_force(self, tmp_path: Path) -> str:
        return checkpoint.load(promotions.weights_path(None, loader.load(tmp_path / "config.yaml", {}))).digest

    def test_taught_promoted_and_taken_back(
        self,
        tmp_path: Path,
        shipped: checkpoint.Checkpoint,
        verdicts: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Adapt writes weights that pass, promote puts them in force, rollback those of before."""
        out = tmp_path / "new.safetensors"
        monkeypatch.setattr(fine_tuning.adapt, "__defaults__", (replace(TUNING, steps=300),))
        assert self.call(tmp_path, "adapt", "--data", verdicts, "--out", out) == Exit.OK
        new = checkpoint.load(out)
        assert new.training["adapted"] == [{"from": shipped.digest, "learnt": 42, "kept_back": 18}]
        usual = drift.validation(new.training["validation"])
        base = rehearsal.load(shipped_files.weights("rehearsal.safetensors"))
        said_of, inside = judge_weights.predict_rehearsed(new, base), base.valid_labels < len(CLASSES)
        assert usual.review_rate == pytest.approx(1 - said_of.filed[inside].mean(), abs=0.01)
        assert usual.confidence is not None
        assert self.in_force(tmp_path) == shipped.digest
        assert self.call(tmp_path, "promote", out, "--data", verdicts) == Exit.OK, capsys.readouterr().out
        assert self.in_force(tmp_path) == new.digest
        report = (tmp_path / "state" / "weights" / f"{new.digest}.md").read_text()
        assert "**Passed**" in report
        assert "base validation, after" in report
        assert "verdicts kept back, after" in report
        assert self.call(tmp_path, "rollback") == Exit.OK
        assert self.in_force(tmp_path) == shipped.digest
        assert self.call(tmp_path, "rollback") == Exit.FAILED
        assert "nothing is promoted" in capsys.readouterr().err

    def test_each_rollback_takes_one_promotion_back(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The weights of just before are in force again, also where they had been before; all of it stays on record."""
        for name in "ab":
            checkpoint.save(replace(shipped, training={"run": name}), tmp_path / name)
        a, b = (checkpoint.load(tmp_path / name).digest for name in "ab")
        for name in "aba":
            assert self.call(tmp_path, "promote", tmp_path / name) == Exit.OK
        assert f"rollback would put {b} in force again" in capsys.readouterr().out
        forces = [self.in_force(tmp_path)]
        for _ in range(2):
            assert self.call(tmp_path, "rollback") == Exit.OK
            forces.append(self.in_force(tmp_path))
        assert self.call(tmp_path, "promote", tmp_path / "b") == Exit.OK
        assert self.call(tmp_path, "rollback") == Exit.OK
        assert self.call(tmp_path, "rollback") == Exit.OK
        assert [*forces, self.in_force(tmp_path)] == [a, b, a, shipped.digest]
        capsys.readouterr()
        assert self.call(tmp_path, "rollback", "--list") == Exit.OK
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[:-1]] == [a, b, a, b]
        assert all("promoted 20" in line and "taken back 20" in line for line in lines[:-1])
        assert lines[-1] == f"in force: {shipped.digest} (as shipped)"

    def test_a_file_that_changes_while_it_is_judged(self, tmp_path: Path, shipped: checkpoint.Checkpoint) -> None:
        """Only judged weights are put in force: another file under their name is refused, and leaves nothing."""
        for name in "ab":
            checkpoint.save(replace(shipped, training={"run": name}), tmp_path / name)
        judged = checkpoint.load(tmp_path / "a").digest
        with pytest.raises(Fatal, match="another file now"):
            weights_in_force.put_in_force(tmp_path / "state", tmp_path / "b", judged, None, "me")
        assert list((tmp_path / "state" / promotions.DIRECTORY).glob("*.safetensors")) == []
        assert self.in_force(tmp_path) == shipped.digest

    def test_weights_judged_by_what_is_no_longer_in_force(self, tmp_path: Path, shipped: checkpoint.Checkpoint) -> None:
        """Of two promotions at once the second is refused: it was not judged by what is in force now."""
        for name in "ab":
            checkpoint.save(replace(shipped, training={"run": name}), tmp_path / name)
        a, b = (checkpoint.load(tmp_path / name).digest for name in "ab")
        weights_in_force.put_in_force(tmp_path / "state", tmp_path / "a", a, None, "me")
        with pytest.raises(Fatal, match="other weights were put in force meanwhile"):
            weights_in_force.put_in_force(tmp_path / "state", tmp_path / "b", b, None, "me")
        assert self.in_force(tmp_path) == a

    def test_who_changes_the_list_is_waited_for(self, tmp_path: Path) -> None:
        """Two that change it one after the other both have their entry: none is lost."""
        told = (
            "import sys, time; from pathlib import Path; from watcher.model import promotions\n"
            "state = Path(sys.argv[1])\n"
            "with promotions.locked(state):\n"
            "    known = promotions.history(state)\n"
            "    time.sleep(0.2)\n"
            "    promotions.write(state, [*known, promotions.Promotion('d', 'now', 'me')])"
        )
        at_once = [subprocess.Popen([sys.executable, "-c", told, str(tmp_path)]) for _ in range(3)]
        assert [each.wait() for each in at_once] == [0, 0, 0]
        assert len(promotions.history(tmp_path)) == 3

    def test_promoting_again_what_is_in_force(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is said, nothing is judged or changed, and one rollback still goes back to the weights of before."""
        checkpoint.save(replace(shipped, training={"run": "a"}), tmp_path / "a")
        assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.OK
        before = promotions.history(tmp_path / "state")
        capsys.readouterr()
        assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.OK
        assert "is in force already: nothing to do" in capsys.readouterr().out
        assert promotions.history(tmp_path / "state") == before
        assert self.call(tmp_path, "rollback") == Exit.OK
        assert self.in_force(tmp_path) == shipped.digest

    def test_rollback_where_the_config_names_weights(self, tmp_path: Path, shipped: checkpoint.Checkpoint) -> None:
        """A rollback would change nothing that is in force: it is refused with advice, and takes nothing back."""
        checkpoint.save(replace(shipped, training={"run": "a"}), tmp_path / "a")
        assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.OK
        (tmp_path / "config.yaml").write_text("model: {weights: x.safetensors}\n")
        assert self.call(tmp_path, "rollback") == Exit.CONFIG
        assert [entry.taken_back for entry in promotions.history(tmp_path / "state")] == [None]

    def test_bad_weights_are_refused(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A fine-tune that ruins a class does not come into force: exit code 1, and nothing changes."""
        spoilt = {**shipped.tensors, "fc3.bias": shipped.tensors["fc3.bias"] + np.array([60, 0, 0], np.float32)}
        checkpoint.save(replace(shipped, tensors=spoilt, thresholds={"min_confidence": 0.5}), tmp_path / "bad")
        assert self.call(tmp_path, "promote", tmp_path / "bad") == Exit.FAILED
        assert "refused" in capsys.readouterr().out
        assert self.in_force(tmp_path) == shipped.digest
        assert promotions.history(tmp_path / "state") == []

    def test_judged_at_the_operating_point_of_the_config(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Both are judged as the daemon here would decide: weights that are as good by default may be worse there."""
        point = {"accept_rate": 0.9, "wrong_rate": 0.0, "min_confidence": 0.0, "max_distance": 2.0}
        checkpoint.save(replace(shipped, operating=(point,)), shipped_files.weights())
        worse = replace(shipped, operating=({**point, "max_distance": -1.0},), training={"run": "worse"})
        checkpoint.save(worse, tmp_path / "worse")
        (tmp_path / "config.yaml").write_text("review: {accept_rate: 0.9}\n")
        assert self.call(tmp_path, "promote", tmp_path / "worse") == Exit.FAILED
        assert "fewer are right" in capsys.readouterr().out
        (tmp_path / "config.yaml").write_text("")
        assert self.call(tmp_path, "promote", tmp_path / "worse") == Exit.OK

    def test_weights_named_in_the_config(self, tmp_path: Path, shipped: checkpoint.Checkpoint) -> None:
        """If the config names weights, promoting would change nothing: it is refused with advice."""
        (tmp_path / "config.yaml").write_text("model: {weights: x.safetensors}\n")
        assert self.call(tmp_path, "promote", tmp_path / "bad") == Exit.CONFIG

    def test_few_verdicts_teach_nothing(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, verdicts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """From a handful of images nothing is learnt, and no file is written."""
        for path in sorted((verdicts / "Hand").iterdir())[9:]:
            path.unlink()
        assert self.call(tmp_path, "adapt", "--data", verdicts, "--out", tmp_path / "new") == Exit.DIRECTORY
        assert "kept back for promote. Collect at least 15 verdicts" in capsys.readouterr().err
        [first, *_] = (verdicts / "Hand").iterdir()
        for number in range(20):
            shutil.copy(first, verdicts / "Hand" / f"copy{number}.png")
        assert self.call(tmp_path, "adapt", "--data", verdicts, "--out", tmp_path / "new") == Exit.DIRECTORY
        assert "has 7 different images" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    def test_the_new_weights_come_where_none_are_in_use(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, verdicts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Not over those in force, linked or not, for nobody judged them; told before the work, as is an odd place."""
        place = shipped_files.weights()
        (tmp_path / "link").symlink_to(place)
        held = place.read_bytes()
        own = promotions.weights_file(tmp_path / "state", "d")
        for out, code in ((place, Exit.USAGE), (tmp_path / "link", Exit.USAGE), (own, Exit.USAGE)):
            assert self.call(tmp_path, "adapt", "--data", verdicts, "--out", out) == code
            assert "nobody had judged them" in capsys.readouterr().err
        assert place.read_bytes() == held
        for out in (tmp_path, Path("/dev/null"), tmp_path / "config.yaml" / "new"):
            assert self.call(tmp_path, "adapt", "--data", tmp_path / "nowhere", "--out", out) == Exit.DIRECTORY
            assert f"--out {out} can not be written: " in capsys.readouterr().err

    def test_other_weights_in_the_place_of_promoted_ones(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A file put there by another way than `promote` is not taken: nobody judged it."""
        for name in "ab":
            checkpoint.save(replace(shipped, training={"run": name}), tmp_path / name)
        assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.OK
        place = promotions.weights_path(None, loader.load(tmp_path / "config.yaml", {}))
        place.write_bytes((tmp_path / "b").read_bytes())
        with pytest.raises(Fatal, match="other weights than its name says") as caught:
            checkpoint.load(place)
        assert caught.value.code is Exit.MODEL
        assert self.call(tmp_path, "rollback") == Exit.OK

    def test_other_trunk_needs_images_to_judge_by(
        self,
        tmp_path: Path,
        shipped: checkpoint.Checkpoint,
        verdicts: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Weights with other convolutions can not be judged by the base data: they need other images."""
        first = next(name for name in shipped.tensors if name.startswith("convs."))
        other = {**shipped.tensors, first: shipped.tensors[first] * 1.001}
        checkpoint.save(replace(shipped, tensors=other), tmp_path / "other")
        assert self.call(tmp_path, "promote", tmp_path / "other") == Exit.USAGE
        assert self.call(tmp_path, "promote", tmp_path / "other", "--data", verdicts) == Exit.USAGE
        assert "verdicts alone are too few" in capsys.readouterr().err
        assert promotions.history(tmp_path / "state") == []
        assert self.call(tmp_path, "promote", tmp_path / "other", "--reference", verdicts) == Exit.OK
        assert "base validation: not judged" in capsys.readouterr().out

    def test_copy_that_was_damaged_is_made_anew(self, tmp_path: Path, shipped: checkpoint.Checkpoint) -> None:
        """Weights promoted before whose copy is garbage by now are copied again, not put in force as they are."""
        checkpoint.save(replace(shipped, training={"run": "a"}), tmp_path / "a")
        place = promotions.weights_file(tmp_path / "state", checkpoint.load(tmp_path / "a").digest)
        place.parent.mkdir(parents=True)
        place.write_bytes(b"garbage")
        assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.OK
        assert self.in_force(tmp_path) == checkpoint.load(tmp_path / "a").digest

    def test_the_daemons_user_may_read_it(self, tmp_path: Path, shipped: checkpoint.Checkpoint) -> None:
        """An administrator's umask does not keep the daemon from what was promoted: it would not start."""
        checkpoint.save(replace(shipped, training={"run": "a"}), tmp_path / "a")
        before = os.umask(0o077)
        try:
            assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.OK
        finally:
            os.umask(before)
        place = tmp_path / "state" / "weights"
        modes = {path.suffix: path.stat().st_mode & 0o777 for path in (place, *place.iterdir())}
        assert modes == {"": 0o755, ".json": 0o644, ".safetensors": 0o644, ".md": 0o600}

    def test_promoted_weights_that_were_damaged(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The list still tells what was promoted, and what to do; a rollback goes back to the weights of before."""
        checkpoint.save(replace(shipped, training={"run": "a"}), tmp_path / "a")
        digest = checkpoint.load(tmp_path / "a").digest
        assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.OK
        promotions.weights_file(tmp_path / "state", digest).write_bytes(b"garbage")
        capsys.readouterr()
        assert self.call(tmp_path, "rollback", "--list") == Exit.OK
        told = capsys.readouterr().out
        assert told.startswith(f"{digest}  promoted 20")
        assert "can not be read" in told and "`mednet-watcher rollback` goes back" in told
        assert self.call(tmp_path, "rollback") == Exit.OK
        assert self.in_force(tmp_path) == shipped.digest

    def test_no_room_for_the_copy(
        self,
        tmp_path: Path,
        shipped: checkpoint.Checkpoint,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """It is told with its place, exit code 5; nothing changes, and no half of a copy stays."""

        def full(_: Path, to: Path) -> None:
            to.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))

        checkpoint.save(replace(shipped, training={"run": "a"}), tmp_path / "a")
        monkeypatch.setattr(shutil, "copyfile", full)
        assert self.call(tmp_path, "promote", tmp_path / "a") == Exit.DIRECTORY
        assert "No space left" in capsys.readouterr().err
        assert promotions.history(tmp_path / "state") == []
        assert [path.suffix for path in (tmp_path / "state" / "weights").iterdir()] == [".md"]

    @pytest.mark.parametrize("option", ["--reference", "--data"])
    def test_a_wrong_path_is_told_as_what_it_is(
        self, tmp_path: Path, shipped: checkpoint.Checkpoint, capsys: pytest.CaptureFixture[str], option: str
    ) -> None:
        """No such directory, a file, one class's own directory, or no images: the advice fits, whatever the option."""
        checkpoint.save(replace(shipped, training={"run": "a"}), tmp_path / "a")
        (tmp_path / "set" / "Hand").mkdir(parents=True)
        (tmp_path / "empty").mkdir()
        Image.fromarray(pictures(3, 1, 7)[0]).save(tmp_path / "set" / "Hand" / "0.png")
        for place, code, told in (
            ("nowhere", Exit.DIRECTORY, "nowhere does not exist"),
            ("a", Exit.DIRECTORY, "a is no directory"),
            ("set/Hand", Exit.DIRECTORY, f"Did you mean {tmp_path / 'set'}?"),
            ("empty", Exit.DIRECTORY, "Expected class directories with images: DIR/<class>/<file>."),
        ):
            assert self.call(tmp_path, "promote", tmp_path / "a", option, tmp_path / place) == code
            error = capsys.readouterr().err
            assert told in error, error
            assert "--data" not in error
        assert self.call(tmp_path, "promote", tmp_path / "nowhere", option, tmp_path / "set") == Exit.MODEL
        assert "made by train or adapt" in capsys.readouterr().err
        assert promotions.history(tmp_path / "state") == []


def test_damaged_history_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of promotions that can not be read stops the start with advice; it is not taken for an empty one."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "in-force.json").write_text("[{")
    with pytest.raises(Fatal) as caught:
        promotions.in_force(tmp_path)
    assert caught.value.code is Exit.DIRECTORY
    assert "remove it" in caught.value.advice
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
        with pytest.raises(Fatal) as caught:  # nothing is wrong with it
            promotions.in_force(tmp_path)
    assert caught.value.advice == "Run this as the daemon's user, or as root."
    (tmp_path / "weights" / "in-force.json").write_text(json.dumps([{"digest": "d", "when": "w", "who": "x"}]))
    assert promotions.in_force(tmp_path) == tmp_path / "weights" / "d.safetensors"


def test_features_of_other_width_are_refused(net: mednet.MedNet) -> None:
    """Features of another network give no distance for this one."""
    from watcher.model import classifier

    odd = checkpoint.Checkpoint(
        "odd", net.config.to_dict(), CLASSES, out_of_distribution.fit(np.ones((2, 5))).tensors()
    )
    with pytest.raises(Fatal) as caught:
        classifier.known_images(odd)
    assert caught.value.code is Exit.MODEL
