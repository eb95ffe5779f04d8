"""The address of Socket.IO: which request gets which answer."""

from __future__ import annotations

import asyncio
import time

import pytest
from websockets.exceptions import InvalidStatus

from hub import auth, engineio_protocol
from hub.errors import OwnerFailed, OwnerGone, OwnerSlow
from hub.handover import Handover
from hub.relay import Home, Limits, Owner, Relay, new_session_id
from hub.transports.engineio import encode_frame
from hub.transports.polling import Address, Probing, Request
from tests.nodes import until
from tests.plane import SECRET, plane
from tests.support import async_test
from tests.transports.polls import QUERY, fault, joined, polls, receive, request, websocket

BAD = [
    ("", "GET", (400, 0)),
    ("EIO=4", "GET", (400, 0)),
    ("EIO=4&transport=abc", "GET", (400, 0)),
    ("transport=polling", "GET", (400, 5)),
    ("EIO=3&transport=polling", "GET", (400, 5)),
    ("EIO=abc&transport=websocket", "GET", (400, 5)),
    (QUERY, "POST", (400, 2)),
    (QUERY, "PUT", (400, 2)),
    (QUERY, "DELETE", (400, 2)),
    (f"{QUERY}&sid=unknown", "GET", (400, 1)),
    (f"{QUERY}&sid=__proto__", "POST", (400, 1)),
    ("EIO=4&transport=websocket", "GET", (400, 3)),
    ("EIO=4&transport=websocket&sid=unknown", "GET", (400, 3)),
    ("EIO=4&transport=websocket&sid=unknown", "POST", (400, 2)),
]


@pytest.mark.parametrize(("query", "method", "expected"), BAD)
@async_test
async def test_bad_requests_have_engine_ios_codes(valkey_url, prefix, query, method, expected):
    """In JSON; no session comes of them."""
    async with plane(valkey_url, prefix) as hub:
        response = await request(hub, query, method, b"40" if method in ("POST", "PUT") else None)
        assert fault(response) == expected
        assert response.headers["Content-Type"] == "application/json"
        assert not hub.engine.sessions


@async_test
async def test_pages_of_other_origins_are_refused(valkey_url, prefix):
    """Those of the list and of the hub's own host get their CORS headers, preflight included."""
    page = "https://app.example"
    async with plane(valkey_url, prefix, origins=(page,)) as hub:
        for origin in ("https://evil.example", "null"):
            response = await request(hub, QUERY, headers={"Origin": origin})
            assert fault(response) == (403, 4)
            assert "Access-Control-Allow-Origin" not in response.headers
        for origin in (page, f"http://127.0.0.1:{hub.port}"):
            for method, status in (("GET", 200), ("OPTIONS", 204)):
                response = await request(hub, QUERY, method, headers={"Origin": origin})
                assert response.code == status
                assert response.headers["Access-Control-Allow-Origin"] == origin
                assert response.headers["Vary"] == "Origin"


@async_test
async def test_a_body_over_the_limit_ends_the_session(valkey_url, prefix):
    """413, whatever is in it; at the limit it is judged by what it says."""
    async with plane(valkey_url, prefix, socketio={"max_payload_bytes": 1024}) as hub:
        session = await joined(hub)
        event = b'42["publish",{"channel":"open:a","data":"%b"}]'
        assert (await session.post(event % (b"x" * (1024 - len(event) + 2)))).body == b"ok"
        assert fault(await session.post(event % (b"x" * (1024 - len(event) + 3)))) == (413, 3)
        assert await session.gone()


@async_test
async def test_too_many_handshakes_are_told_to_come_back(valkey_url, prefix):
    """503 with Retry-After, as for WebSockets."""
    async with plane(valkey_url, prefix) as hub:
        hub.draining.set()
        response = await request(hub, QUERY)
        assert response.code == 503
        assert response.headers["Retry-After"] == "1"


@async_test
async def test_a_session_begun_with_a_token_stays_its_users(valkey_url, prefix):
    """By header or query: who knows the session's id but has no token of that user is refused."""
    ann, bob = (auth.make(user, SECRET, 60, time.time()) for user in ("ann", "bob"))
    async with plane(valkey_url, prefix) as hub:
        assert fault(await request(hub, f"{QUERY}&token=nonsense")) == (401, 4)
        session = await polls(hub, headers={"Authorization": f"Bearer {ann}"})
        for headers in ({}, {"Authorization": f"Bearer {bob}"}, {"Authorization": "Bearer nonsense"}):
            assert fault(await session.post(b"40", headers=headers)) == (403, 4)
            assert fault(await session.get(headers=headers)) == (403, 4)
            with pytest.raises(InvalidStatus, match="HTTP 403"):
                async with websocket(hub, session.sid, additional_headers=headers):
                    pass
        renewed = auth.make("ann", SECRET, 61, time.time())
        for token in (ann, renewed):
            assert (await session.post(b"3", headers={"Authorization": f"Bearer {token}"})).body == b"ok"
        query = f"{session.query}&token={ann}"
        assert (await request(hub, query, "POST", b"40")).body == b"ok"
        await request(hub, query, "POST", b'420["publish",{"channel":"users:a","data":1}]')
        response = await request(hub, query)
        assert response.body.startswith(b'40{"sid":"')
        assert hub.services.users.sessions == 1
        assert len(hub.services.users) == 1


@async_test
async def test_a_websocket_that_cannot_be_brought_to_its_machine_is_refused(valkey_url, prefix):
    """In Engine.IO's words, before it is answered: its client stays with its polls. Of this machine: no tunnel."""
    home = Home("f" * 16, "")
    relay = Relay(home, 0, 1, Limits())
    faults = {"a" * 16: OwnerGone("gone"), "b" * 16: OwnerSlow("slow"), "c" * 16: OwnerFailed("failed")}

    class NoWay:
        async def dig(self, owner, key, words):
            raise faults[owner.hub]

    async with plane(valkey_url, prefix) as hub:
        handover = Handover(home, relay.owner)
        address = Address(hub.engine, None, relay, handover, NoWay())
        found = [await address.reach(Probing(new_session_id(Owner(one, 0, 1)), "", "k", "", b"")) for one in faults]
        assert found == [engineio_protocol.UNKNOWN_SID, engineio_protocol.SLOW, engineio_protocol.SLOW]
        assert await address.reach(Probing(new_session_id(relay.owner), "", "k", "", b"")) is None
        handover.close()


@async_test
async def test_a_session_begun_without_a_token_is_whoevers_joined(valkey_url, prefix):
    """Stock clients can't send along what they joined with, so none is needed; a foreign one is refused."""
    ann, bob = (auth.make(user, SECRET, 60, time.time()) for user in ("ann", "bob"))
    async with plane(valkey_url, prefix) as hub:
        session = await polls(hub)
        for token, status in ((ann, 403), ("nonsense", 403), (auth.make("", SECRET, 60, time.time()), 200)):
            response = await session.post(b"3", headers={"Authorization": f"Bearer {token}"})
            assert response.code == status
        assert (await session.post(b'40{"token":"%b"}' % ann.encode())).body == b"ok"
        for token, status in ((bob, 403), (ann, 200)):
            assert (await request(hub, f"{session.query}&token={token}", "POST", b"3")).code == status
        assert (await session.packets())[0].startswith(b'40{"sid":')


@async_test
async def test_a_session_keeps_the_revision_that_it_began_with(valkey_url, prefix):
    """A request of another one is refused, and the session goes on (CVE-2026-102599)."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        for version in ("3", "5", "4.0", "", "04"):
            query = session.query.replace("EIO=4", f"EIO={version}")
            assert fault(await request(hub, query)) == (400, 5)
            assert fault(await request(hub, query, "POST", b"3")) == (400, 5)
        assert (await session.post(b'420["unsubscribe",{"channel":"open:a"}]')).body == b"ok"
        assert await session.packets() == [b"430[{}]"]


@async_test
async def test_more_packets_than_a_body_may_hold_end_the_session(valkey_url, prefix):
    """16 are, and of a client that has joined max_packets if they are messages, as stock clients join what waits; one
    more is 400, and so are a million separators, at once (CVE-2020-36048)."""
    event = b'42["unsubscribe",{"channel":"open:a"}]'
    async with plane(valkey_url, prefix, socketio={"max_packets": 100}) as hub:
        for packets, begin, status in (
            ([b"3"] * 16, polls, 200),
            ([b"3"] * 17, polls, 400),
            ([b"40", *[event] * 16], polls, 400),
            ([event] * 100, joined, 200),
            ([event] * 101, joined, 400),
            ([*[event] * 84, *[b"3"] * 16], joined, 200),
            ([*[event] * 83, *[b"3"] * 17], joined, 400),
            ([b""] * 900_000, joined, 400),
        ):
            session = await begin(hub)
            begun = time.process_time()
            assert (await session.post(*packets)).code == status
            assert time.process_time() - begun < 1
            assert (session.sid in hub.engine.sessions) == (status == 200)


@async_test
async def test_no_answer_is_a_script(valkey_url, prefix):
    """JSONP is off: what a page could load from a foreign origin is text that no browser runs."""
    async with plane(valkey_url, prefix) as hub:
        response = await request(hub, f"{QUERY}&j=0")
        assert response.body.startswith(b'0{"sid":')
        assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@async_test
async def test_with_a_star_pages_of_all_origins_are_let_in(valkey_url, prefix):
    """By polls and WebSocket, with the same header for all and never with credentials."""
    async with plane(valkey_url, prefix, origins=("*",)) as hub:
        for headers in ({}, {"Origin": "https://anybody.example"}, {"Origin": "null"}):
            for method, query, status in (("GET", QUERY, 200), ("OPTIONS", QUERY, 204), ("GET", "EIO=4", 400)):
                response = await request(hub, query, method, headers=headers)
                assert response.code == status
                assert response.headers["Access-Control-Allow-Origin"] == "*"
                assert "Vary" not in response.headers
                assert "Access-Control-Allow-Credentials" not in response.headers
        assert {"GET", "POST", "PUT"} <= set(
            (await request(hub, QUERY, "OPTIONS")).headers["Access-Control-Allow-Methods"].split(", ")
        )
        async with websocket(hub, origin="https://anybody.example") as socket:
            assert (await receive(socket)).startswith("0{")


@async_test
async def test_a_long_post_is_handled_in_order_and_by_turns(valkey_url, prefix):
    """A second one beside it would come between, and ends the session; the loop serves others meanwhile."""
    events = [b'42%d["unsubscribe",{"channel":"open:a"}]' % number for number in range(200)]
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        assert (await session.post(*events)).body == b"ok"
        assert await session.packets() == [b"43%d[{}]" % number for number in range(200)]
        connection = hub.engine.sessions[session.sid]
        post = asyncio.create_task(connection.post(b"\x1e".join(events)))
        await asyncio.sleep(0)
        assert not post.done()
        assert not await connection.post(b"3")
        await post
        assert await session.gone()
        session = await joined(hub)
        connection = hub.engine.sessions[session.sid]
        post = asyncio.create_task(connection.post(b"\x1e".join(events)))
        await asyncio.sleep(0)
        post.cancel()  # its client has gone, and can't know what was taken
        with pytest.raises(asyncio.CancelledError):
            await post
        assert await session.gone()


@async_test
async def test_sessions_without_a_socket_are_counted(valkey_url, prefix):
    """As no descriptor bounds them; those that have moved to a WebSocket, or ended, make room."""
    async with plane(valkey_url, prefix, socketio={"polling_sessions": 2}) as hub:
        first, second = await polls(hub), await polls(hub)
        answer = await request(hub, QUERY)
        assert fault(answer) == (503, 4) and answer.headers["Retry-After"] == "1"
        async with websocket(hub, first.sid) as socket:
            await socket.send("2probe")
            assert await receive(socket) == "3probe"
            await socket.send("5")
            await until(lambda: hub.engine.polling == 1)
            third = await polls(hub)
            assert (await request(hub, QUERY)).code == 503
            assert (await second.post(b"1")).body == b"ok"
            await polls(hub)
            assert (await third.post(b"9")).code == 400
        await until(lambda: hub.engine.polling == 1)


@pytest.mark.expects_log
@async_test
async def test_an_answer_that_can_not_be_relayed_ends_its_session(valkey_url, prefix, caplog):
    """What it held is gone, so whoever polls on would miss it unawares."""
    async with plane(valkey_url, prefix) as hub:
        relay = Relay(Home("0123456789abcdef", ""), 0, 1, Limits(message_bytes=1000))
        handover = Handover(Home("0123456789abcdef", ""), relay.owner)
        address = Address(hub.engine, None, relay, handover)
        for size, status in ((900, b"200\n"), (1000, b"500\n")):
            session = await joined(hub)
            hub.engine.sessions[session.sid].put(encode_frame(b"4" + b"x" * size))
            answer = await address.answer(Request("GET", session.sid, "", b"").pack())
            assert answer.startswith(status)
            assert (await session.post(b"3")).code == (200 if size < 1000 else 400)
        handover.close()
    assert "relay.message_bytes" in caplog.text
