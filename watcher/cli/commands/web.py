"""``web``: serve the review page for a browser on this host or behind a proxy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from watcher.config import loader, paths_and_limits
from watcher.core.errors import Exit, Fatal
from watcher.filing import destinations, put_back
from watcher.model import checkpoint, promotions
from watcher.review import verdicts
from watcher.review.verdicts import Reviewer
from watcher.review.web import access
from watcher.service import stations


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C. Needs the extra ``web``."""
    import waitress

    from watcher.review.web.page import Site, build
    from watcher.review.web.pictures import Pictures

    settings = loader.load(args.config or loader.default_path(), os.environ)
    ledger = paths_and_limits.ledger_path(settings)
    if not ledger.exists():
        raise Fatal(f"there is no ledger {ledger}", "Start the daemon once: it makes the ledger.", Exit.DIRECTORY)
    put_back.refuse_root(ledger)
    site = Site(
        ledger,
        settings.state.path,
        destinations.places(settings),
        stations.new_inbox(settings),
        checkpoint.load(promotions.weights_path(None, settings)).classes,
        settings.decode.max_bytes,
    )
    pictures = Pictures(paths_and_limits.decoder_limits(settings), settings.decode.timeout_s)
    reviewer = _reviewer_of_request(args.user_header)
    hosts = access.host_names(args.address, args.port) | {name.lower() for name in args.host}
    guard = access.AccessGuard(frozenset(hosts))
    try:
        server = waitress.create_server(build(site, guard, pictures, reviewer), host=args.address, port=args.port)
    except OSError as error:
        raise Fatal(
            f"the page can not be served at {args.address}:{args.port}: {error.strerror}", "Choose another --port."
        ) from error
    name = f"[{args.address}]" if ":" in args.address else args.address
    print(f"open http://{name}:{args.port}/?key={guard.key}", flush=True)
    print("Everybody who has this address can see images and move files. Ctrl-C ends the page.", file=sys.stderr)
    try:
        server.run()
    finally:
        server.close()
        pictures.close()
    return Exit.OK


def _reviewer_of_request(header: str | None) -> Callable[[], Reviewer]:
    """Return a function that returns the person who makes the present request.

    It is the user that a proxy names in ``header``, or else the user who started the page.
    """
    import flask

    starter = verdicts.current_reviewer(os.environ)

    def reviewer() -> Reviewer:
        user = flask.request.headers.get(header, "") if header else ""
        return Reviewer(starter.uid, user[:200] or starter.user)

    return reviewer
