"""What browsers, proxies and CDNs between may keep of the hub's answers, and what they must not touch."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.hubs import HubProcess

OPEN = {"mode": "stream", "subscribe": "anyone", "publish": "anyone"}
QUERY = "/socket.io/?EIO=4&transport=polling"


def connection(hub: HubProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(hub.ws_url).netloc, timeout=10)


KEPT_BY_NOBODY = [
    ("GET", "/", 200),
    ("GET", "/no/such/page", 404),
    ("GET", "/poll?channel=log:cache&wait=0", 204),
    ("GET", "/poll", 400),
    ("GET", "/sse?channel=log:cache", 200),
    ("GET", "/sse", 400),
    ("POST", "/publish", 400),
    ("POST", "/connection/http_stream", 200),
    ("GET", "/connection/sse?cf_connect=%7B%22id%22:1,%22connect%22:%7B%7D%7D", 200),
    ("POST", "/emulation", 400),
    ("GET", QUERY, 200),
    ("GET", "/socket.io/", 400),
    ("GET", "/connection/websocket", 426),
]
STREAMS = ("/sse?", "/connection/http_stream", "/connection/sse")
BODIES = {"/connection/http_stream": b'{"id":1,"connect":{}}'}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with HubProcess({"namespaces": {"log": OPEN}}) as hub:
        yield hub


@pytest.mark.parametrize(("method", "target", "status"), KEPT_BY_NOBODY)
def test_a_cdn_keeps_and_changes_nothing_that_is_one_clients(
    hub: HubProcess, method: str, target: str, status: int
) -> None:
    """no-store on every answer, errors too; streams are not to be compressed; answers differ by Origin."""
    with contextlib.closing(connection(hub)) as one:
        body = BODIES.get(target, b"{}") if method == "POST" else None
        one.request(method, target, body, {"Content-Type": "application/json"} if body else {})
        response = one.getresponse()
        assert response.status == status
        words = {word.strip() for word in response.headers["Cache-Control"].split(",")}
        stream = status == 200 and target.startswith(STREAMS)
        assert words == ({"no-store", "no-transform"} if stream else {"no-store"})
        if status != 404 and target != "/" and "websocket" not in target:
            assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_cdn_may_keep_the_module(hub: HubProcess, method: str) -> None:
    """/hub.js is the same for all."""
    with contextlib.closing(connection(hub)) as one:
        one.request(method, "/hub.js")
        response = one.getresponse()
        assert response.status == 200
        assert response.headers["Cache-Control"] == "public, max-age=600"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["ETag"]
        assert bool(response.read()) == (method == "GET")
