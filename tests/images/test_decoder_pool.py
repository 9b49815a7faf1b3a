"""Decoder processes, real ones: whatever a file does to its decoder, it does to no other file."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import waiting
from tests.support.waiting import LONGEST_S
from watcher.core.errors import WatcherError
from watcher.core.records import Decoded, Identity, Rejected
from watcher.images import decoder_pool
from watcher.images.decoder_pool import DecoderPool

LIMITS = {"max_bytes": 1_000_000, "max_pixels": 64_000_000, "memory_mb": 600}
TIMEOUT_S = 10.0


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Pool:
    """A DecoderPool and the helpers of the tests. Its clock stands still, so that nothing times out by accident."""

    def __init__(self, directory: Path | None, limits: dict[str, int] = LIMITS) -> None:
        self.clock = Clock()
        self.pool = DecoderPool(directory, limits, TIMEOUT_S, self.clock)

    def answers(self, count: int) -> list[Decoded | Rejected]:
        """The next ``count`` results, waiting for the processes as the loop does."""
        found: list[Decoded | Rejected] = []

        def collected() -> bool:
            wait(self.pool.connections, 1)
            found.extend(self.pool.collect())
            return len(found) >= count

        waiting.until(collected, lambda: f"only {found}")
        return found

    def ask(self, *names: str) -> list[Decoded | Rejected]:
        for name in names:
            self.pool.submit(name)
        return self.answers(len(names))

    def process(self, which: int = -1) -> Any:
        """One of the children: tests stop and kill it as a hostile file would."""
        return self.pool._children[which].process

    def stop_newest(self) -> None:
        """Freeze the newest process. It answers nothing from here on, like one in an endless loop."""
        os.kill(self.process().pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process().pid, os.WSTOPPED | os.WNOWAIT)


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(*args: Any) -> Pool:
        made.append(Pool(*args))
        return made[-1]

    yield make
    for pool in made:
        pool.pool.close()


@pytest.fixture
def inbox(tmp_path: Path, png: Callable[..., bytes]) -> Path:
    """A directory with the images a, b, c, d and e."""
    path = tmp_path / "inbox"
    path.mkdir()
    for seed, name in enumerate("abcde"):
        (path / name).write_bytes(png(seed))
    return path


def reason(result: Decoded | Rejected) -> tuple[str, str | None]:
    return result.name, result.reason if isinstance(result, Rejected) else None


class TestFiles:
    def test_image_comes_back_with_all_that_is_known_of_it(
        self, inbox: Path, pools: Callable[..., Pool], identify: Callable[[Path], Identity]
    ) -> None:
        """An image is decoded to its very pixels, with the identity and the digest of what was read."""
        name = os.fsdecode(b"\xff\n.png")
        os.rename(inbox / "a", inbox / name)
        [found] = pools(inbox).ask(name)
        assert isinstance(found, Decoded)
        data = (inbox / name).read_bytes()
        assert (found.name, found.identity) == (name, identify(inbox / name))
        assert found.digest == hashlib.sha256(data).hexdigest()
        assert not found.blank and found.decode_ms > 0
        np.testing.assert_array_equal(found.image, np.asarray(Image.open(io.BytesIO(data))))

    def test_blank_image_is_marked(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """An image of one grey level is decoded and marked blank."""
        Image.new("L", (80, 80), 7).save(inbox / "blank", "PNG")
        [found] = pools(inbox).ask("blank")
        assert isinstance(found, Decoded) and found.blank

    def test_order_is_kept_and_nothing_is_lost(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """Far more files than are sent ahead come back, each once, in order."""
        names = list("abcde") * 60
        pool = pools(inbox)
        assert [result.name for result in pool.ask(*names)] == names
        assert len(pool.pool) == 0
        assert pool.pool.due_s() is None

    def test_what_is_no_image_is_rejected_with_reason(
        self, inbox: Path, pools: Callable[..., Pool], identify: Callable[[Path], Identity]
    ) -> None:
        """Empty, foreign and oversized files are rejected with their reason, identity and, if read, their digest."""
        contents = {"empty": b"", "unsupported_format": b"hello " * 99, "too_large": b"x" * 1_000_001}
        for name, content in contents.items():
            (inbox / name).write_bytes(content)
        for found in pools(inbox).ask(*contents):
            assert isinstance(found, Rejected) and not found.gone
            assert found.reason == found.name
            assert found.identity == identify(inbox / found.name)
            expected = None if found.name == "too_large" else hashlib.sha256(contents[found.name]).hexdigest()
            assert found.digest == expected

    def test_missing_file_is_gone(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """A file that is no longer there is told as gone, which is nobody's fault."""
        [found] = pools(inbox).ask("nothing")
        assert isinstance(found, Rejected) and found.gone and found.identity is None

    def test_only_regular_files_are_opened(
        self, inbox: Path, pools: Callable[..., Pool], identify: Callable[[Path], Identity]
    ) -> None:
        """Links, also to images, pipes without a writer, sockets and directories: not followed, not waited for."""
        import socket

        (inbox / "link").symlink_to("a")
        (inbox / "dangling").symlink_to("nowhere")
        os.mkfifo(inbox / "pipe")
        (inbox / "directory").mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.getcwd()
            os.chdir(inbox)  # the name of a socket must be short
            try:
                listener.bind("socket")
            finally:
                os.chdir(here)
            names = ["link", "dangling", "pipe", "directory", "socket"]
            found = pools(inbox).ask(*names)
        assert [reason(each) for each in found] == [(name, "not_a_file") for name in names]
        assert [each.identity for each in found] == [identify(inbox / name) for name in names]

    def test_paths_without_a_directory(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """Without a directory names are paths, as ``classify`` uses them."""
        [found] = pools(None).ask(str(inbox / "a"))
        assert isinstance(found, Decoded)

    def test_directory_that_is_made_again(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """An inbox that was replaced by another directory, a mount that came back say, is read at its new place."""
        pool = pools(inbox)
        pool.ask("a")
        aside = inbox.rename(inbox.with_name("aside"))
        inbox.mkdir()
        os.rename(aside / "b", inbox / "b")
        assert [reason(each) for each in pool.ask("a", "b")] == [("a", "not_found"), ("b", None)]

    def test_file_that_needs_too_much_memory(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """An image too big for the memory allowed is rejected; the next file is decoded."""
        (inbox / "big").write_bytes(_flat_png(7_900))
        [big, small] = pools(inbox, {**LIMITS, "memory_mb": 400}).ask("big", "a")
        assert reason(big) in [("big", "too_large"), ("big", "decoder_crashed")]
        assert reason(small) == ("a", None)


class TestAccidents:
    def test_killed_process_blames_only_the_file_in_its_hands(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """A process killed in the middle of a file costs that file; those behind it go to a new process."""
        pool = pools(inbox)
        pool.ask("a")
        pool.stop_newest()
        for name in "bcd":
            pool.pool.submit(name)
        pool.process().kill()
        assert [reason(each) for each in pool.answers(3)] == [("b", "decoder_crashed"), ("c", None), ("d", None)]

    def test_process_killed_while_idle_blames_nobody(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """A process that dies between files is replaced, and the next file is decoded."""
        pool = pools(inbox)
        pool.ask("a")
        pool.process().kill()
        pool.process().wait()
        assert [reason(each) for each in pool.ask("b", "c")] == [("b", None), ("c", None)]

    def test_process_that_can_not_even_start_blames_nobody(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """A process that dies before its hello (too little memory to start) has touched no file: none is rejected."""
        pool = pools(inbox, {**LIMITS, "memory_mb": 1})
        pool.pool.submit("a")
        dying = pool.process()
        dying.wait()
        try:
            found = list(pool.pool.collect())
        except WatcherError:
            found = []  # telling the daemon is right
        assert found == []

    def test_hanging_file_is_rejected_and_holds_nobody_up(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """The files behind one that hangs are answered at once by another process; it is rejected after timeout_s."""
        pool = pools(inbox)
        pool.ask("a")
        pool.stop_newest()
        for name in "bcd":
            pool.pool.submit(name)
        due = pool.pool.due_s()
        assert due is not None and due <= pool.clock.now + 1
        assert list(pool.pool.collect()) == []
        pool.clock.now += 1
        assert [reason(each) for each in pool.answers(2)] == [("c", None), ("d", None)]
        assert len(pool.pool) == 1
        assert pool.pool.due_s() == 100.0 + TIMEOUT_S
        pool.clock.now = 100.0 + TIMEOUT_S + 0.01
        assert [reason(each) for each in pool.pool.collect()] == [("b", "decoder_hung")]
        assert len(pool.pool) == 0
        assert [reason(each) for each in pool.ask("e")] == [("e", None)]

    def test_slow_file_is_no_hanging_file(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """A file that takes long, but not too long, is decoded all the same, and its process is not kept."""
        pool = pools(inbox)
        pool.ask("a")
        slow = pool.process()
        pool.stop_newest()
        pool.pool.submit("b")
        pool.clock.now += 5
        assert list(pool.pool.collect()) == []
        os.kill(slow.pid, signal.SIGCONT)
        assert [reason(each) for each in pool.answers(1)] == [("b", None)]
        assert slow.poll() is not None

    def test_files_that_hang_all_processes_do_not_keep_the_loop_busy(
        self, inbox: Path, pools: Callable[..., Pool]
    ) -> None:
        """With every process hanging, the next time to look is when the first has had its time: no spinning."""
        pool = pools(inbox)
        for _ in range(decoder_pool.MAX_PROCESSES):
            pool.ask("a")
            pool.stop_newest()
            pool.pool.submit("b")
            pool.clock.now += 1
            assert list(pool.pool.collect()) == []
        pool.pool.submit("c")
        assert list(pool.pool.collect()) == []
        assert len(pool.pool.connections) == decoder_pool.MAX_PROCESSES
        due = pool.pool.due_s()
        assert due is not None and due > pool.clock.now
        pool.clock.now = 1000.0
        hung = pool.answers(decoder_pool.MAX_PROCESSES)
        assert [reason(each) for each in hung] == [("b", "decoder_hung")] * decoder_pool.MAX_PROCESSES
        assert [reason(each) for each in pool.answers(1)] == [("c", None)]

    def test_signals_to_the_whole_group_leave_the_decoder_alone(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """Ctrl-C and systemd's SIGTERM reach every process of the daemon; the file in the decoder's hands survives."""
        pool = pools(inbox)
        pool.ask("a")
        pool.stop_newest()
        pool.pool.submit("b")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            os.kill(pool.process().pid, number)
        assert [reason(each) for each in pool.answers(1)] == [("b", None)]

    def test_long_paths_do_not_lock_both_sides_up(self, tmp_path: Path, pools: Callable[..., Pool]) -> None:
        """Many paths of the greatest length, submitted before any answer is fetched, all come back."""
        path = str(tmp_path)
        while len(path) < 3_800:
            path += "/" + "x" * 250
        pool = pools(None)
        pool.ask(path)
        assert _ends(lambda: [pool.pool.submit(path) for _ in range(100)], pool), "submit blocks"
        assert len(pool.answers(100)) == 100

    def test_a_defect_tells_its_place_and_nothing_of_the_file(
        self, inbox: Path, pools: Callable[..., Pool], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The output of a library that decodes is not let out; a defect tells where it is, without its message."""
        (tmp_path / "sitecustomize.py").write_text(
            "import hashlib, os\n"
            "whole = hashlib.sha256\n"
            "def sha256(data=b''):\n"
            "    if data == b'bad':\n"
            "        os.write(1, b'CANARY'), os.write(2, b'CANARY')\n"
            "        raise RuntimeError('CAN' + 'ARY')\n"
            "    return whole(data)\n"
            "hashlib.sha256 = sha256\n"
        )
        (inbox / "bad").write_text("bad")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
            found = pools(inbox).ask("bad", "a")
        assert [reason(each) for each in found] == [("bad", "decoder_crashed"), ("a", None)]
        said = capfd.readouterr()
        assert "CANARY" not in said.out + said.err
        assert "RuntimeError" in said.err and "sitecustomize.py" in said.err

    def test_close_ends_every_process(self, inbox: Path, pools: Callable[..., Pool]) -> None:
        """After close no process runs on, not even a frozen one, and nothing is owed any more."""
        pool = pools(inbox)
        pool.ask("a")
        process = pool.process()
        pool.stop_newest()
        pool.pool.submit("b")
        pool.pool.close()
        assert process.poll() is not None
        assert len(pool.pool) == 0
        pool.pool.close()


IMPOSTOR = """#!{python}
import sys
import socket
channel = socket.socket(fileno=int(sys.argv[4]))
send, recv = channel.send, lambda: channel.recv(65536)
{body}
"""


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets another program take the place of the decoder, as after a hostile file has taken it over."""

    def install(body: str) -> None:
        script = tmp_path / "impostor"
        script.write_text(IMPOSTOR.format(python=sys.executable, body=body))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return install


class TestTakenOver:
    """A decoder that was taken over can lie about a picture, no more."""

    @pytest.mark.parametrize(
        "nonsense",
        [
            b"nonsense",
            b"\n",
            b"[]\n",
            b"1\n",
            b"{}\n",
            b'{"identity": [1], "reason": "x", "detail": "y"}\n',
            b'{"identity": "abcd", "digest": "d", "blank": true, "decode_ms": 1}\n' + bytes(4096),
            b'{"identity": [1, 2, 3, 4], "digest": "d", "blank": true, "decode_ms": 1}\n' + bytes(4095),
            b'{"identity": [1, 2, 3, 4], "digest": "d", "blank": true, "decode_ms": null}\n' + bytes(4096),
            b'{"identity": [1, 2, 3, 4], "digest": null, "frames": 1e999, "modality": [], "body_part": {}}\n'
            + bytes(4096),
            b'{"identity": [1, 2, 3, 4], "digest": "../../../x", "blank": true, "decode_ms": 1}\n' + bytes(4096),
            b"[" * 60_000,
            b"x" * 70_000,
        ],
        ids=range(13),
    )
    def test_nonsense_is_blamed_on_the_file_it_answers(
        self, nonsense: bytes, inbox: Path, pools: Callable[..., Pool], impostor: Callable[[str], None]
    ) -> None:
        """An answer that is none rejects the file that was asked for, and each file is answered exactly once."""
        impostor(
            f"send(b'ready')\nwhile True:\n    recv()\n    send({nonsense[:300]!r} + {nonsense[300:301]!r} * "
            f"{len(nonsense[300:])})"
        )
        found = pools(inbox).ask("a", "b")
        assert [reason(each) for each in found] == [("a", "decoder_crashed"), ("b", "decoder_crashed")]

    def test_endless_greetings_do_not_hold_the_daemon(
        self, inbox: Path, pools: Callable[..., Pool], impostor: Callable[[str], None]
    ) -> None:
        """A process that sends without end does not keep collect() from coming back."""
        impostor("import os\nwhile True:\n    os.write(int(sys.argv[4]), bytes(1 << 16))")  # 16384 greetings each
        pool = pools(inbox)
        pool.pool.submit("a")
        wait(pool.pool.connections, LONGEST_S)
        assert _ends(lambda: [list(pool.pool.collect()) for _ in range(5)], pool), "collect() does not come back"

    def test_half_an_answer_does_not_hold_the_daemon(
        self, inbox: Path, pools: Callable[..., Pool], impostor: Callable[[str], None]
    ) -> None:
        """A process that stops in the middle of an answer is treated like one that gives none."""
        impostor(
            "send(b'ready')\nrecv()\nimport os, time\nos.write(int(sys.argv[4]), b'\\0\\0\\1\\0half')\ntime.sleep(1000)"
        )
        pool = pools(inbox)
        pool.pool.submit("a")
        found: list[Decoded | Rejected] = []

        def collect() -> None:
            for _ in range(3):
                wait(pool.pool.connections, 0.3)
                found.extend(pool.pool.collect())

        assert _ends(collect, pool), "collect() does not come back"
        pool.clock.now += TIMEOUT_S + 1
        [[name, why]] = [reason(each) for each in found or pool.answers(1)]
        assert name == "a" and why in ("decoder_hung", "decoder_crashed")


class TestLoading:
    """The reader of DICOM files takes seconds to load, once."""

    def test_no_file_is_to_blame(
        self, inbox: Path, pools: Callable[..., Pool], impostor: Callable[[str], None]
    ) -> None:
        """While it loads, the file and those behind it wait, for as long as a process may take to start."""
        impostor("recv()\nsend(b'loading')\nrecv()\nimport time; time.sleep(1000)")
        pool = pools(inbox)
        for name in "ab":
            pool.pool.submit(name)
        while not pool.pool._children[0].loading:  # both messages may come at once
            wait(pool.pool.connections, LONGEST_S)
            assert list(pool.pool.collect()) == []
        first = pool.process(0)
        pool.clock.now += decoder_pool.START_S - 1
        assert list(pool.pool.collect()) == []
        assert len(pool.pool._children) == 1
        pool.clock.now += 2
        assert [reason(each) for each in pool.pool.collect()] == [("a", "decoder_hung")]
        assert first.poll() is not None

    def test_only_once(self, inbox: Path, pools: Callable[..., Pool], impostor: Callable[[str], None]) -> None:
        """A process that says so again is no decoder."""
        impostor("send(b'ready')\nrecv()\nsend(b'loading')\nsend(b'loading')\nrecv()")
        assert [reason(each) for each in pools(inbox).ask("a")] == [("a", "decoder_crashed")]


def _ends(act: Callable[[], Any], pool: Pool) -> bool:
    """Return True if ``act`` comes to an end. If it does not, the processes are killed, so that the test ends."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(3 * waiting.slowness())
    if not thread.is_alive():
        return True
    while thread.is_alive():
        for child in list(pool.pool._children):
            child.process.kill()
        thread.join(0.1)
    return False


def _flat_png(side: int) -> bytes:
    """A small file that is a huge RGBA image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(1)
    row = bytes(1 + 4 * side)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
