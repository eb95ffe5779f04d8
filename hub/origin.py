"""Origins: which web pages may open a connection (cross-site WebSocket hijacking, OWASP).

Does: compare a request's Origin header with the hub's own host and the allow-list.
Does not: authenticate anybody; a client that is no browser can send any Origin.
Called by: transports, before anything is upgraded.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

EVERYBODY = "*"
"""Among the allowed origins: pages of any origin. No cookie counts in the hub, so such a page has nobody's rights."""


def allowed(origin: str | None, host: str, allowed_origins: Collection[str]) -> bool:
    """Whether a page of `origin` may connect to `host` (the Host header).

    No Origin header: no browser, allowed. The same host: allowed. 'null' (sandboxed frames, files) and anything else
    only if it stands in `allowed_origins`, where 'null' can't stand; with EVERYBODY there, all of them.
    """
    if origin is None or EVERYBODY in allowed_origins:
        return True
    text = origin.lower()
    if text in allowed_origins:
        return True
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and parts.netloc == host.lower()
