"""The page itself: rows of the ledger with pictures, and forms that append verdicts.

See :mod:`watcher.review.verdicts`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flask

from watcher.core.errors import Fatal, Reject, Retry
from watcher.core.printable import printable
from watcher.filing.destinations import Destinations
from watcher.inbox.scan import Inbox
from watcher.ledger.reader import IN_PLACE, LedgerEntry, LedgerReader
from watcher.ledger.writer import Ledger
from watcher.review import verdicts, wake_pipe
from watcher.review.verdicts import Reviewer
from watcher.review.web.access import COOKIE, AccessGuard
from watcher.review.web.pictures import Pictures
from watcher.review.web.uploads import put

ROWS = 50
"""Most images on one page."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

VIEWS = {"waiting": f"{IN_PLACE} and outcome = 'review'", "all": IN_PLACE}


@dataclass(frozen=True)
class Site:
    """Plain values of one installation: what the page reads, and where it writes."""

    ledger: Path
    state: Path
    destinations: Destinations
    inbox: Inbox
    classes: tuple[str, ...]
    max_bytes: int


def build(site: Site, guard: AccessGuard, pictures: Pictures, person: Callable[[], Reviewer]) -> Any:
    """The application, for a WSGI server. ``person`` tells who is at it."""
    app = flask.Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 16 * site.max_bytes
    page = _Page(site, guard, pictures, person)
    app.before_request(page.admit)
    app.after_request(_harden)
    app.register_error_handler(Fatal, lambda error: flask.Response(str(error), 503, mimetype="text/plain"))
    app.add_url_rule("/", view_func=page.rows, endpoint="rows")
    app.add_url_rule("/picture/<int:number>.png", view_func=page.picture, endpoint="picture")
    app.add_url_rule("/judge", view_func=page.judge, endpoint="judge", methods=["POST"])
    app.add_url_rule("/upload", view_func=page.upload, endpoint="upload", methods=["POST"])
    return app


def _harden(response: Any) -> Any:
    response.headers.update(HEADERS)
    return response


class _Page:
    def __init__(self, site: Site, guard: AccessGuard, pictures: Pictures, person: Callable[[], Reviewer]) -> None:
        self._site, self._guard, self._pictures, self._person = site, guard, pictures, person

    def admit(self) -> Any:
        """Let in who has the cookie; give it to who has the key. None: go on."""
        request = flask.request
        if not self._guard.knows(request.host):
            flask.abort(400, "asked for by another name than it was started under")
        if self._guard.opens(request.args.get("key", "")):
            answer = flask.redirect(flask.url_for("rows"), 303)
            answer.set_cookie(COOKIE, self._guard.cookie, httponly=True, samesite="Strict")
            return answer
        if not self._guard.admits(request.cookies):
            flask.abort(403, "open the address that `mednet-watcher web` printed")
        if request.method == "POST" and not self._guard.asked_here(
            request.form.get("token", ""), request.headers.get("Origin")
        ):
            flask.abort(403, "this was not asked for on this page: load it again")
        return None

    def rows(self) -> Any:
        """What waits for a person, oldest first; or everything filed, newest first."""
        view = flask.request.args.get("view", "waiting")
        with LedgerReader(self._site.ledger) as ledger_reader:
            last = ledger_reader.last_id()
            before = flask.request.args.get("before", last + 1, type=int)
            if view == "all":
                found = ledger_reader.latest(VIEWS["all"], before, ROWS)
            else:
                view, found = "waiting", ledger_reader.latest(VIEWS["waiting"], before, ROWS)
            open_on = {verdict.decision for verdict in ledger_reader.verdicts("state = 'open'")}
        shown = [_row(entry, entry.id in open_on) for entry in found]
        more = found[-1].id if len(found) == ROWS else None
        told = flask.request.args.get("told", "")
        return flask.render_template(
            "page.html",
            rows=shown,
            view=view,
            more=more,
            told=printable(told),
            classes=self._site.classes,
            token=self._guard.token,
        )

    def picture(self, number: int) -> Any:
        """What the model saw of the file of a decision, if it still lies there with its bytes."""
        with LedgerReader(self._site.ledger) as ledger_reader:
            entry = next(ledger_reader.entries(f"{IN_PLACE} and d.id = ?", (number,)), None)
        if entry is None or entry.destination is None or entry.digest is None:
            return flask.abort(404)
        png = self._pictures.png(Path(entry.destination), entry.digest)
        return flask.Response(png, mimetype="image/png") if png is not None else flask.abort(404)

    def judge(self) -> Any:
        """Append a verdict, and ring for the daemon."""
        form, site = flask.request.form, self._site
        label = form.get("class") if form.get("verdict") == "accept" else None
        if form.get("verdict") not in ("accept", "reject") or (
            form.get("verdict") == "accept" and label not in site.classes
        ):
            flask.abort(400, "neither a class nor a rejection")
        number = form.get("id", type=int)
        try:
            with LedgerReader(site.ledger) as ledger_reader:
                judged = verdicts.subject(ledger_reader, f"#{number}", site.destinations)
            with contextlib.closing(Ledger(site.ledger, owner="web")) as book:
                verdicts.give(book, judged, label, self._person(), form.get("note") or None)
        except Fatal as error:
            return self._back(error.problem)
        except Retry as error:
            return self._back(str(error))
        word = "rejected" if label is None else f"accepted as {label}"
        later = "" if wake_pipe.wake_daemon(site.state) else "; no daemon listens, the next one files it"
        return self._back(f"#{number} {word}{later}")

    def upload(self) -> Any:
        """Put files into the inbox."""
        taken, refused = 0, []
        for file in flask.request.files.getlist("files"):
            try:
                put(file.stream, file.filename or "", self._site.inbox, self._site.max_bytes)
                taken += 1
            except (Reject, Retry) as error:
                refused.append(f"{file.filename}: {error.detail if isinstance(error, Reject) else error}")
        return self._back("; ".join([f"{taken} put into the inbox", *refused]))

    def _back(self, told: str) -> Any:
        view = flask.request.form.get("view", "waiting")
        return flask.redirect(flask.url_for("rows", view=view, told=told[:1000]), 303)


def _row(entry: LedgerEntry, judged: bool) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": printable(entry.name),
        "outcome": entry.outcome,
        "label": entry.label,
        "strange": entry.reason == "out_of_distribution",
        "top": [(name, f"{probability:.4f}") for name, probability in entry.top[:3]],
        "reason": printable(": ".join(filter(None, (entry.reason, entry.detail)))),
        "at": entry.decided_at[:19].replace("T", " "),
        "model": entry.model is not None,
        "judged": judged,
    }
