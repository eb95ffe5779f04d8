"""Origins: which web pages may open a connection (cross-site WebSocket hijacking, OWASP).

Does: compare a request's Origin header with the hub's own host and the allow-list, wildcards for subdomains included.
Does not: authenticate anybody; a client that is no browser can send any Origin.
Called by: transports, before anything is upgraded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

EVERYBODY = "*"
"""Among the allowed origins: pages of any origin, also of 'null'. Such a page must have nobody's rights: no cookie may
count then. So 'null' gets nothing by it that a script that is no page has not; an answer's `*` admits it as well.
"""
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
NAMED = re.compile(rf"(https?://)((?:{LABEL}\.)+{LABEL})(:[0-9]{{1,5}})?")
"""An origin whose host is a name of several labels; what a browser sends of such a page looks just so."""
MAX_HOST_LENGTH = 253
"""Of a name, RFC 1035 §2.3.4."""
WILDCARD = re.compile(rf"https?://\*\.(?:{LABEL}\.)+{LABEL}(?::[0-9]{{1,5}})?")
"""'https://*.example.com': pages of all its subdomains. Of two labels at least: '*.com' would be half the world."""


class Origins(frozenset[str]):
    """The allow-list, in lower case: 'https://app.example.com', 'https://*.example.com', EVERYBODY."""

    @property
    def any(self) -> bool:
        """Pages of any origin may connect, so that nothing may count which a browser sends by itself."""
        return EVERYBODY in self


def allowed(origin: str | None, host: str, allowed_origins: Collection[str], *, secure: bool = False) -> bool:
    """Whether a page of `origin` may connect to `host` (the Host header). secure: by a TLS listener of the hub's own.

    No Origin header: no browser, allowed. The same host: allowed; of a secure one its https pages only, as anybody on
    the way can write an http page of that host. Without TLS here a proxy may have ended it: both schemes do.
    'null' (sandboxed frames, files) and anything else only if it stands in `allowed_origins`, where 'null' can't stand;
    with EVERYBODY there, all of them.
    'https://*.example.com' there allows subdomains of any depth, with the same scheme and port; not example.com itself.
    """
    if origin is None or EVERYBODY in allowed_origins:
        return True
    text = origin.lower()
    if text in allowed_origins or _is_subdomain(text, allowed_origins):
        return True
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    if parts.scheme != "https" and (secure or parts.scheme != "http"):
        return False
    return bool(parts.netloc) and parts.netloc == host.lower()


def _is_subdomain(text: str, allowed_origins: Collection[str]) -> bool:
    """Whether a wildcard of the list means it; looked up by what it would be, so that a long list costs nothing."""
    found = NAMED.fullmatch(text)
    if found is None or len(found[2]) > MAX_HOST_LENGTH:
        return False
    scheme, host, port = found[1], found[2], found[3] or ""
    parents = [host[at + 1 :] for at, letter in enumerate(host) if letter == "."]
    return any(f"{scheme}*.{parent}{port}" in allowed_origins for parent in parents)
