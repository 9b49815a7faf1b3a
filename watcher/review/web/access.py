"""Who may use the page. It shows images of patients and moves files, on a host that others may share.

A key that only who started the page has seen opens it, once, for a cookie that
browsers send with nothing but requests of the page's own. Requests by another
name than the page was started under are refused (a site elsewhere may have had
its name point here), and so are changes that another page asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

COOKIE = "mednet-review"


@dataclass(frozen=True)
class AccessGuard:
    """``hosts`` are the names by which the page may be asked for (with the port), lower case."""

    hosts: frozenset[str]
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def cookie(self) -> str:
        """What the cookie holds: not the key itself, which is seen in a browser's history."""
        return self._derived("cookie")

    @property
    def token(self) -> str:
        """What each form sends along."""
        return self._derived("form")

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.key.encode(), purpose.encode(), hashlib.sha256).hexdigest()

    def knows(self, host: str) -> bool:
        """Whether the page was asked for by one of its own names."""
        return host.lower() in self.hosts

    def opens(self, key: str) -> bool:
        """Whether this is the key."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.key.encode())

    def admits(self, cookies: Mapping[str, str]) -> bool:
        """Whether the request comes from a browser that was let in."""
        return hmac.compare_digest(cookies.get(COOKIE, "").encode("utf-8", "replace"), self.cookie.encode())

    def asked_here(self, token: str, origin: str | None) -> bool:
        """Whether a change was asked for on the page itself."""
        _, _, host = (origin or "").partition("://")
        same = origin is None or self.knows(host)
        return same and hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


def names(address: str, port: int) -> frozenset[str]:
    """By which names a page at this address is asked for."""
    local = {"127.0.0.1", "::1", "localhost"}
    own = local if address in local else {address}
    return frozenset(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in own)
