"""Decide who may use the review page, which shows images of patients and moves files.

Other people may share the host that serves it. A key that only the person who started the page has seen opens it
once, in exchange for a cookie that browsers send only with requests of the page itself. Two kinds of request are
refused: those for another host name than the page was started under, because another site may have had its name
point to this host (DNS rebinding), and changes that another page asked for.
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
    """The host names and the secrets of one start of the page.

    ``hosts`` are the names, with the port and in lower case, under which the page may be requested.
    """

    hosts: frozenset[str]
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def cookie(self) -> str:
        """Value of the cookie. It is not the key itself, which a browser's history shows."""
        return self._derived("cookie")

    @property
    def token(self) -> str:
        """Secret that each form of the page sends along."""
        return self._derived("form")

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.key.encode(), purpose.encode(), hashlib.sha256).hexdigest()

    def accepts_host(self, host: str) -> bool:
        """Return True if the page was requested under one of its own host names."""
        return host.lower() in self.hosts

    def accepts_key(self, key: str) -> bool:
        """Return True if this is the key."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.key.encode())

    def accepts_cookies(self, cookies: Mapping[str, str]) -> bool:
        """Return True if the cookies hold that of this page."""
        return hmac.compare_digest(cookies.get(COOKIE, "").encode("utf-8", "replace"), self.cookie.encode())

    def accepts_change(self, token: str, origin: str | None) -> bool:
        """Return True if a change was requested by a form of the page itself.

        ``origin`` is the header of this name, None where the browser sends none.
        """
        _, _, host = (origin or "").partition("://")
        same_origin = origin is None or self.accepts_host(host)
        return same_origin and hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


def host_names(address: str, port: int) -> frozenset[str]:
    """Return the host names, with the port, under which a page that listens at this address is requested."""
    loopback = {"127.0.0.1", "::1", "localhost"}
    names = loopback if address in loopback else {address}
    return frozenset(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names)
