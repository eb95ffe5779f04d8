"""Plain HTTP: who is refused, with which status, and that nothing else than that is said."""

from __future__ import annotations

import logging
import time

import pytest

from hub import auth
from tests.eventsource import request, stream
from tests.plane import SECRET, Plane, plane
from tests.support import async_test

PATHS = ("/sse", "/poll")
REFUSED = {
    "channel=": (400, 107),
    "": (400, 107),
    "channel=open%3A%0A": (400, 107),
    "channel=open:" + "a" * 256: (400, 107),
    "channel=nowhere:a": (404, 102),
    "channel=closed:a": (403, 103),
    "channel=users:a": (403, 103),
    "channel=open:a&channel=closed:a": (403, 103),
    "channel=open:%2342": (403, 103),
    "channel=tokens:a": (403, 103),
    "channel=open:a&join_leave=true": (400, 108),
    "channel=open:a&join_leave=maybe": (400, 107),
    "channel=open:a&since=nonsense": (400, 107),
    "channel=open:a&since=1~%0D%0A~1~2": (400, 107),
    "channel=open:a&since=&since=": (400, 107),
    "channel=open:a&token=nonsense": (401, 101),
    "channel=open:a&token=a&token=b": (400, 107),
    "&".join(f"channel=open:{number}" for number in range(129)): (400, 106),
}


@async_test
async def test_bad_requests_have_a_status_and_a_code(valkey_url, prefix):
    """The same on every wire, before anything is subscribed."""
    async with plane(valkey_url, prefix) as one:
        for path in PATHS:
            for query, expected in REFUSED.items():
                answer = await request(one.port, "GET", f"{path}?{query}")
                assert (answer.status, answer.code) == expected, f"{path}?{query}"
                assert "nonsense" not in answer.body.decode()
        assert one.fanout.subscriptions == 0


@async_test
async def test_a_refusal_says_which_channel_it_is_about(valkey_url, prefix):
    """By its place among the names, each counted once; other refusals have none."""
    async with plane(valkey_url, prefix) as one:
        for path in PATHS:
            answer = await request(
                one.port, "GET", f"{path}?channel=open:a&channel=open:a&channel=closed:a&channel=open:b"
            )
            assert (answer.status, answer.json["error"]["index"]) == (403, 1)
            assert "closed" not in answer.body.decode()
            answer = await request(one.port, "GET", f"{path}?channel=open:a&since=nonsense")
            assert "index" not in answer.json["error"]


@async_test
async def test_a_bad_last_event_id_is_refused(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        answer = await request(one.port, "GET", "/sse?channel=chat:a", Last_Event_ID="1~x~y~z")
        assert (answer.status, answer.code) == (400, 107)


def token(ttl_s: float = 60.0) -> str:
    return auth.make("42", SECRET, ttl_s, time.time())


async def status(one: Plane, target: str, method: str = "POST", body: bytes = b"", **headers: str) -> int:
    return (await request(one.port, method, target, body, **headers)).status


@async_test
async def test_a_token_comes_by_header_or_query(valkey_url, prefix):
    """The header goes first; an expired or foreign one is 401, which says what is wanted."""
    body = b'{"channel":"users:a","data":1}'
    async with plane(valkey_url, prefix) as one:
        assert await status(one, "/publish", body=body, Authorization=f"Bearer {token()}") == 200
        assert await status(one, f"/publish?token={token()}", body=body) == 200
        assert await status(one, "/publish?token=x", body=body, Authorization=f"bearer  {token()}") == 200
        assert await status(one, "/publish", body=body) == 403
        answer = await request(one.port, "POST", "/publish", body, Authorization=f"Bearer {token(-60)}")
        assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, 109, "Bearer")
        foreign = auth.make("42", SECRET + "x", 60, time.time())
        answer = await request(one.port, "POST", f"/publish?token={foreign}", body)
        assert (answer.status, answer.code) == (401, 101)


@async_test
async def test_a_mailbox_is_refused_as_it_needs_acknowledgements(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        for path in PATHS:
            answer = await request(one.port, "GET", f"{path}?channel=inbox:%2342&token={token()}")
            assert (answer.status, answer.code) == (400, 108)


@async_test
async def test_pages_of_other_origins_are_refused_and_allowed_ones_told_so(valkey_url, prefix):
    """CORS: the very origin and never a wildcard; `null` is nobody's."""
    async with plane(valkey_url, prefix, origins=("https://app.test",)) as one:
        for target in ("/sse?channel=open:a", "/poll?channel=open:a&wait=0"):
            for origin in ("https://evil.test", "null"):
                answer = await request(one.port, "GET", target, Origin=origin)
                assert (answer.status, answer.code) == (403, 103)
                assert "access-control-allow-origin" not in answer.headers
        answer = await request(
            one.port, "POST", "/publish", b'{"channel":"open:a","data":1}', Origin="https://evil.test"
        )
        assert answer.status == 403
        answer = await request(one.port, "GET", "/poll?channel=chat:a&wait=0", Origin="https://app.test")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "https://app.test")
        assert "Hub-Cursor" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "Origin"
        async with stream(one.port, "channel=open:a", Origin="https://app.test") as listener:
            assert listener.headers["access-control-allow-origin"] == "https://app.test"
        async with stream(one.port, "channel=open:a", Origin="http://hub.test") as listener:
            assert listener.status == 200


@async_test
async def test_an_origin_that_fits_in_no_header_is_refused(valkey_url, prefix, caplog):
    """A URL's parser drops tabs, so this one looks like the hub's own host."""
    caplog.set_level(logging.ERROR)
    async with plane(valkey_url, prefix) as one:
        for path in PATHS:
            answer = await request(one.port, "GET", f"{path}?channel=open:a&wait=0", Origin="http://hub\t.test")
            assert (answer.status, answer.code) == (403, 103)
    assert not caplog.records


@async_test
async def test_a_preflight_is_answered(valkey_url, prefix):
    async with plane(valkey_url, prefix, origins=("https://app.test",)) as one:
        for path, methods in (("/sse", "GET, HEAD"), ("/poll", "GET"), ("/publish", "POST")):
            answer = await request(one.port, "OPTIONS", path, Origin="https://app.test")
            assert (answer.status, answer.headers["access-control-allow-methods"]) == (204, methods)
            assert "Authorization" in answer.headers["access-control-allow-headers"]
            assert (await request(one.port, "OPTIONS", path, Origin="https://evil.test")).status == 403


@async_test
async def test_other_methods_are_refused(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        for path, method in (("/sse", "POST"), ("/poll", "DELETE"), ("/poll", "HEAD"), ("/publish", "GET")):
            answer = await request(one.port, method, path, b"{}" if method == "POST" else b"")
            assert answer.status == 405 and answer.headers["allow"].endswith("OPTIONS")


@async_test
async def test_too_many_requests_at_a_time_are_turned_away(valkey_url, prefix):
    async with plane(valkey_url, prefix, handshakes_per_s=1) as one:
        assert await status(one, "/publish", body=b'{"channel":"open:a","data":1}') == 200
        for method, target, body in (
            ("GET", "/sse?channel=open:a", b""),
            ("GET", "/poll?channel=open:a&wait=0", b""),
            ("POST", "/publish", b'{"channel":"open:a","data":1}'),
        ):
            answer = await request(one.port, method, target, body)
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, 100, "1")


@async_test
async def test_no_token_reaches_the_log(valkey_url, prefix, caplog):
    caplog.set_level(logging.DEBUG)
    secret = token()
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, f"channel=users:a&token={secret}") as listener:
            await listener.next("open")
        await request(one.port, "GET", f"/poll?channel=users:a&wait=0&token={secret}")
        await request(one.port, "GET", f"/poll?channel=users:a&wait=0&token={secret}x")
    assert "GET /sse 200" in caplog.text and "GET /poll 204" in caplog.text
    assert secret not in caplog.text


@pytest.mark.parametrize("path", PATHS)
@async_test
async def test_an_address_with_bytes_that_are_no_text_is_400(path, valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        answer = await request(one.port, "GET", f"{path}?channel=%ff%fe")
        assert (answer.status, answer.code) == (400, 107)
