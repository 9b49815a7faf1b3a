"""The command line as its users and other programs call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import waiting
from tests.support.daemon import Sampler, mednet
from tests.support.repository import TOP
from tests.support.torch_missing import needs_torch
from tests.support.waiting import LONGEST_S
from watcher.cli import main
from watcher.core import shipped_files
from watcher.model import checkpoint

CLASSES = {"ChestCT", "BreastMRI", "CXR", "AbdomenCT", "HeadCT", "Hand"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of class directories with synthetic images, and some that are none."""
    root, sampler = tmp_path_factory.mktemp("data"), Sampler(seed=3)
    for label in sampler.classes:
        (root / label).mkdir()
        for number in range(3):
            (root / label / f"{number}.jpeg").write_bytes(sampler.jpeg(label))
    return root


def test_help_is_quick_and_torch_free() -> None:
    """``--help`` costs less than 0.3 s of CPU (best of five) and imports no torch."""
    spent = []
    for _ in range(5):
        started = os.times()
        assert mednet("--help", fresh=True).returncode == 0
        ended = os.times()
        spent.append(ended.children_user + ended.children_system - started.children_user - started.children_system)
    assert min(spent) < 0.3
    code = "import sys, watcher.cli.main; watcher.cli.main.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_exists() -> None:
    """Each command named in the help has a module with ``run``."""
    import importlib

    names = main.parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for name, command in names.items():
        module = importlib.import_module(f"watcher.cli.commands.{command.get_default('module')}")
        assert callable(module.run), name


def test_shipped_weights_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--weights mednet-improved`` is the shipped file of that name, unless a file of the user's is called so."""
    monkeypatch.chdir(tmp_path)

    def meant(word: str) -> Path:
        return main.parser().parse_args(["evaluate", "--data", "d", "--weights", word]).weights

    assert meant("mednet-improved") == shipped_files.weights("mednet-improved.safetensors")
    assert meant("mednet-imporved") == Path("mednet-imporved")
    assert meant("./mednet-improved") == Path("mednet-improved")
    (tmp_path / "mednet-improved").touch()
    assert meant("mednet-improved") == Path("mednet-improved")


def test_unknown_command_is_a_usage_error() -> None:
    """Wrong arguments exit with code 2 and name what there is."""
    ended = mednet("sort")
    assert ended.returncode == 2
    assert "invalid choice" in ended.stderr


@pytest.mark.parametrize("words", [["undo", "--id"], ["undo", "--batch"], ["explain", "--id"]])
def test_a_number_that_no_ledger_has_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A number that SQLite can not hold is refused, and not a traceback."""
    with pytest.raises(SystemExit) as ended:
        main.parser().parse_args([*words, "9" * 20])
    assert ended.value.code == 2
    assert "more than the ledger can hold" in capsys.readouterr().err
    assert main.parser().parse_args([*words, str(2**63 - 1)])


class TestClosedStreams:
    """Started by something that closed standard streams, as an old init script does."""

    @pytest.mark.parametrize("command", ["status", "check-config", "audit"])
    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
    def test_a_command_does_its_work(self, tmp_path: Path, command: str, closed: str) -> None:
        """Its exit code says what it would say, and nothing of ours is written into a file that got their number."""
        (tmp_path / "inbox").mkdir()
        (tmp_path / "config.yaml").touch()
        told = mednet(command, cwd=tmp_path)
        ended = _closed(closed, tmp_path, command)
        assert (ended.returncode, "Traceback" in told.stderr + ended.stderr) == (told.returncode, False)
        assert "2>&-" in closed or ended.stderr == told.stderr

    @needs_torch
    def test_the_daemon_sorts(self, tmp_path: Path) -> None:
        """Files are sorted, the log file has the lines, SIGTERM ends it."""
        (tmp_path / "inbox").mkdir()
        (tmp_path / "config.yaml").write_text("log: {file: x.log}\n")
        (tmp_path / "inbox" / "x.jpeg").write_bytes(Sampler(seed=1).jpeg("CXR"))
        ended = _closed("<&- >&- 2>&-", tmp_path, "run", until=tmp_path / "sorted" / "CXR" / "x.jpeg")
        assert ended.returncode == 0
        assert '"image.sorted"' in (tmp_path / "x.log").read_text()


def _closed(which: str, cwd: Path, *words: str, until: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {which}', "sh", sys.executable, "-m", "watcher", *words]
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=cwd, env=environ) as process:
        if until is not None:
            waiting.until(lambda: until.exists() or process.poll() is not None)
            process.terminate()
        out, err = process.communicate(timeout=LONGEST_S)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class TestClassify:
    def test_json_is_one_object_for_every_file(self, tmp_path: Path, folder: Path) -> None:
        """Good, damaged, missing, linked and special files: a line each, in the order given, with the agreed keys."""
        good = folder / "CXR" / "0.jpeg"
        (tmp_path / "half.jpeg").write_bytes(good.read_bytes()[:500])
        (tmp_path / "empty.jpeg").touch()
        (tmp_path / "link.jpeg").symlink_to(good)
        os.mkfifo(tmp_path / "fifo.jpeg")
        (tmp_path / os.fsdecode(b"caf\xe9\n.jpeg")).write_bytes(good.read_bytes())
        names = ["half.jpeg", "empty.jpeg", "link.jpeg", "fifo.jpeg", os.fsdecode(b"caf\xe9\n.jpeg"), "missing.jpeg"]
        paths = [str(tmp_path / name) for name in names] + [str(good), str(good)]
        ended = mednet("classify", "--json", *paths)
        lines = [json.loads(line) for line in ended.stdout.splitlines()]
        assert [line["path"] for line in lines] == paths
        assert all(
            {"path", "outcome", "class", "confidence", "reason", "top", "model"} <= line.keys() for line in lines
        )
        reasons = [line["reason"] for line in lines]
        assert reasons[:4] == ["truncated", "empty", "not_a_file", "not_a_file"]
        assert reasons[5:] == ["not_found", None, None]
        assert [line["class"] for line in lines] == [None] * 4 + ["CXR", None, "CXR", "CXR"]
        assert ended.returncode == 1  # one was not found

    def test_sorted_lines_carry_the_top_three_and_the_model(self, folder: Path) -> None:
        """A sorted file's line has three classes, most probable first, and the digest of the shipped weights."""
        ended = mednet("classify", "--json", str(folder))
        lines = [json.loads(line) for line in ended.stdout.splitlines()]
        assert (ended.returncode, len(lines)) == (0, 18)
        digest = checkpoint.load(shipped_files.weights()).digest
        for line in lines:
            assert line["model"] == digest
            assert [line["class"], line["confidence"]] == line["top"][0]
            assert len(line["top"]) == 3
            assert line["top"] == sorted(line["top"], key=lambda each: -each[1])
            assert {name for name, _ in line["top"]} <= CLASSES

    def test_sort_into_copies_without_overwriting(self, tmp_path: Path, folder: Path) -> None:
        """Many files at once land in class directories made for them; a second time changes nothing."""
        target = tmp_path / "target"
        for _ in range(2):
            ended = mednet("classify", "--sort-into", str(target), str(folder))
            assert ended.returncode == 0, ended.stderr
            copies = [path for path in target.rglob("*") if path.is_file()]
            assert sorted(p.read_bytes() for p in copies) == sorted(p.read_bytes() for p in folder.rglob("*.jpeg"))
        assert {path.name for path in target.iterdir()} == CLASSES | {"review", "quarantine"}

    def test_a_blank_image_goes_to_review_on_request(self, tmp_path: Path) -> None:
        """With ``review.blank_images`` an image of one grey level goes to review, with the reason."""
        from PIL import Image

        Image.new("L", (64, 64), 80).save(tmp_path / "blank.png")
        asked = {"MEDNET_REVIEW__BLANK_IMAGES": "true"}
        line = json.loads(mednet("classify", "--json", str(tmp_path), env=asked).stdout)
        assert (line["outcome"], line["reason"]) == ("review", "blank_image")

    @needs_torch
    def test_a_reader_that_goes_away_is_no_error(self, folder: Path) -> None:
        """``classify ... | head -1`` ends quietly."""
        command = f'"{sys.executable}" -m watcher classify --json "{folder}" | head -1; exit ${{PIPESTATUS[0]}}'
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert "Traceback" not in ended.stderr


class TestEvaluate:
    def test_json_contract(self, folder: Path) -> None:
        """``evaluate --json`` prints total, correct, errors, classes, confusion and calibration, and they agree."""
        ended = mednet("evaluate", "--json", "--data", str(folder))
        told = json.loads(ended.stdout)
        assert set(told) == {
            *("total", "correct", "errors", "classes", "confusion"),
            *("calibration_error", "sure_errors"),
        }
        assert told["total"] == 18 == told["correct"] + len(told["errors"])
        assert set(told["classes"]) == CLASSES
        assert sum(told["confusion"][i][i] for i in range(6)) == told["correct"]

    def test_counts_a_broken_file_as_an_error(self, tmp_path: Path, folder: Path) -> None:
        """A file that does not decode is an error with no prediction, never left out."""
        (tmp_path / "CXR").mkdir()
        (tmp_path / "CXR" / "bad.jpeg").write_bytes(b"junk")
        (tmp_path / "CXR" / "good.jpeg").write_bytes((folder / "CXR" / "0.jpeg").read_bytes())
        told = json.loads(mednet("evaluate", "--json", "--data", str(tmp_path)).stdout)
        assert told["total"] == 2
        assert {"path": "CXR/bad.jpeg", "true": "CXR", "predicted": None, "confidence": 0.0} in told["errors"]

    def test_text_and_picture(self, tmp_path: Path, folder: Path) -> None:
        """The text names classes and the score; the picture is drawn."""
        picture = tmp_path / "confusion.png"
        ended = mednet("evaluate", "--data", str(folder), "--picture", str(picture))
        assert ended.returncode == 0, ended.stderr
        assert "of 18" in ended.stdout
        assert all(name in ended.stdout for name in CLASSES)
        assert picture.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("words", [["--data", "nowhere"], ["--data", ".", "--split", "nowhere.csv"]])
    def test_missing_data_is_told(self, tmp_path: Path, words: list[str]) -> None:
        """Missing data or split: exit code 5, a message, no traceback."""
        ended = mednet("evaluate", *words, cwd=tmp_path)
        assert (ended.returncode, "Traceback" in ended.stderr) == (5, False)
        assert "nowhere" in ended.stderr

    def test_a_picture_of_another_kind_is_refused(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Before anything is judged: else the figures would be lost with the picture."""
        assert main.main(["evaluate", "--data", str(folder), "--picture", "x.foo"]) == 2
        assert "ends in .png" in capsys.readouterr().err

    def test_unknown_classes_are_told(self, tmp_path: Path) -> None:
        """A class directory that the weights do not know is named."""
        (tmp_path / "Knee").mkdir()
        (tmp_path / "Knee" / "x.jpeg").write_bytes(b"x")
        ended = mednet("evaluate", "--data", str(tmp_path))
        assert (ended.returncode, "Knee" in ended.stderr) == (5, True)
