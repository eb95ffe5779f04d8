"""CORS: requests of web pages to doors that are plain HTTP, and what their browsers have to be told.

Does: refuse pages of foreign origins, answer preflights, put the headers of the Fetch standard on every answer.
Does not: decide which origins are allowed (origin), or authenticate (entrance): unless a cookie may hold a token, none
may be sent along.
Called by: transports that answer plain HTTP derive their handlers from `CorsHandler`.
Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from . import httpd, origin
from .refusals import Refusals

MAX_AGE_S = 7200
"""How long a browser need not ask again; Chromium takes no more."""
REQUEST_HEADERS = "Authorization, Content-Type, Last-Event-ID"
WANTS_JSON = "Content-Type: allowed is application/json"
"""Goes with the status 415."""
PRINTABLE = re.compile(r"[\x21-\x7e]+")


def allowed_origin(
    text: str | None, host: str, allowed_origins: Collection[str], *, secure: bool = False
) -> str | None:
    """What may be put into an answer's Access-Control-Allow-Origin: the request's Origin; '' where it has none.

    '*', with or without an Origin, where pages of all origins may ask; None: pages of that origin may not.
    secure: as `origin.allowed` has it.
    """
    if origin.EVERYBODY in allowed_origins:
        return origin.EVERYBODY
    if not text:
        return ""
    # It goes into our own header, so what `origin` overlooks (a URL's parser drops tabs) ends here.
    if not PRINTABLE.fullmatch(text) or not origin.allowed(text, host, allowed_origins, secure=secure):
        return None
    return text


def headers(allowed: str, cookies: bool = False) -> dict[str, str]:
    """Of every answer. allowed: as `allowed_origin` has it. cookies: pages may send theirs along (auth.cookie)."""
    if allowed == origin.EVERYBODY:
        return {"Access-Control-Allow-Origin": allowed}  # the same for all, so caches need not tell them apart
    # Vary also without an Origin: a cache must not give that answer to a page.
    fields = {"Vary": "Origin"}
    if allowed:
        fields["Access-Control-Allow-Origin"] = allowed
        if cookies:
            fields["Access-Control-Allow-Credentials"] = "true"
    return fields


def says_json(content_type: str) -> bool:
    """'application/json; charset=utf-8' -> True"""
    return content_type.partition(";")[0].strip().lower() == "application/json"


class CorsHandler(httpd.Handler):
    """A door that pages of allowed origins may use. Called with `allowed_origins`, `refusals` set by `initialize`."""

    METHODS: tuple[str, ...] = ("POST",)
    """What the door takes, besides OPTIONS."""
    allowed_origins: Collection[str]
    refusals: Refusals
    """Counts the pages that may not; set with it."""
    takes_cookies = False
    """Pages may send theirs along."""
    allowed: str | None = ""
    """The origin of the page, '' without one, None if it is refused."""

    def prepare(self) -> None:
        request = self.request.headers
        self.allowed = allowed_origin(
            request.get("Origin"), request.get("Host", ""), self.allowed_origins, secure=self.secure
        )
        self._set_cors()
        if self.allowed is None:
            self.refusals.count("origins")
            self.plain(403, "this Origin is not allowed; see allowed_origins in the settings")
        elif self.request.method == "OPTIONS":
            self._answer_preflight()
        elif self.request.method not in self.METHODS:
            self.set_header("Allow", ", ".join((*self.METHODS, "OPTIONS")))
            self.plain(405, f"allowed here: {', '.join(self.METHODS)}")

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self._set_cors()

    def _set_cors(self) -> None:
        # An error clears what was set before it; a page may read its status only with these.
        for name, value in headers(self.allowed or "", self.takes_cookies).items():
            self.set_header(name, value)

    def _answer_preflight(self) -> None:
        self.set_header("Access-Control-Allow-Methods", ", ".join(self.METHODS))
        self.set_header("Access-Control-Allow-Headers", REQUEST_HEADERS)
        self.set_header("Access-Control-Max-Age", str(MAX_AGE_S))
        self.set_status(204)
        self.finish()

    def is_json(self) -> bool:
        """The body says that it is JSON; otherwise it has been answered 415.

        A page can send other types without a preflight (the form types of HTML), so they are refused outright.
        """
        if says_json(self.request.headers.get("Content-Type", "")):
            return True
        self.plain(415, WANTS_JSON)
        return False

    def options(self) -> Any:
        """Answered by `prepare`."""
