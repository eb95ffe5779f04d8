"""Emulation: what a POST to /emulation is answered, and who may reach which session."""

from __future__ import annotations

import time

import orjson
import pytest

from hub import auth
from hub.app import App
from hub.errors import OwnerFailed, OwnerSlow
from hub.relay import Owner
from hub.transports.emulation import Sessions
from tests.emulated import http, request, stream_client
from tests.plane import SECRET, plane
from tests.support import async_test

OTHER = "fedcba9876543210.0.1"


def token(user: str, ttl_s: float = 60) -> str:
    return f"Bearer {auth.make(user, SECRET, ttl_s, time.time())}"


async def post(url: str, body: object, **headers: str | None) -> int:
    text = body if isinstance(body, bytes) else orjson.dumps(body)
    return (await request(url, http("POST", "/emulation", text, **headers)))[0]


@async_test
async def test_an_unknown_session_is_404_whatever_is_wrong_with_it(valkey_url, prefix):
    """No such id, another worker's, another hub's, no id at all, or one with another node beside it."""
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url) as one:
        secret = one.session.rpartition(".")[2]
        others = [
            (f"{one.node}.{'0' * 32}", one.node),
            (f"{one.node[:-1]}9.{secret}", f"{one.node[:-1]}9"),
            (f"{OTHER}.{secret}", OTHER),
            (one.session, OTHER),
            (one.session, None),
            (secret, one.node),
            ("", ""),
            (None, one.node),
            ([one.session], one.node),
            ("../" * 20, one.node),
        ]
        for session, node in others:
            assert await post(hub.http_url, {"session": session, "node": node, "data": "{}"}) == 404
        assert await one.command(rpc={"method": "hub.time"})


MALFORMED = [b"{", b"[]", b'"x"', b"\xff\xff", b"{}", {"data": 1}, {"data": ""}, {"data": None}, {"data": {"id": 1}}]


@pytest.mark.parametrize("body", MALFORMED)
@async_test
async def test_a_malformed_request_is_400_and_hurts_no_session(valkey_url, prefix, body):
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url) as one:
        if isinstance(body, dict):
            body = {"session": one.session, "node": one.node, **body}
        assert await post(hub.http_url, body) == 400
        assert await one.command(rpc={"method": "hub.time"})


@pytest.mark.parametrize("data", ["{", "[]", '{"id":2,"connect":{}}', '{"subscribe":{"channel":"open:a"}}'])
@async_test
async def test_commands_that_break_the_protocol_end_the_session(valkey_url, prefix, data):
    """400 to the request, 3501 in the stream."""
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url) as one:
        assert await one.send(data) == 400
        assert await one.ending() == {"code": 3501, "reason": "bad request"}


@async_test
async def test_too_large_is_413_and_a_foreign_type_415(valkey_url, prefix):
    """The commands by client.message_bytes, the request as a whole by http.body_bytes."""
    async with (
        plane(valkey_url, prefix, client={"message_bytes": 1000}, http={"body_bytes": 4000}) as hub,
        stream_client(hub.http_url) as one,
    ):
        assert await one.send('{"id":2,"rpc":{"method":"%s"}}' % ("ü" * 600)) == 413
        # Refused by its head alone, and before any of it is kept.
        head = http("POST", "/emulation", Content_Type="application/json", Content_Length="4001")
        assert (await request(hub.http_url, head))[0] == 413
        assert await one.send("{}", Content_Type="text/plain") == 415
        assert await one.command(rpc={"method": "hub.time"})


@async_test
async def test_a_token_must_be_the_users_own(valkey_url, prefix):
    """None is needed; a foreign one is 403, one that is not good 401, and the session lives on."""
    async with plane(valkey_url, prefix) as hub:
        ann = auth.make("ann", SECRET, 60, time.time())
        async with stream_client(hub.http_url, token=ann) as one:
            statuses = [
                await one.send("{}", Authorization=header)
                for header in (
                    token("ann"),
                    token("bob"),
                    token(""),
                    token("ann", -60),
                    "Bearer x.y.z",
                    "Basic eDp5",
                    None,
                )
            ]
            assert statuses == [204, 403, 403, 401, 401, 204, 204]
            assert await one.command(rpc={"method": "hub.time"})


@async_test
async def test_the_user_of_the_token_is_the_one_by_whatever_name_the_application_calls_it(valkey_url, prefix):
    """A page's cookie comes with each request, and goes on to name whom it named."""
    app = App()
    app.on_connect()(lambda client, data: {"user": f"member of {client.user}"})
    async with plane(valkey_url, prefix, app=app) as node, stream_client(node.http_url, token=token("ann")[7:]) as one:
        found = [await one.send("{}", Authorization=token(user)) for user in ("ann", "member of ann", "bob")]
        assert found == [204, 403, 403]


@async_test
async def test_pages_of_foreign_origins_are_refused(valkey_url, prefix):
    async with (
        plane(valkey_url, prefix, origins=("https://app.example",)) as hub,
        stream_client(hub.http_url) as one,
    ):
        assert await one.send("{}", Origin="https://evil.example") == 403
        assert await one.send("{}", Origin="https://app.example") == 204


@pytest.mark.parametrize(("error", "status"), [(OwnerSlow("late"), 504), (OwnerFailed("broken"), 500)])
@async_test
async def test_an_owner_that_gives_no_answer_has_its_status(valkey_url, prefix, monkeypatch, error, status):
    """What the relay raises; that of a worker which has gone is the 404 above."""

    async def fails(*_: object) -> bytes:
        raise error

    monkeypatch.setattr("hub.relay.Relay.ask", fails)
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url) as one:
        assert await one.send("{}") == status


def test_ids_are_of_128_random_bits_and_forgotten_with_their_stream():
    """Each begins with the worker's name."""
    sessions = Sessions(Owner("0123456789abcdef", 2, 7))
    ids = {sessions.enter(None) for _ in range(100)}
    assert len(ids) == len(sessions) == 100
    assert all(len(one) == len("0123456789abcdef.2.7.") + 32 and one.startswith("0123456789abcdef.2.7.") for one in ids)
    for one in ids:
        sessions.leave(one)
    assert len(sessions) == 0
