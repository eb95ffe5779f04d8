"""CORS: which pages may ask, and what a browser is told before and with the answer."""

from __future__ import annotations

import pytest

from hub.cors import allowed_origin, headers
from tests.emulated import http, request
from tests.plane import plane
from tests.support import async_test

ALLOWED = frozenset({"https://app.example"})


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, ""),
        ("", ""),
        ("https://app.example", "https://app.example"),
        ("http://hub.example:8000", "http://hub.example:8000"),
        ("https://evil.example", None),
        ("null", None),
        ("http://hub.exam\tple:8000", None),
        ("http://hub.example:8000\x7f", None),
        ("http://hub.example:8000\xe9", None),
    ],
)
def test_an_origin_is_repeated_only_if_it_may_ask(origin, expected):
    """Our own host and the listed ones; nothing that could end a header's line."""
    assert allowed_origin(origin, "hub.example:8000", ALLOWED) == expected


def test_every_answer_varies_by_origin():
    assert headers("") == {"Vary": "Origin"}
    assert headers("https://app.example") == {"Vary": "Origin", "Access-Control-Allow-Origin": "https://app.example"}


@pytest.mark.parametrize("origin", [None, "", "https://anybody.example", "null", "x\ty"])
def test_a_star_is_the_answer_to_all_origins(origin):
    """The same for all, so that caches need not vary by it; what a client sent is never repeated."""
    assert allowed_origin(origin, "hub.example:8000", {"*"}) == "*"
    assert headers("*") == {"Access-Control-Allow-Origin": "*"}


@async_test
async def test_a_preflight_is_answered_for_allowed_pages(valkey_url, prefix):
    """204 with what may be sent, without credentials; 403 for others."""
    async with plane(valkey_url, prefix, origins=tuple(ALLOWED)) as hub:
        for path, methods in (("/emulation", "POST"), ("/connection/sse", "GET, POST")):
            asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
            text = http("OPTIONS", path, Origin="https://app.example", **asked)
            status, found, body = await request(hub.http_url, text)
            assert (status, body) == (204, b"")
            assert found["access-control-allow-origin"] == "https://app.example"
            assert found["access-control-allow-methods"] == methods
            assert "Content-Type" in found["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in found
            assert (await request(hub.http_url, http("OPTIONS", path, Origin="https://evil.example", **asked)))[
                0
            ] == 403


@async_test
async def test_a_page_may_read_our_refusals(valkey_url, prefix):
    """Also those that Tornado makes, which begins its answer anew."""
    async with plane(valkey_url, prefix, origins=tuple(ALLOWED)) as hub:
        for method, body, status in (("POST", b"{", 400), ("PUT", b"", 405)):
            found = await request(hub.http_url, http(method, "/emulation", body, Origin="https://app.example"))
            assert found[0] == status
            assert found[1]["access-control-allow-origin"] == "https://app.example"
