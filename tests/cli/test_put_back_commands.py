"""``retry``, ``undo`` and ``explain`` as a person calls them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, digest, mednet
from tests.support.filing_site import BROKEN, HAND, ODD, FilingSite
from tests.support.repository import TOP
from watcher.cli.commands import retry
from watcher.core.lock import Lock
from watcher.core.records import Decision, Identity, Outcome
from watcher.filing.quarantine_notes import ADVICE

SURE = Decision(Outcome.SORTED, "Hand", 0.99, top=(("Hand", 0.99), ("CXR", 0.006), ("CT", 0.004), ("MR", 0.0)))


@pytest.fixture
def site(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[FilingSite]:
    site = FilingSite(tmp_path, identify)
    (tmp_path / "config.yaml").touch()
    yield site
    site.book.close()


def call(site: FilingSite, *words: str) -> subprocess.CompletedProcess[str]:
    return mednet(*words, cwd=site.root)


def test_retry(site: FilingSite) -> None:
    """A line for each file, JSON on request; a dry run first, that changes nothing."""
    site.file(ODD, BROKEN)
    path = str(site.quarantine / ODD)
    planned = call(site, "retry", "--dry-run")
    assert (planned.returncode, planned.stdout.count("\n")) == (0, 1)
    assert "1 would be put back" in planned.stderr
    ended = call(site, "retry", "--json", os.path.join("quarantine", ODD))
    line = json.loads(ended.stdout)
    assert (ended.returncode, line["path"], line["state"], line["restores"]) == (0, path, "restored", 1)
    assert line["destination"] == str(site.inbox / ODD)
    assert "0 put back" in call(site, "retry").stderr


def test_undo(site: FilingSite) -> None:
    """Files filed in the last hour come back; those that were changed are left, with exit code 1."""
    site.file("a.png", HAND, b"a")
    site.file("b.png", HAND, b"b")
    (site.hand / "b.png").write_bytes(b"B")
    assert call(site, "undo", "--since", "1h", "--dry-run", "--to", "new").returncode == 1
    assert not (site.root / "new").exists()
    ended = call(site, "undo", "--since", "1h", "--to", "new")
    assert (ended.returncode, os.listdir(site.root / "new")) == (1, ["a.png"])
    assert "changed since it was filed" in ended.stdout
    assert "1 put back, 1 left alone" in ended.stderr


def test_undo_of_several_decisions(site: FilingSite) -> None:
    """Each decision that is named is taken back, once, and no other."""
    for name in ("a.png", "b.png", "c.png"):
        site.file(name, HAND)
    ended = call(site, "undo", "--id", "1", "--id", "3", "--id", "1", "--to", "new")
    assert (ended.returncode, sorted(os.listdir(site.root / "new"))) == (0, ["a.png", "c.png"])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["undo", "--id", "9"], 1, "no decision 9"),
        (["undo", "--id", "2"], 1, "itself put a file back"),
        (["undo", "--since", "noon"], 2, "is no time"),
        (["undo"], 2, "required"),
        (["retry", "./config.yaml"], 2, "does not lie in"),
        (["retry", "--reason", "empty", "x"], 2, "not both"),
        (["retry", "--reason", "nonsense"], 2, "Give one of damaged, decoder_crashed, decoder_hung, duplicate, empty,"),
        (["retry", "--reason", "low_confidence"], 2, "low_confidence is no reason for quarantine"),
        (["explain"], 2, "explain which file"),
        (["explain", "#9"], 1, "nothing is known of #9: the last decision is #2"),
        (["explain", "9"], 1, "nothing is known of 9: the last decision is #2"),
        (["explain", "x.png"], 1, "Give a path, a name, the number of a decision, or 8 or more digits of a SHA-256."),
        (["undo", "--id", "1", "--to", "config.yaml"], 5, "can not be made"),
        (["undo", "--id", "1", "--to", "sorted/Hand/again"], 2, "lies in output.sorted"),
        (["undo", "--id", "1", "--to", "sorted/../quarantine"], 2, "lies in output.quarantine"),
        (["undo", "--id", "1", "--to", "rejected"], 2, "lies in output.rejected"),
        (["undo", "--id", "1", "--to", "state/again"], 2, "lies in state.path"),
        (["undo", "--id", "1", "--to", "inbox/again"], 2, "lies in inbox.path"),
    ],
)
def test_mistakes_are_told(site: FilingSite, words: list[str], code: int, told: str) -> None:
    """Wrong arguments and unknown decisions: a message, an exit code, no traceback."""
    site.file("a.png", HAND)
    site.undo(number=1)
    ended = call(site, *words)
    assert (ended.returncode, told in ended.stderr, "Traceback" in ended.stderr) == (code, True, False), ended.stderr


@pytest.mark.parametrize("command", [["retry"], ["undo", "--since", "1h"], ["audit"], ["explain", "x"]])
def test_without_a_ledger(tmp_path: Path, command: list[str]) -> None:
    """Each command says that no daemon ever ran here, and makes nothing."""
    (tmp_path / "config.yaml").touch()
    ended = mednet(*command, cwd=tmp_path)
    assert (ended.returncode, "there is no ledger" in ended.stderr) == (5, True)
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_nothing_to_put_back_is_told(site: FilingSite) -> None:
    """A reason that no quarantined file has, or a time when nothing was filed, is no failure, and it is said."""
    site.file("a.png", BROKEN)
    for words, told in (
        (["retry", "--reason", "empty"], "the ledger knows of no quarantined file with the reason empty"),
        (["undo", "--since", "0s"], "no such file is filed"),
    ):
        ended = call(site, *words)
        assert (ended.returncode, told in ended.stderr) == (0, True), ended.stderr


def test_every_reason_for_quarantine_is_known() -> None:
    """`retry --reason` takes every reason for quarantine: of decoders, of their end, and of collisions."""
    stations = ("images", "filing")
    source = "".join(path.read_text() for name in stations for path in (TOP / "watcher" / name).rglob("*.py"))
    given = set(re.findall(r'(?:Reject\(|_reject_first\(child, |, decision, )"([a-z_]+)"', source)) - {"not_found"}
    assert {"truncated", "decoder_hung", "name_taken"} <= given <= set(retry.REASONS)
    assert set(ADVICE) <= set(retry.REASONS)


def test_a_second_one_is_told(site: FilingSite) -> None:
    """While a command is at work another exits with code 6."""
    held = Lock(site.path.with_name("operator.lock"))
    held.acquire()
    ended = call(site, "retry")
    assert (ended.returncode, "another retry, undo or review" in ended.stderr) == (6, True)
    held.release()


def test_nobody_reads_of_it(site: FilingSite) -> None:
    """A reader that goes away does not end the work half-way."""
    site.executor.carry_out([site.order(f"{n}.png", HAND, b"%d" % n) for n in range(300)])
    command = f'"{sys.executable}" -m watcher undo --since 1h | head -0'
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    ended = subprocess.run(["bash", "-c", command], cwd=site.root, env=environ, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr
    assert len(os.listdir(site.inbox)) == 300


def test_what_a_killed_one_left_is_told(site: FilingSite) -> None:
    """The next command says what it reconciled."""
    site.file("a.png", HAND)
    assert mednet("undo", "--id", "1", cwd=site.root, env={"MEDNET_FAILPOINT": "moved"}).returncode == -9
    ended = call(site, "retry")
    assert (ended.returncode, "decision 2, left by a killed command: filed" in ended.stderr) == (0, True)


def test_an_inbox_that_is_gone_is_not_made(site: FilingSite) -> None:
    """An absent inbox is often a mount that failed: nothing is put where it was."""
    site.file("a.png", HAND)
    site.inbox.rmdir()
    assert call(site, "undo", "--id", "1").returncode == 5
    assert (site.hand / "a.png").exists()
    assert not site.inbox.exists()


@pytest.mark.parametrize("known", ["by its sentinel", "by the ledger"])
def test_an_inbox_whose_mount_is_gone_is_not_filled(site: FilingSite, known: str) -> None:
    """Nor is anything put beneath the mount, where nobody would see it again."""
    site.file("a.png", HAND)
    if known == "by its sentinel":
        (site.root / "config.yaml").write_text("inbox: {sentinel: MOUNTED}\n")
    else:
        where = (os.fsencode(site.inbox), 4711, 4711)
        site.book._db.execute("insert or replace into place values (?, ?, ?)", where)
    ended = call(site, "undo", "--id", "1")
    assert (ended.returncode, "Mount" in ended.stderr or "mount" in ended.stderr) == (5, True)
    assert (site.hand / "a.png").exists()
    assert os.listdir(site.inbox) == []


def test_beside_a_running_daemon(tmp_path: Path) -> None:
    """A mended file is sorted as soon as it is retried; an undo says that the daemon sorts again what comes back."""
    from numpy.random import default_rng

    from tests.support.dropped_files import picture

    with Daemon(tmp_path, stub=True) as daemon:
        (daemon.inbox / "a.jpeg").write_bytes(b"junk")
        daemon.until_filed(1)
        good = picture(default_rng(1))
        (tmp_path / "quarantine" / "a.jpeg").write_bytes(good)
        assert mednet("retry", cwd=tmp_path).returncode == 0
        daemon.until_filed(2)
        ended = mednet("undo", "--since", "1h", cwd=tmp_path)
        assert "will sort the files in the inbox again" in ended.stderr
        daemon.until_filed(3)
        daemon.until(lambda: not os.listdir(daemon.inbox))
        assert daemon.stop() == 0
    assert list(daemon.digests()) == [digest(good)]
    assert mednet("audit", cwd=tmp_path).returncode == 0


class TestExplain:
    def lines(self, site: FilingSite, *words: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in call(site, "explain", "--json", *words).stdout.splitlines()]

    def test_by_whatever_is_known(self, site: FilingSite) -> None:
        """A path, a name, a number and the beginning of a digest lead to the same decisions, in order of time."""
        site.file(ODD, SURE, b"odd")
        site.undo(number=1)
        for word in (str(site.inbox / ODD), ODD, digest(b"odd")[:8], digest(b"odd").upper(), f"sorted/Hand/{ODD}"):
            assert [line["id"] for line in self.lines(site, word)] == [1, 2], word
        assert [line["id"] for line in self.lines(site, "#2", "--id", "1")] == [2, 1]
        assert call(site, "explain", "nothing", "#1").returncode == 1

    def test_what_was_put_back_is_known_by_its_name_now(self, site: FilingSite) -> None:
        """Each of two files put back at once is found by its present name, even if another has its old name by now."""
        site.file("a.png", BROKEN, b"one")
        site.file("a.png", BROKEN, b"two")
        (site.inbox / "a.png").write_bytes(b"the next")
        assert [Path(result.destination or "").name for result in site.retry()] == ["a-1.png", "a-2.png"]
        for name, content, back in (("a-1.png", b"one", 3), ("a-2.png", b"two", 4)):
            assert (site.inbox / name).read_bytes() == content
            [told] = self.lines(site, name)
            assert (told["id"], told["name"], told["destination"]) == (back, name, str(site.inbox / name))
            assert told["now"] == "there"

    def test_by_number(self, site: FilingSite) -> None:
        """With or without the mark, which a shell takes for a comment; a file of that very name comes first."""
        site.file("2", SURE, b"one")
        site.file("b", SURE, b"two")
        for words in (["#1"], ["1"], ["--id", "1"], ["2"]):
            assert [line["id"] for line in self.lines(site, *words)] == [1], words
        assert [line["id"] for line in self.lines(site, "#2")] == [2]

    def test_by_the_name_it_got(self, site: FilingSite) -> None:
        """A file that got a suffix is known under that too."""
        site.file("a.png", HAND, b"one")
        site.file("a.png", HAND, b"two")
        suffixed = f"a-{digest(b'two')[:8]}.png"
        assert [line["id"] for line in self.lines(site, suffixed)] == [2]

    def test_tells_everything(self, site: FilingSite) -> None:
        """It tells the decision, how sure it was, why, the model, from where to where, and the end; names are safe."""
        site.file(ODD, SURE, b"odd")
        told = call(site, "explain", "#1").stdout
        for part in ("Hand 0.9900, CXR 0.0060, CT 0.0040", "m" * 64, "odd \\udcff\\n.png", "filed", "unchanged"):
            assert part in told, part
        assert "MR" not in told

    def test_where_it_lies_now(self, site: FilingSite) -> None:
        """Still there, changed, gone, put back, or taken on."""
        for name in "abcd":
            site.file(name, SURE, name.encode())
        (site.hand / "b").write_bytes(b"B")
        (site.hand / "c").unlink()
        site.undo(number=4)
        again = site.order("d", SURE, b"d")
        site.executor.carry_out([again])
        told = {line["id"]: (line["now"], line["now_by"]) for line in self.lines(site, "a", "b", "c", "d")}
        assert told == {
            1: ("there", None),
            2: ("changed", None),
            3: ("gone", None),
            4: ("restored", 5),
            5: ("moved_on", 6),
            6: ("there", None),
        }
