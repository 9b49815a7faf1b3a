"""How a training is gone on with: the last checkpoint, and the lock that keeps others away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from watcher.core.errors import Exit, Fatal
from watcher.training.fit import resume

pytestmark = pytest.mark.usefixtures("one_thread")


def last(directory: Path, seed: int = 1, rate: float = 0.1, *, averaged: bool = True) -> resume.Last:
    """A network of three numbers, which differ each time."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    return resume.Last(directory, {"rate": rate}, seed, net, optimizer, AveragedModel(net) if averaged else None)


def train(run: resume.Last) -> None:
    run.net(torch.ones(1, 2)).sum().backward()
    run.optimizer.step()
    if run.averaged is not None:
        run.averaged.update_parameters(run.net)


def tensors(run: resume.Last) -> list[torch.Tensor]:
    momentum = [run.optimizer.state[each]["momentum_buffer"] for each in run.net.parameters()]
    mean = [] if run.averaged is None else list(run.averaged.state_dict().values())
    return [*run.net.state_dict().values(), *momentum, *mean]


class TestLast:
    @pytest.mark.parametrize("averaged", [True, False])
    def test_all_is_put_back(self, tmp_path: Path, averaged: bool) -> None:
        """Network, momentum, average, random state and the run's own progress are those that were saved."""
        run, again = (last(tmp_path / "run", averaged=averaged) for _ in range(2))
        train(run)
        run.save(done=7)
        chance = torch.rand(3)
        state = again.restore()
        assert state is not None and state["done"] == 7
        assert torch.equal(torch.rand(3), chance)
        assert all(torch.equal(one, other) for one, other in zip(tensors(run), tensors(again), strict=True))

    @pytest.mark.usefixtures("full_disk")
    def test_a_full_disk_is_told_and_leaves_what_was_there(self, tmp_path: Path) -> None:
        """The checkpoint before stays, and the error says which file could not be written."""
        (tmp_path / "last.pt").write_bytes(b"before")
        with pytest.raises(OSError, match="torch could not write it") as caught:
            last(tmp_path).save(history=["x" * 9000])
        assert caught.value.filename == str(tmp_path / "last.pt")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]

    def test_reads_what_earlier_versions_wrote(self, tmp_path: Path) -> None:
        """These are the keys of the file: trainings under way are gone on with by later versions."""
        run = last(tmp_path)
        parts = {"net": run.net.state_dict(), "optimizer": run.optimizer.state_dict()}
        mean = run.averaged.state_dict() if run.averaged is not None else None
        state = {**parts, "averaged": mean, "random": torch.get_rng_state(), "recipe": {"rate": 0.1}, "seed": 1}
        torch.save({**state, "history": [3]}, tmp_path / "last.pt")
        again = last(tmp_path)
        assert (again.restore() or {})["history"] == [3]
        assert torch.equal(run.net.state_dict()["weight"], again.net.state_dict()["weight"])
        again.save(history=[3])
        assert torch.load(tmp_path / "last.pt", weights_only=True).keys() == {*state, "history"}

    def test_nothing_there(self, tmp_path: Path) -> None:
        """A run that has not begun has no progress, and its network stays as it is."""
        run = last(tmp_path)
        before = run.net.state_dict()["weight"].clone()
        assert run.restore() is None
        assert torch.equal(before, run.net.state_dict()["weight"])

    @pytest.mark.parametrize(("seed", "rate"), [(2, 0.1), (1, 0.2)])
    def test_another_is_refused(self, tmp_path: Path, seed: int, rate: float) -> None:
        """Of another seed or recipe: refused before anything of the run has changed."""
        last(tmp_path).save()
        run = last(tmp_path, seed, rate)
        before = run.net.state_dict()["weight"].clone()
        with pytest.raises(Fatal) as caught:
            run.restore()
        assert caught.value.code is Exit.USAGE
        assert torch.equal(before, run.net.state_dict()["weight"])

    @pytest.mark.parametrize("damage", ["cut short", "empty", "no such file format"])
    def test_damage_is_told(self, tmp_path: Path, damage: str) -> None:
        """The run is not begun anew in silence: hours may be in it. It is said what to remove to begin it anew."""
        last(tmp_path).save()
        good = (tmp_path / "last.pt").read_bytes()
        spoilt = {"cut short": good[: len(good) // 2], "empty": b"", "no such file format": b"checkpoint"}[damage]
        (tmp_path / "last.pt").write_bytes(spoilt)
        with pytest.raises(Fatal, match="is damaged") as caught:
            last(tmp_path).restore()
        assert caught.value.code is Exit.DIRECTORY
        assert str(tmp_path) in caught.value.advice

    def test_a_write_cut_short_leaves_the_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who dies while saving goes on from the checkpoint before."""
        run = last(tmp_path)
        run.save(done=1)

        def cut(state: object, path: Path) -> None:
            path.write_bytes(b"PK")
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            run.save(done=2)
        assert (last(tmp_path).restore() or {})["done"] == 1


class TestClaimed:
    def test_one_has_it(self, tmp_path: Path) -> None:
        """Of two who ask one gets it; the next after it was given up."""
        path = tmp_path / "work" / "run.lock"
        with resume.claimed(path) as ours, resume.claimed(path) as theirs:
            assert (ours, theirs) == (True, False)
        with resume.claimed(path) as again:
            assert again

    def test_given_up_by_an_error(self, tmp_path: Path) -> None:
        """Who fails at it keeps nobody away."""
        with pytest.raises(KeyboardInterrupt), resume.claimed(tmp_path / "run.lock"):
            raise KeyboardInterrupt
        with resume.claimed(tmp_path / "run.lock") as again:
            assert again
