"""A training goes on from its last checkpoint, and its lock keeps others away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from watcher.core.errors import Exit, Fatal
from watcher.training.fit import resume

pytestmark = pytest.mark.usefixtures("one_thread")


def last(
    directory: Path, seed: int = 1, rate: float = 0.1, data: str = "", *, averaged: bool = True
) -> resume.LastCheckpoint:
    """A network of three numbers, which differ each time."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    identity = resume.Identity({"rate": rate}, seed, data)
    mean = AveragedModel(net) if averaged else None
    return resume.LastCheckpoint(directory, identity, net, optimizer, mean, torch.Generator())


def train(run: resume.LastCheckpoint) -> None:
    run.net(torch.ones(1, 2)).sum().backward()
    run.optimizer.step()
    if run.averaged is not None:
        run.averaged.update_parameters(run.net)


def tensors(run: resume.LastCheckpoint) -> list[torch.Tensor]:
    momentum = [run.optimizer.state[each]["momentum_buffer"] for each in run.net.parameters()]
    mean = [] if run.averaged is None else list(run.averaged.state_dict().values())
    return [*run.net.state_dict().values(), *momentum, *mean]


class TestLast:
    @pytest.mark.parametrize("averaged", [True, False])
    def test_all_is_put_back(self, tmp_path: Path, averaged: bool) -> None:
        """Network, momentum, average, both random states and the figures of each epoch are those that were saved."""
        run, again = (last(tmp_path / "run", averaged=averaged) for _ in range(2))
        train(run)
        torch.rand(2, generator=run.generator)
        run.save([{"epoch": 1}])
        numbers, drawn = torch.rand(3), torch.rand(3, generator=run.generator)
        assert again.restore() == [{"epoch": 1}]
        assert torch.equal(torch.rand(3), numbers)
        assert torch.equal(torch.rand(3, generator=again.generator), drawn)
        assert all(torch.equal(one, other) for one, other in zip(tensors(run), tensors(again), strict=True))

    @pytest.mark.usefixtures("full_disk")
    def test_a_full_disk_is_told_and_leaves_what_was_there(self, tmp_path: Path) -> None:
        """The checkpoint before stays, and the error says which file could not be written."""
        (tmp_path / "last.pt").write_bytes(b"before")
        with pytest.raises(OSError, match="torch could not write it") as caught:
            last(tmp_path).save([{"x": "x" * 9000}])
        assert caught.value.filename == str(tmp_path / "last.pt")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]

    @pytest.mark.parametrize("absent", ["data", "generator", "history"])
    def test_another_version_is_refused(self, tmp_path: Path, absent: str) -> None:
        """A run that was begun by a version with another form of the file is refused in words."""
        last(tmp_path).save([])
        state = torch.load(tmp_path / "last.pt", weights_only=True)
        del state[absent]
        torch.save(state, tmp_path / "last.pt")
        with pytest.raises(Fatal, match="another version") as caught:
            last(tmp_path).restore()
        assert caught.value.code is Exit.USAGE

    def test_nothing_there(self, tmp_path: Path) -> None:
        """A run that has not begun has no epochs, and its network stays as it is."""
        run = last(tmp_path)
        before = run.net.state_dict()["weight"].clone()
        assert run.restore() == []
        assert torch.equal(before, run.net.state_dict()["weight"])

    @pytest.mark.parametrize(("seed", "rate", "data"), [(2, 0.1, ""), (1, 0.2, ""), (1, 0.1, "other images")])
    def test_another_is_refused(self, tmp_path: Path, seed: int, rate: float, data: str) -> None:
        """Of another seed, recipe or of other images: refused before anything of the run has changed."""
        last(tmp_path).save([])
        run = last(tmp_path, seed, rate, data)
        before = run.net.state_dict()["weight"].clone()
        with pytest.raises(Fatal) as caught:
            run.restore()
        assert caught.value.code is Exit.USAGE
        assert torch.equal(before, run.net.state_dict()["weight"])

    @pytest.mark.parametrize("damage", ["cut short", "empty", "no such file format"])
    def test_damage_is_told(self, tmp_path: Path, damage: str) -> None:
        """The run is not begun anew in silence: hours may be in it. It is said what to remove to begin it anew."""
        last(tmp_path).save([])
        good = (tmp_path / "last.pt").read_bytes()
        spoilt = {"cut short": good[: len(good) // 2], "empty": b"", "no such file format": b"checkpoint"}[damage]
        (tmp_path / "last.pt").write_bytes(spoilt)
        with pytest.raises(Fatal, match="is damaged") as caught:
            last(tmp_path).restore()
        assert caught.value.code is Exit.DIRECTORY
        assert str(tmp_path) in caught.value.advice

    def test_a_write_cut_short_leaves_the_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A training that dies while it saves goes on from the checkpoint before."""
        run = last(tmp_path)
        run.save([{"epoch": 1}])

        def cut(state: object, path: Path) -> None:
            path.write_bytes(b"PK")
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            run.save([{"epoch": 2}])
        assert last(tmp_path).restore() == [{"epoch": 1}]


class TestClaimed:
    def test_one_has_it(self, tmp_path: Path) -> None:
        """Of two who ask one gets it; the next after it was given up."""
        path = tmp_path / "work" / "run.lock"
        with resume.claimed(path) as ours, resume.claimed(path) as theirs:
            assert (ours, theirs) == (True, False)
        with resume.claimed(path) as again:
            assert again

    def test_given_up_by_an_error(self, tmp_path: Path) -> None:
        """A training that ended by an error keeps nobody away."""
        with pytest.raises(KeyboardInterrupt), resume.claimed(tmp_path / "run.lock"):
            raise KeyboardInterrupt
        with resume.claimed(tmp_path / "run.lock") as again:
            assert again
