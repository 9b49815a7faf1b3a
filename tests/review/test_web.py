"""The review page: shows what was decided, appends verdicts, and does neither for strangers."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.filing_site import HAND
from tests.support.repository import TOP
from tests.support.review_site import ANNA, UNSURE, ReviewSite
from tests.support.waiting import LONGEST_S
from watcher.core.errors import Reject, Retry
from watcher.core.records import Identity
from watcher.images.decode import Limits
from watcher.inbox.scan import Inbox
from watcher.review import wake_pipe
from watcher.review.web.access import COOKIE, AccessGuard, host_names
from watcher.review.web.pictures import Pictures
from watcher.review.web.uploads import put

HOST = "localhost:8090"
LIMITS = {"max_bytes": Limits().max_bytes, "max_pixels": Limits().max_pixels, "memory_mb": 1024}


@pytest.fixture
def site(tmp_path: Path, identify: Callable[[Path], Identity]) -> Iterator[ReviewSite]:
    site = ReviewSite(tmp_path, identify)
    yield site
    site.book.close()


class TestTheGuard:
    def test_names(self) -> None:
        """On this host it may be asked for by any of its names, elsewhere by its own; never by a stranger's."""
        guard = AccessGuard(host_names("127.0.0.1", 8090))
        assert [
            guard.accepts_host(host) for host in ("LOCALHOST:8090", "[::1]:8090", "evil.example:8090", "localhost")
        ] == [
            *(True, True, False, False),
        ]
        assert AccessGuard(host_names("10.0.0.5", 80)).accepts_host("10.0.0.5:80")

    def test_keys(self) -> None:
        """Each start has another key; neither cookie nor form has it in it."""
        one, other = AccessGuard(frozenset()), AccessGuard(frozenset())
        assert one.accepts_key(one.key) and not one.accepts_key(other.key) and not one.accepts_key("")
        assert (
            one.accepts_cookies({COOKIE: one.cookie})
            and not one.accepts_cookies({COOKIE: one.token})
            and not one.accepts_cookies({})
        )
        assert one.key not in one.cookie + one.token + repr(one)

    @pytest.mark.parametrize(
        ("origin", "asked"),
        [(None, True), (f"http://{HOST}", True), ("http://evil.example", False), ("null", False)],
    )
    def test_changes(self, origin: str | None, asked: bool) -> None:
        """With the form's token, and from the page itself where the browser tells."""
        guard = AccessGuard(host_names("127.0.0.1", 8090))
        assert guard.accepts_change(guard.token, origin) is asked
        assert not guard.accepts_change("", origin)


class TestPictures:
    @pytest.fixture
    def pictures(self) -> Iterator[Pictures]:
        pictures = Pictures(LIMITS, 10.0)
        yield pictures
        pictures.close()

    def test_what_the_model_saw(self, tmp_path: Path, pictures: Pictures) -> None:
        """64 by 64 grey levels, enlarged: never the file's own bytes. Other bytes than were judged are not shown."""
        import hashlib

        path = tmp_path / "a.png"
        Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        png = pictures.png(path, digest)
        assert png is not None and png != path.read_bytes()
        shown = np.asarray(Image.open(io.BytesIO(png)))
        assert (shown.shape, shown[::4, ::4].tolist()) == ((256, 256), np.asarray(Image.open(path)).tolist())
        assert pictures.png(path, "0" * 64) is None
        (tmp_path / "b").write_bytes(b"no image")
        assert pictures.png(tmp_path / "b", hashlib.sha256(b"no image").hexdigest()) is None
        assert pictures.png(tmp_path / "gone", digest) is None


class TestUploads:
    @pytest.mark.parametrize("name", ["a.png", "C:\\films\\a.png", "../../a.png"])
    def test_into_the_inbox(self, tmp_path: Path, name: str) -> None:
        """Under its own name without any path, or the next free one: nothing is overwritten, nothing left over."""
        inbox = Inbox(tmp_path, [".*"])
        for data in (b"one", b"two"):
            assert put(io.BytesIO(data), name, inbox, 10).parent == tmp_path
        assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"one", b"two"]
        assert (tmp_path / "a.png").read_bytes() == b"one"

    @pytest.mark.parametrize(
        ("name", "data"),
        [(".hidden", b"x"), ("", b"x"), ("..", b"x"), ("a\nb", b"x"), ("ä" * 101, b"x"), ("a", b""), ("a", b"x" * 11)],
    )
    def test_refused(self, tmp_path: Path, name: str, data: bytes) -> None:
        """Names that the daemon would not look at, empty files and too large ones leave nothing behind."""
        with pytest.raises(Reject):
            put(io.BytesIO(data), name, Inbox(tmp_path, [".*"]), 10)
        assert os.listdir(tmp_path) == []

    def test_an_inbox_that_is_gone(self, tmp_path: Path) -> None:
        """Told, and tried again by the person."""
        with pytest.raises(Retry):
            put(io.BytesIO(b"x"), "a", Inbox(tmp_path / "gone", []), 10)


class Browser:
    """A client that was let in."""

    def __init__(self, site: ReviewSite) -> None:
        pytest.importorskip("flask")
        from watcher.review.web.page import Site, build

        self.site = site
        self.guard = AccessGuard(host_names("127.0.0.1", 8090))
        self.pictures = Pictures(LIMITS, 10.0)
        inbox = Inbox(site.inbox, [".*"])
        facts = Site(site.path, site.path.parent, site.executor.destinations, inbox, ("CXR", "Hand"), 1000)
        self.client = build(facts, self.guard, self.pictures, lambda: ANNA).test_client()
        self.stranger = self.client.application.test_client()
        assert self.get(f"/?key={self.guard.key}").status_code == 303

    def get(self, path: str, host: str = HOST) -> Any:
        return self.client.get(path, headers={"Host": host})

    def post(self, path: str, token: str | None = None, origin: str | None = None, **form: Any) -> Any:
        headers = {"Host": HOST} | ({"Origin": origin} if origin else {})
        form["token"] = self.guard.token if token is None else token
        return self.client.post(path, data=form, headers=headers)


@pytest.fixture
def browser(site: ReviewSite) -> Iterator[Browser]:
    browser = Browser(site)
    yield browser
    browser.pictures.close()


def test_shows_what_waits(browser: Browser) -> None:
    """Name, number, class, confidence and reason of each, escaped; everything filed in another view."""
    browser.site.file("<b>.png", UNSURE, b"one")
    browser.site.file("sorted.png", HAND, b"two")
    text = browser.get("/").text
    assert "&lt;b&gt;.png" in text and "<b>" not in text
    assert all(word in text for word in ("#1", "low_confidence", "CXR 0.5000"))
    assert "sorted.png" not in text and "sorted.png" in browser.get("/?view=all").text


def test_pages(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of files is shown a page at a time."""
    from watcher.review.web import page

    monkeypatch.setattr(page, "ROWS", 2)
    for name in "abc":
        browser.site.file(name, UNSURE, name.encode())
    first = browser.get("/").text
    assert ("#3," in first, "#1," in first, "before=2" in first) == (True, False, True)
    assert "#1," in browser.get("/?before=2").text


def test_judges(browser: Browser) -> None:
    """A verdict is on record with who and why; the daemon is woken, and files it."""
    browser.site.file("a.png", UNSURE)
    listening = wake_pipe.WakePipe(browser.site.path.parent)
    answer = browser.post("/judge", id="1", verdict="accept", note="why", **{"class": "Hand"})
    assert (answer.status_code, listening.woken()) == (303, True)
    listening.close()
    assert "Judged" in browser.get("/").text
    [verdict] = browser.site.verdicts()
    assert (verdict.label, verdict.user, verdict.note, verdict.state) == ("Hand", "anna", "why", "open")
    browser.site.carry_out()
    assert browser.site.tree() == {"sorted/Hand/a.png": b"a radiograph"}
    assert browser.post("/judge", id="2", verdict="reject", **{"class": "Hand"}).status_code == 303
    browser.site.carry_out()
    assert browser.site.tree() == {"rejected/a.png": b"a radiograph"}


def test_an_outlier_has_no_class_until_a_person_chooses(browser: Browser) -> None:
    """No class is preselected for an outlier; accepting it without a class is refused, and is no rejection."""
    browser.site.file("knee.png", replace(UNSURE, reason="out_of_distribution"))
    text = browser.get("/").text
    assert '<option value="" selected>' in text
    assert text.count("selected") == 1
    assert browser.post("/judge", id="1", verdict="accept", **{"class": ""}).status_code == 400
    assert browser.post("/judge", id="1", verdict="accept").status_code == 400
    assert browser.site.verdicts() == []


def test_what_can_not_be_judged_is_told(browser: Browser) -> None:
    """A file that went meanwhile, a class that there is not: nothing is recorded."""
    browser.site.file("a.png", UNSURE)
    (browser.site.root / "review" / "a.png").unlink()
    answer = browser.post("/judge", id="1", verdict="accept", **{"class": "Hand"})
    assert "can+not+be+read" in answer.headers["Location"] or "can%20not" in answer.headers["Location"]
    assert browser.post("/judge", id="1", verdict="accept", **{"class": "Foot"}).status_code == 400
    assert browser.post("/judge", id="1").status_code == 400
    assert browser.site.verdicts() == []


def test_strangers(browser: Browser) -> None:
    """Without the cookie, by another name, or from another page nothing is shown and nothing recorded."""
    browser.site.file("a.png", UNSURE)
    for path in ("/", "/picture/1.png", "/static/page.css", "/?key=wrong"):
        assert browser.stranger.get(path, headers={"Host": HOST}).status_code == 403
    form = {"token": browser.guard.token, "id": "1", "verdict": "reject"}
    assert browser.stranger.post("/judge", headers={"Host": HOST}, data=form).status_code == 403
    assert browser.get("/", host="evil.example").status_code == 400
    del form["token"]
    assert browser.post("/judge", token="", **form).status_code == 403
    assert browser.post("/judge", origin="http://evil.example", **form).status_code == 403
    assert browser.post("/upload", token="x").status_code == 403
    assert browser.site.verdicts() == []


def test_headers(browser: Browser) -> None:
    """No script can run, no other site can frame it, and the cookie goes nowhere else."""
    answer = browser.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["Cache-Control"] == "no-store"
    cookie = browser.stranger.get(f"/?key={browser.guard.key}", headers={"Host": HOST}).headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and browser.guard.key not in cookie


def test_pictures_by_number(browser: Browser, png: Callable[..., bytes]) -> None:
    """Of files that lie where they were filed, by the decision's number and no other way."""
    browser.site.file("a.png", UNSURE, png())
    answer = browser.get("/picture/1.png")
    assert (answer.status_code, answer.mimetype, answer.data[:4]) == (200, "image/png", b"\x89PNG")
    assert [browser.get(f"/picture/{path}").status_code for path in ("2.png", "../a.png", "x.png")] == [404] * 3


def test_uploads(browser: Browser) -> None:
    """Several images at once; what is refused is told, the others are taken."""
    files = [(io.BytesIO(b"one"), "a.png"), (io.BytesIO(b"two"), "b.png"), (io.BytesIO(b"x" * 1001), "large.png")]
    answer = browser.post("/upload", files=files)
    assert answer.status_code == 303
    assert "2" in answer.headers["Location"] and "large.png" in answer.headers["Location"]
    assert sorted(os.listdir(browser.site.inbox)) == ["a.png", "b.png"]
    assert browser.post("/upload", files=[(io.BytesIO(b"x" * 20_000), "huge.png")]).status_code == 413


def test_a_ledger_that_can_not_be_read(browser: Browser) -> None:
    """Told in words, as anywhere."""
    browser.site.path.rename(browser.site.path.with_name("aside"))
    answer = browser.get("/")
    assert (answer.status_code, "there is no ledger" in answer.text) == (503, True)


def test_command(site: ReviewSite) -> None:
    """It listens on this host, prints the address with its key, never imports torch, and ends on Ctrl-C."""
    pytest.importorskip("waitress")
    site.file("a.png", UNSURE)
    config = site.root / "config.yaml"
    config.touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # as from a terminal
        "from watcher.cli import main; code = main.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "web", "--port", str(port), "--config", str(config)]
    environ = {**os.environ, "PYTHONPATH": str(TOP)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().split()[-1]
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(address, timeout=LONGEST_S) as answer:
            assert "a.png" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        code, told = process.wait(timeout=LONGEST_S), process.stderr.read()
    assert code in (0, 130), told
    assert "Traceback" not in told
