"""The config file: defaults, overlay, and every mistake told at once with its place."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.repository import TOP
from watcher.cli.commands import check_config
from watcher.config import loader
from watcher.config.loader import Config, ConfigError
from watcher.core.errors import Exit

SHIPPED = TOP / "config.yaml"
KEYS = sorted(["mode", *(f"{section}.{key}" for section, model in Config().sections() for key, _ in model)])


def keys(told: dict[str, Any]) -> list[str]:
    """Every key, with its section if it has one."""
    return sorted(
        name if not isinstance(value, dict) else f"{name}.{key}" for name, value in told.items() for key in _in(value)
    )


def _in(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else [""]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of the test's config file, which does not exist yet."""
    return tmp_path / "config.yaml"


def load(file: Path, text: str | bytes, **environ: str) -> Config:
    """Write the file, then load it."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return loader.load(file, environ)


def problems(file: Path, text: str | bytes, **environ: str) -> list[str]:
    """The problems, without the directory of the file."""
    with pytest.raises(ConfigError) as caught:
        load(file, text, **environ)
    return [problem.replace(f"{file.parent}{os.sep}", "") for problem in caught.value.problems]


class TestShippedFile:
    def test_holds_the_defaults(self) -> None:
        """The shipped config.yaml says what holds without it."""
        assert loader.load(SHIPPED, {}) == Config().resolve_paths(SHIPPED.parent)

    def test_shows_every_key(self) -> None:
        """No key is left for the operator to guess, and none is there that does nothing."""
        assert keys(yaml.safe_load(SHIPPED.read_text())) == KEYS

    def test_explains_every_key(self) -> None:
        """A comment stands right above each key and each section."""
        lines = SHIPPED.read_text().splitlines()
        bare = [line for above, line in itertools.pairwise(lines) if _is_key(line) and "#" not in above]
        assert bare == []


def _is_key(line: str) -> bool:
    return line.lstrip()[:1].isalpha()


class TestValues:
    @pytest.mark.parametrize("text", ["", "\n# nothing set\n", "---\n", "null", "\ufeff", "inbox:\nbatch: {}\n"])
    def test_nothing_set_means_defaults(self, file: Path, text: str) -> None:
        """A file, or a section, without keys keeps every default."""
        assert load(file, text) == Config().resolve_paths(file.parent)

    def test_values_are_taken(self, file: Path) -> None:
        """A key that is set has its value, and the keys beside it keep their defaults."""
        taken = load(file, "batch:\n  size: 1_000\ninbox: {settle_s: 1e-1, ignore: ['*.x']}\nmodel: {weights: w}")
        assert (taken.batch.size, taken.batch.max_wait_ms) == (1000, 25.0)
        assert (taken.inbox.settle_s, taken.inbox.ignore) == (0.1, ("*.x",))
        assert taken.model.weights == file.parent / "w"

    def test_leading_zero_is_no_octal(self, file: Path) -> None:
        """``064`` is sixty-four, not the 52 that YAML 1.1 would make of it."""
        assert load(file, "batch: {size: 064}").batch.size == 64

    def test_words_stay_words(self, file: Path) -> None:
        """A directory may be called ``no`` or ``2024-01-01``: only numbers and null need quotes to be text."""
        taken = load(file, "output: {sorted: no, review: 2024-01-01, quarantine: '7'}").output
        assert [path.name for path in (taken.sorted, taken.review, taken.quarantine)] == ["no", "2024-01-01", "7"]

    def test_relative_paths_start_at_the_file(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relative paths do not depend on where the daemon was started; absolute paths stay as they are."""
        file.write_text("inbox: {path: in}\noutput: {sorted: /elsewhere/sorted}\n")
        (file.parent / "deeper").mkdir()
        monkeypatch.chdir(file.parent / "deeper")
        taken = loader.load(Path("..", file.name), {})
        assert os.path.normpath(taken.inbox.path) == str(file.parent / "in")
        assert taken.output.sorted == Path("/elsewhere/sorted")
        assert all(path.is_absolute() for path in (taken.inbox.path, taken.output.review, taken.state.path))

    def test_is_frozen(self) -> None:
        """Nobody changes a setting behind another's back."""
        with pytest.raises(ValidationError, match="frozen"):
            Config().batch.size = 1


class TestDefault:
    def test_here_first_then_the_service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A command that is not told takes config.yaml here, else that of the service, if there is one."""
        monkeypatch.chdir(tmp_path)
        service = tmp_path / "etc" / "config.yaml"
        monkeypatch.setattr(loader, "SERVICE_PATH", service)
        assert loader.default_path() == Path("config.yaml")
        service.parent.mkdir()
        service.touch()
        assert loader.default_path() == service
        Path("config.yaml").touch()
        assert loader.default_path() == Path("config.yaml")


class TestMistakes:
    def test_all_at_once_in_order_with_places(self, file: Path) -> None:
        """Three mistakes are three lines, each with the line and column of its key."""
        text = "inbox:\n  setle_s: 3\n  patience_s: fast\n\nbatch:\n    size: 0\n"
        assert problems(file, text) == [
            "config.yaml:2:3: inbox.setle_s: unknown key, did you mean `settle_s`?",
            "config.yaml:3:3: inbox.patience_s: must be a number greater than or equal to 0, not 'fast'",
            "config.yaml:6:5: batch.size: must be a whole number from 1 to 4096, not 0",
        ]

    def test_message_is_complete(self, file: Path) -> None:
        """The error by itself says how many, which, what to do, and carries exit code 3."""
        with pytest.raises(ConfigError) as caught:
            load(file, "batch:\n  size: big\n  sice: 2\n")
        first, *rest = str(caught.value).splitlines()
        assert first == f"{file} has 2 problems:"
        assert [line.startswith(f"  {file}:") for line in rest] == [True, True, False]
        assert "mednet-watcher check-config" in rest[-1]
        assert caught.value.code is Exit.CONFIG

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("decode: {timeout_s: 0}", "decode.timeout_s: must be a number greater than 0, not 0"),
            ("decode: {timeout_s: true}", "decode.timeout_s: must be a number greater than 0, not true"),
            ("batch: {size: true}", "batch.size: must be a whole number from 1 to 4096, not true"),
            ("batch: {size: 64.5}", "batch.size: must be a whole number from 1 to 4096, not 64.5"),
            ("batch: {size: '64'}", "batch.size: must be a whole number from 1 to 4096, not '64'"),
            *(
                (
                    f"drift: {{{key}: {2**63 - 1}}}",
                    f"drift.{key}: must be a whole number from 1 to 1000000, not {2**63 - 1}",
                )
                for key in ("window_files", "reference_files")
            ),
            ("batch: {size:}", "batch.size: must be a whole number from 1 to 4096, not nothing"),
            ("batch: {max_wait_ms: 1e999}", "batch.max_wait_ms: must be a number greater than or equal to 0, not inf"),
            ("batch: {max_wait_ms: [1]}", "batch.max_wait_ms: must be a number greater than or equal to 0, not a list"),
            ("review: {min_confidence: 2}", "review.min_confidence: must be a number from 0 to 1 or null, not 2"),
            ("inbox: {shared: yes}", "inbox.shared: must be true or false, not 'yes'"),
            ("review: {blank_images: 1}", "review.blank_images: must be true or false, not 1"),
            ("inbox: {watch: poll}", "inbox.watch: must be one of auto, events, scan, not 'poll'"),
            ("inbox: {path: 7}", "inbox.path: must be a path in quotes, not 7"),
            ("inbox: {path: ''}", "inbox.path: must not be empty"),
            ("inbox: {path: ~/in}", "inbox.path: must be written out: `~` does not stand for a home directory here"),
            ('inbox: {path: "a\\0b"}', "inbox.path: must not hold a NUL character"),
            ('inbox: {path: "\\ud800"}', "inbox.path: must be text that UTF-8 can write"),
            ("inbox: {ignore: '*.x'}", "inbox.ignore: must be a list of texts, not '*.x'"),
            ("inbox: {ignore: [a, 5]}", "inbox.ignore: item 2 must be text in quotes, not 5"),
            ("model: {weights: {a: b}}", "model.weights: must be a path in quotes or null, not a mapping"),
        ],
    )
    def test_wrong_values_in_plain_words(self, file: Path, text: str, problem: str) -> None:
        """A wrong value is told by what is wanted and what is there; true is no number, text is none either."""
        (found,) = problems(file, text)
        assert found.split(": ", 1)[1] == problem

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("inbx: {}", "config.yaml:1:1: inbx: unknown section, did you mean `inbox`?"),
            ("mode: shade", "config.yaml:1:1: mode: must be one of sort, shadow, not 'shade'"),
            ("mode: {inbox: 1}", "config.yaml:1:1: mode: must be one of sort, shadow, not a mapping"),
            ("inbox: {mode: shadow}", "config.yaml:1:9: inbox.mode: unknown key, did you mean `mode`?"),
            (
                "mode: shadow\ninbox: {shared: true}",
                "config.yaml:2:9: inbox.shared: must be false in shadow mode, which moves nothing",
            ),
            ("settle_s: 2", "config.yaml:1:1: settle_s: unknown section, did you mean `inbox.settle_s`?"),
            ("batch: {settle_s: 2}", "config.yaml:1:9: batch.settle_s: unknown key, did you mean `inbox.settle_s`?"),
            ("batch: {qqqqq: 2}", "config.yaml:1:9: batch.qqqqq: unknown key"),
            ("batch: {? [a] : 2}", "config.yaml:1:11: batch.?: a key must be a word, not a list"),
            ('batch: {"a\\nb": 2}', "config.yaml:1:9: batch.'a\\nb': unknown key"),
            ("batch: 5", "config.yaml:1:1: batch: must hold keys with values, not 5"),
            ("[1, 2]", "config.yaml:1:1: must hold sections with keys, not a list"),
            ("inbox", "config.yaml:1:1: must hold sections with keys, not 'inbox'"),
        ],
    )
    def test_wrong_shape(self, file: Path, text: str, problem: str) -> None:
        """A key or value that has no place in the file is named, with a guess at what was meant."""
        assert problems(file, text) == [problem]

    def test_duplicates(self, file: Path) -> None:
        """A key or section given twice is refused: otherwise the second would win in silence."""
        assert problems(file, "batch:\n  size: 1\n  size: 2\nlog: {}\nbatch: {}\n") == [
            "config.yaml:3:3: batch.size: duplicate key, first given on line 2",
            "config.yaml:5:1: batch: duplicate key, first given on line 1",
        ]


class TestUnusableFile:
    @pytest.mark.parametrize(
        ("text", "start"),
        [
            ("batch:\n  size: [1\n", "config.yaml:3:1: is not valid YAML: expected ',' or ']'"),
            ("batch:\n\tsize: 1\n", "config.yaml:2:1: is not valid YAML: found character '\\t'"),
            ("log: {}\n---\nlog: {}\n", "config.yaml:2:1: is not valid YAML: but found another document"),
            ("inbox:\n  ignore: [*.part]\n", "config.yaml:2:12: text that starts with * must be in quotes"),
            ("inbox:\n  ignore: [*part]\n", "config.yaml:2:12: text that starts with * must be in quotes"),
            ("a: &a [*a]", "config.yaml:1:8: text that starts with * must be in quotes"),
            ("batch: !!python/tuple [1]", "config.yaml:1:8: tags (words that start with !) are not supported"),
            ("[" * 5000, "config.yaml:1:10: is nested too deeply"),
            ("log: {}\na: \0", "config.yaml:2:4: holds a character that YAML forbids"),
            ('a: "\\UFFFFFFFF"', "config.yaml:1:"),
            (b"log: {}\na: \xff", "config.yaml:2:4: is not UTF-8 text (byte 0xff)"),
            ("log: {}".encode("utf-16"), "config.yaml:1:1: is not UTF-8 text (byte 0xff)"),
        ],
    )
    def test_says_where(self, file: Path, text: str | bytes, start: str) -> None:
        """A file that is not plain YAML is one problem, at its place."""
        (problem,) = problems(file, text)
        assert problem.startswith(start)

    def test_missing(self, file: Path) -> None:
        """A file that is not there is a problem, not a reason to run with defaults."""
        with pytest.raises(ConfigError) as caught:
            loader.load(file, {})
        assert caught.value.problems == (f"{file}: can not be read: No such file or directory",)

    def test_directory(self, tmp_path: Path) -> None:
        """So is a directory in its place."""
        with pytest.raises(ConfigError, match="can not be read: Is a directory"):
            loader.load(tmp_path, {})

    def test_mode(self, file: Path) -> None:
        """The one key without a section, from the file and from the environment."""
        assert [load(file, "mode: shadow").mode, load(file, "mode: shadow", MEDNET_MODE="sort").mode] == [
            "shadow",
            "sort",
        ]
        assert problems(file, "", MEDNET_MODE="x") == ["environment: MEDNET_MODE: must be one of sort, shadow, not 'x'"]

    def test_environment_is_checked_all_the_same(self, file: Path) -> None:
        """Mistakes in the environment are told along with a file that can not be read."""
        first, second = problems(file, "batch: [", MEDNET_BATCH__SIZE="big")
        assert first.startswith("config.yaml:1:")
        assert second.startswith("environment: MEDNET_BATCH__SIZE: must be a whole number")


class TestEnvironment:
    def test_wins_over_the_file(self, file: Path) -> None:
        """The environment replaces a value of the file, even a wrong one; other variables are left alone."""
        taken = load(file, "batch: {size: big}", MEDNET_BATCH__SIZE="32", MEDNET_HOME="x", PATH="y", OTHER__KEY="z")
        assert taken.batch.size == 32

    @pytest.mark.parametrize("path", ["in box #1", "a: b", "*x", "- x", "'in box #1'"])
    def test_paths_need_no_quotes(self, file: Path, path: str) -> None:
        """A path is taken as it stands, with any character that YAML would stumble over; quotes are taken off."""
        assert load(file, "", MEDNET_INBOX__PATH=path).inbox.path == file.parent / path.strip("'")

    def test_kinds(self, file: Path) -> None:
        """null, numbers and lists are read as in the file; relative paths start at the file."""
        taken = load(
            file,
            "review: {min_confidence: 0.5}\nmodel: {weights: x}",
            MEDNET_REVIEW__MIN_CONFIDENCE="null",
            MEDNET_MODEL__WEIGHTS="",
            MEDNET_INBOX__IGNORE='["*.a", b]',
            MEDNET_STATE__PATH="../there",
        )
        assert (taken.review.min_confidence, taken.model.weights) == (None, None)
        assert taken.inbox.ignore == ("*.a", "b")
        assert taken.state.path == file.parent / "../there"

    def test_one_underscore_too_few(self, file: Path) -> None:
        """A name that only lacks an underscore is told, not left alone: its value would count for nothing."""
        assert problems(file, "", MEDNET_BATCH_SIZE="32", MEDNET_INBOX_SCAN_INTERVAL_S="9") == [
            "environment: MEDNET_BATCH_SIZE: unknown name, did you mean `MEDNET_BATCH__SIZE`?",
            "environment: MEDNET_INBOX_SCAN_INTERVAL_S: unknown name, did you mean `MEDNET_INBOX__SCAN_INTERVAL_S`?",
        ]

    def test_mistakes(self, file: Path) -> None:
        """Wrong values and unknown names are told after those of the file, by the variable's name."""
        environ = {"MEDNET_BATCH__SIZE": "0", "MEDNET_BATCH__SICE": "1", "MEDNET_INBOX__IGNORE": "[*x]"}
        assert problems(file, "log: {level: loud}", **environ) == [
            "config.yaml:1:7: log.level: must be one of debug, info, warning, error, not 'loud'",
            "environment: MEDNET_BATCH__SICE: unknown name, did you mean `MEDNET_BATCH__SIZE`?",
            "environment: MEDNET_INBOX__IGNORE: text that starts with * must be in quotes"
            " (YAML's aliases are not supported)",
            "environment: MEDNET_BATCH__SIZE: must be a whole number from 1 to 4096, not 0",
        ]


class TestDirectories:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("output:\n  sorted: inbox", "2:3: output.sorted: must not be the same directory as inbox.path (inbox)"),
            ("output:\n  review: inbox/r", "2:3: output.review: must not lie inside inbox.path (inbox)"),
            ("state:\n  path: inbox/s", "2:3: state.path: must not lie inside inbox.path (inbox)"),
            ("inbox:\n  path: sorted/in", "2:3: inbox.path: must not lie inside output.sorted (sorted)"),
            (
                "output:\n  review: sorted",
                "2:3: output.review: must not be the same directory as output.sorted (sorted)",
            ),
            ("state:\n  path: ./review/", "2:3: state.path: must not be the same directory as output.review (review)"),
            ("inbox:\n  path: state", "2:3: state.path: must not be the same directory as inbox.path (state)"),
        ],
    )
    def test_must_not_feed_or_hide_each_other(self, file: Path, text: str, problem: str) -> None:
        """The daemon never sorts its own output, nor mixes outputs; told at the key that was set."""
        assert problems(file, text) == [f"config.yaml:{problem}"]

    def test_links_are_seen_through(self, file: Path) -> None:
        """A link to the inbox is the inbox, even where both have their defaults."""
        (file.parent / "inbox").mkdir()
        (file.parent / "sorted").symlink_to("inbox")
        assert problems(file, "") == [
            "config.yaml: output.sorted: must not be the same directory as inbox.path (inbox)"
        ]

    def test_environment_counts(self, file: Path) -> None:
        """A clash brought by the environment is told as the environment's."""
        (problem,) = problems(file, "", MEDNET_OUTPUT__REVIEW="inbox/x")
        assert problem == "environment: output.review: must not lie inside inbox.path (inbox)"

    def test_no_clash_with_a_default_that_is_not_meant(self, file: Path) -> None:
        """While the inbox's own path is wrong, nothing is said of its default."""
        (problem,) = problems(file, "inbox: {path: 5}\noutput: {sorted: inbox}")
        assert problem.startswith("config.yaml:1:9: inbox.path: must be a path")

    def test_a_precision_that_the_runtime_has_not(self, file: Path) -> None:
        """ONNX Runtime by name computes in float32: bfloat16 beside it is told at its line; with auto it is taken."""
        (problem,) = problems(file, "model:\n  runtime: onnxruntime\n  precision: bfloat16")
        assert problem == "config.yaml:3:3: model.precision: must be float32 where model.runtime is onnxruntime"
        for runtime in ("auto", "torch"):
            file.write_text(f"model: {{runtime: {runtime}, precision: bfloat16}}")
            assert loader.load(file, {}).model.precision == "bfloat16"

    def test_a_shared_inbox_has_no_directories(self, file: Path) -> None:
        """Of the two only one can be had, and check-config says so at the line."""
        (problem,) = problems(file, "inbox:\n  shared: true\n  recursive: true")
        assert problem == "config.yaml:3:3: inbox.recursive: must be false where inbox.shared is true: " + (
            "workers claim single files, not directories"
        )

    def test_inbox_may_lie_beside_the_ledger(self, file: Path) -> None:
        """One directory for everything, with the inbox inside it, is a common layout."""
        assert load(file, "state: {path: .}").state.path == file.parent


words = st.sampled_from(
    ["inbox", "output", "path", "sorted", "ignore", "settle_s", "size", "batch", "model", "weights"]
)
marks = st.sampled_from(
    [": ", "\n", "\n  ", "- ", "[", "]", "{", "}", "*", "&a", "!", "'", '"', "#", "? ", "<<", "|", "%"]
)
values = st.sampled_from(
    ["1", "-1", "1.5", "true", "~", "..", "a", "1" * 5000, '"\\ud800"', '"\\0"', "!!int x", ".nan"]
)
pieces = st.lists(words | marks | values | st.text(max_size=3), max_size=12).map("".join)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(words | leaves, t, max_size=3))
documents = pieces | trees.map(lambda tree: yaml.safe_dump(tree))
FILE_IS_REWRITTEN = HealthCheck.function_scoped_fixture


@settings(max_examples=300, suppress_health_check=[FILE_IS_REWRITTEN, HealthCheck.too_slow])
@given(text=documents, path=st.none() | pieces)
def test_loads_or_says_why(file: Path, text: str, path: str | None) -> None:
    """Any text in a file and in a variable either loads, or its problems are told, each on one line."""
    environ = {} if path is None else {"MEDNET_INBOX__PATH": path, "MEDNET_INBOX__IGNORE": path}
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(loader.load(file, environ), Config)
    except ConfigError as error:
        assert error.problems
        assert all(problem.isprintable() for problem in error.problems)


class TestCheckConfig:
    def run(self, file: Path, *, as_json: bool) -> int:
        return check_config.run(argparse.Namespace(config=file, json=as_json))

    def test_lines_can_be_kept_as_a_file(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The values in effect come as lines that are a config file of the same meaning."""
        load(file, "batch: {size: 3}")
        assert self.run(file, as_json=False) == 0
        first, lines = capsys.readouterr().out.split("\n", 1)
        assert first.startswith(f"{file} is fine")
        assert load(file.with_name("kept.yaml"), lines) == loader.load(file, {})

    def test_json(self, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """``--json`` prints one object with every key, the environment's values included."""
        load(file, "")
        monkeypatch.setenv("MEDNET_BATCH__SIZE", "5")
        assert self.run(file, as_json=True) == 0
        told = json.loads(capsys.readouterr().out)
        assert keys(told) == KEYS
        assert (told["batch"]["size"], told["inbox"]["path"]) == (5, str(file.parent / "inbox"))

    def test_makes_nothing(self, file: Path) -> None:
        """Checking leaves no directory behind."""
        load(file, "")
        self.run(file, as_json=False)
        assert os.listdir(file.parent) == [file.name]

    def test_costs_no_torch(self) -> None:
        """Checking a config does not load the network's library, nor numpy."""
        code = "import sys, watcher.cli.commands.check_config; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
