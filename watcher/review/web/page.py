"""Serve the review page: rows of the ledger with pictures, and forms that record verdicts.

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
from watcher.review import judged_files, verdicts, wake_pipe
from watcher.review.verdicts import Reviewer
from watcher.review.web.access import COOKIE, AccessGuard
from watcher.review.web.pictures import Pictures
from watcher.review.web.uploads import put

ROWS = 50
"""Largest number of images on one page."""

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
    """Paths and settings of one installation: what the page reads, and where it writes."""

    ledger: Path
    state: Path
    destinations: Destinations
    inbox: Inbox
    classes: tuple[str, ...]
    max_bytes: int


def build(site: Site, guard: AccessGuard, pictures: Pictures, reviewer: Callable[[], Reviewer]) -> Any:
    """Build the application, for a WSGI server. ``reviewer`` returns the person who makes the present request."""
    app = flask.Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 16 * site.max_bytes
    page = _Page(site, guard, pictures, reviewer)
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
    """The view functions of the page."""

    def __init__(self, site: Site, guard: AccessGuard, pictures: Pictures, reviewer: Callable[[], Reviewer]) -> None:
        self._site, self._guard, self._pictures, self._reviewer = site, guard, pictures, reviewer

    def admit(self) -> Any:
        """Answer a request that may not go on, or return None if it may.

        A request with the key gets the cookie. A request without either is refused.
        """
        request = flask.request
        if not self._guard.accepts_host(request.host):
            flask.abort(400, "the page was started under another host name than this request has")
        if self._guard.accepts_key(request.args.get("key", "")):
            response = flask.redirect(flask.url_for("rows"), 303)
            response.set_cookie(COOKIE, self._guard.cookie, httponly=True, samesite="Strict")
            return response
        if not self._guard.accepts_cookies(request.cookies):
            flask.abort(403, "open the address that `mednet-watcher web` printed")
        if request.method == "POST" and not self._guard.accepts_change(
            request.form.get("token", ""), request.headers.get("Origin")
        ):
            flask.abort(403, "this request did not come from a form of the present page: load the page again")
        return None

    def rows(self) -> Any:
        """Show the images that wait for a person, or all that were filed, the newest first."""
        view = flask.request.args.get("view", "waiting")
        with LedgerReader(self._site.ledger) as ledger_reader:
            last = ledger_reader.last_id()
            before = flask.request.args.get("before", last + 1, type=int)
            if view == "all":
                entries = ledger_reader.latest(VIEWS["all"], before, ROWS)
            else:
                view, entries = "waiting", ledger_reader.latest(VIEWS["waiting"], before, ROWS)
            judged = {verdict.decision for verdict in ledger_reader.verdicts("state = 'open'")}
        more = entries[-1].id if len(entries) == ROWS else None
        return flask.render_template(
            "page.html",
            rows=[_row(entry, entry.id in judged) for entry in entries],
            view=view,
            more=more,
            message=printable(flask.request.args.get("message", "")),
            classes=self._site.classes,
            token=self._guard.token,
        )

    def picture(self, number: int) -> Any:
        """Show the file of a decision as the model saw it, if the file still lies there with the same bytes."""
        with LedgerReader(self._site.ledger) as ledger_reader:
            entry = next(ledger_reader.entries(f"{IN_PLACE} and d.id = ?", (number,)), None)
        if entry is None or entry.destination is None or entry.digest is None:
            return flask.abort(404)
        png = self._pictures.png(Path(entry.destination), entry.digest)
        return flask.Response(png, mimetype="image/png") if png is not None else flask.abort(404)

    def judge(self) -> Any:
        """Record a verdict, and wake the daemon."""
        form, site = flask.request.form, self._site
        label = form.get("class") if form.get("verdict") == "accept" else None
        if form.get("verdict") not in ("accept", "reject") or (
            form.get("verdict") == "accept" and label not in site.classes
        ):
            flask.abort(400, "choose a class, or reject the image")
        number = form.get("id", type=int)
        try:
            with LedgerReader(site.ledger) as ledger_reader:
                judged = judged_files.find(ledger_reader, f"#{number}", site.destinations)
            with contextlib.closing(Ledger(site.ledger, owner="web")) as ledger:
                verdicts.record(ledger, judged, label, self._reviewer(), form.get("note") or None)
        except Fatal as error:
            return self._back(error.problem)
        except Retry as error:
            return self._back(str(error))
        verdict = "rejected" if label is None else f"accepted as {label}"
        later = "" if wake_pipe.wake_daemon(site.state) else "; no daemon runs: the next one that starts files it"
        return self._back(f"#{number} {verdict}{later}")

    def upload(self) -> Any:
        """Put files into the inbox."""
        uploaded, refused = 0, []
        for file in flask.request.files.getlist("files"):
            try:
                put(file.stream, file.filename or "", self._site.inbox, self._site.max_bytes)
                uploaded += 1
            except (Reject, Retry) as error:
                refused.append(f"{file.filename}: {error.detail if isinstance(error, Reject) else error}")
        return self._back("; ".join([f"{uploaded} put into the inbox", *refused]))

    def _back(self, message: str) -> Any:
        """Redirect to the view that the form was sent from, and show a message there."""
        view = flask.request.form.get("view", "waiting")
        return flask.redirect(flask.url_for("rows", view=view, message=message[:1000]), 303)


def _row(entry: LedgerEntry, judged: bool) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": printable(entry.name),
        "outcome": entry.outcome,
        "label": entry.label,
        "outlier": entry.reason == "out_of_distribution",
        "top": [(name, f"{probability:.4f}") for name, probability in entry.top[:3]],
        "reason": printable(": ".join(filter(None, (entry.reason, entry.detail)))),
        "at": entry.decided_at[:19].replace("T", " "),
        "model": entry.model is not None,
        "judged": judged,
    }
