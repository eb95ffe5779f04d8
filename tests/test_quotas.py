"""How much one connection, one user and one address may have: on a fake clock, and on every wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from hub import auth
from hub.app import App
from hub.forwarded import Proxies
from hub.limits import Accounts
from hub.quotas import MOST_KEYS, MOST_REFUSED, MOST_STRIKES, UNLIMITED, Quotas
from hub.refusals import Refusals
from tests.emulated import http, request, stream_client
from tests.hubs import HubProcess
from tests.openings import GOOD, HELD, OPENINGS, begin, status_of
from tests.plane import SECRET, client, plane
from tests.support import FakeClock, async_test
from tests.transports.polls import member, receive, websocket
from tests.transports.test_engineio_raw import Raw, raw_socket
from tests.transports.test_websocket import closing


def quotas(clock=None, proxies=None, **limits) -> Quotas:
    return Quotas(UNLIMITED.model_copy(update=limits), clock or FakeClock(), proxies=proxies)


# Rates.


def test_a_connection_has_its_commands_of_a_second_and_then_its_rate():
    """10 at once, one every 100 ms; what is refused costs nothing."""
    clock = FakeClock()
    meter = quotas(clock, commands_per_s=10).open("")
    assert [meter.spend(clock(), 1, 9) for _ in range(12)] == [True] * 10 + [False] * 2
    clock.advance(0.11)
    assert meter.spend(clock(), 1, 9) and not meter.spend(clock(), 1, 9)


def test_a_message_larger_than_a_second_passes_and_is_earned_back():
    """It is not refused for ever; until it is paid for nothing else passes."""
    clock = FakeClock()
    meter = quotas(clock, bytes_per_s=100).open("")
    assert meter.spend(clock(), 1, 1000) and not meter.spend(clock(), 1, 1)
    clock.advance(8.9)
    assert not meter.spend(clock(), 1, 1)
    clock.advance(0.2)
    assert meter.spend(clock(), 1, 1)


@given(st.integers(1, 50), st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 5)), max_size=100))
def test_nobody_gets_more_than_the_rate_and_a_burst(per_s, messages):
    """Over any time t at most rate × (t + 1) and the last message, which may go beyond."""
    clock = FakeClock(0.0)
    meter, given_ = quotas(clock, commands_per_s=per_s).open(""), 0
    for pause, number in messages:
        clock.advance(pause)
        given_ += number * meter.spend(clock(), number, 1)
        assert given_ <= per_s * (clock() + 1) + 5
    clock.advance(given_ / per_s + 1)
    assert meter.spend(clock(), 1000, 1)


def test_connections_of_one_address_share_its_rate():
    """And those of others have their own; IPv6 by network, IPv4 by the whole address."""
    clock = FakeClock()
    room = quotas(clock, ip_commands_per_s=4)
    one, two = room.open("2001:db8::1"), room.open("2001:db8::ffff:2")
    assert [one.spend(clock(), 1, 1), two.spend(clock(), 3, 1), one.spend(clock(), 1, 1)] == [True, True, False]
    assert room.refusals.counts["ip_commands"] == 1
    assert room.open("2001:db8:0:1::1").spend(clock(), 1, 1)
    assert room.open("203.0.113.7").spend(clock(), 9, 1) and room.open("203.0.113.8").spend(clock(), 1, 1)
    assert not room.request("203.0.113.7", "", 1)


def test_sessions_of_one_user_share_its_rate():
    """Wherever they come from; nobody in particular has none."""
    clock = FakeClock()
    room = quotas(clock, user_commands_per_s=2)
    meters, ann = [room.open("") for _ in range(2)], room.account_of("ann")
    assert room.account_of("ann") is ann and room.account_of("") is None
    assert [meters[place].spend(clock(), 1, 1, ann) for place in (0, 1, 0)] == [True, True, False]
    assert not room.request("", "ann", 1) and room.request("", "bob", 1) and room.request("", "", 1)
    assert room.refusals.counts["user_commands"] == 2


def test_what_an_address_refuses_is_not_taken_from_the_user():
    """Nor the other way round."""
    clock = FakeClock()
    room = quotas(clock, user_commands_per_s=3, ip_commands_per_s=2)
    meter, ann = room.open("203.0.113.7"), room.account_of("ann")
    assert meter.spend(clock(), 2, 1, ann)
    assert not any(meter.spend(clock(), 1, 1, ann) for _ in range(5))
    assert room.open("203.0.113.8").spend(clock(), 1, 1, ann)
    assert not any(room.open("203.0.113.9").spend(clock(), 1, 1, ann) for _ in range(5))
    assert [room.request("203.0.113.9", "", 1) for _ in range(3)] == [True, True, False]


def test_a_rate_outlives_the_connection():
    """Who comes back at once has no new burst."""
    clock = FakeClock()
    room = quotas(clock, ip_commands_per_s=4)
    meter = room.open("203.0.113.7")
    assert meter.spend(clock(), 4, 1)
    meter.close()
    assert not room.open("203.0.113.7").spend(clock(), 1, 1)


def test_accounts_are_forgotten_when_they_are_settled_and_beyond_their_bound():
    """Ten thousand addresses that come once leave no more than the bound; what is held stays."""
    clock = FakeClock()
    accounts = Accounts(100)
    held = accounts.hold("held")
    for number in range(10_000):
        accounts.touch(f"k{number}", clock()).greet(clock(), 1.0)
    assert len(accounts) == 101 and accounts.hold("held") is held
    clock.advance(5)
    for number in range(200):
        accounts.touch(f"n{number}", clock())
        clock.advance(2)
    assert len(accounts) <= 3
    accounts.let_go(held, clock())
    accounts.let_go(held, clock())
    assert accounts.touch("held", clock()) is held


def test_going_on_over_a_rate_is_too_much_after_a_while():
    """For tolerated_s without a quiet second, or MOST_REFUSED commands in one go."""
    clock = FakeClock()
    room = quotas(clock, commands_per_s=1, tolerated_s=2)
    meter = room.open("")
    for _ in range(5):
        assert not meter.sustained(clock(), 1)
        clock.advance(1.5)  # quiet enough
    verdicts = []
    for _ in range(6):
        verdicts.append(meter.sustained(clock(), 1))
        clock.advance(0.5)
    assert verdicts == [False] * 5 + [True]
    assert not room.open("").sustained(clock(), MOST_REFUSED) and room.open("").sustained(clock(), MOST_REFUSED + 1)
    assert room.refusals.counts["floods"] == 2


# Counts.


def test_what_is_opened_is_given_back_once():
    """However often it is closed."""
    room = quotas(ip_connections=2, ip_commands_per_s=9)
    one, two = room.open("203.0.113.7"), room.open("203.0.113.7")
    assert room.admit("203.0.113.7") == "ip_connections" and room.admit("203.0.113.8") == ""
    for _ in range(2):
        one.close()
    assert room.admit("203.0.113.7") == "" and room.connections == 1
    assert not one.spend(0.0, 1, 1)
    two.close()
    assert room.by_ip() == {} and room.connections == 0


def test_ipv6_addresses_of_one_network_are_one_address():
    """However they are written; what is mapped from IPv4 is that address."""
    room = quotas(ip_connections=1, ip_handshakes_per_s=100)
    room.open("2001:db8:1:2::1")
    assert room.admit("2001:0DB8:1:2:ffff:ffff:ffff:ffff") == "ip_connections"
    assert room.admit("2001:db8:1:3::1") == ""
    assert room.by_ip() == {"2001:db8:1:2::/64": 1}
    narrow = quotas(ip_connections=1, ip_network_bits=128)
    narrow.open("2001:db8::1")
    assert narrow.admit("2001:db8::2") == "" and narrow.admit("2001:db8::1") == "ip_connections"
    mapped = ("::ffff:203.0.113.7", 4711, 0, 0)
    assert room.key(Proxies([]).client(mapped, "")) == "203.0.113.7"


def test_names_of_addresses_are_remembered_within_a_bound():
    """Beyond it they are found anew, and are the same."""
    room = quotas(ip_connections=1)
    addresses = [f"2001:db8:{number:x}::1" for number in range(MOST_KEYS + 100)]
    first = [room.key(address) for address in addresses]
    assert first[-1] == f"2001:db8:{MOST_KEYS + 99:x}::/64" and len(set(first)) == len(addresses)
    assert len(room._keys) <= MOST_KEYS
    assert [room.key(address) for address in addresses] == first
    assert len(room._keys) <= MOST_KEYS


def test_a_connection_closed_for_what_it_sent_costs_its_address_handshakes():
    """Two offences a second, beside ten handshakes: an address that offends as often as it comes waits for both."""
    clock = FakeClock()
    room = quotas(clock, ip_handshakes_per_s=10, ip_offences_per_s=2)
    meters = [room.open("203.0.113.7") for _ in range(4)]
    for meter in meters:
        meter.offend(clock())
        meter.close()
        meter.offend(clock())  # it is closed, and offends no more
    assert room.refusals.counts["offences"] == 4
    assert room.admit("203.0.113.7") == "ip_handshakes" and room.admit("203.0.113.8") == ""
    clock.advance(1.0)
    assert room.admit("203.0.113.7") == "ip_handshakes"
    clock.advance(0.2)
    assert room.admit("203.0.113.7") == ""


def test_beyond_twice_its_handshakes_an_address_is_shut_out():
    """By the address, or the network, under which it is counted."""
    clock = FakeClock()
    room = quotas(clock, ip_handshakes_per_s=5, ip_network_bits=64)
    assert [room.shuts_out("203.0.113.7") for _ in range(12)] == [""] * 10 + ["203.0.113.7"] * 2
    assert [room.shuts_out(f"2001:db8::{number}") for number in range(11)] == [""] * 10 + ["2001:db8::/64"]
    assert room.refusals.counts["ip_shut_out"] == 3
    clock.advance(0.11)
    assert not room.shuts_out("203.0.113.7") and room.shuts_out("203.0.113.7")
    assert not any(quotas(clock).shuts_out("203.0.113.7") for _ in range(1000))


def test_a_limit_of_nothing_is_no_limit():
    """Neither is anything counted for it."""
    room = quotas(ip_connections=0, ip_handshakes_per_s=0)
    assert all(room.knock("203.0.113.7", secure=True) for _ in range(5000)) and not room._sockets
    assert {room.admit("203.0.113.7") for _ in range(5000)} == {""}


def test_sockets_of_an_address_are_given_back_once():
    """However often their place is left; twice as many as connections."""
    room = quotas(ip_connections=2)
    places = [room.knock("203.0.113.7") for _ in range(5)]
    assert [place is not None for place in places] == [True] * 4 + [False]
    for _ in range(2):
        places[0].leave()
    assert room._sockets == {"203.0.113.7": 3} and room.refusals.counts["ip_sockets"] == 1
    for place in places[:4]:
        place.leave()
    assert room._sockets == {}


def test_a_proxy_stands_for_anybody():
    """Its own address, and that of a Unix listener, have no limit."""
    room = quotas(proxies=Proxies(["10.0.0.0/8"]), ip_connections=1, ip_handshakes_per_s=1)
    for address in ("10.0.0.5", ""):
        room.open(address)
        assert [room.admit(address) for _ in range(3)] == [""] * 3
    room.open("203.0.113.7")
    assert room.admit("203.0.113.7") == "ip_connections"


# On every wire.

BEHIND = Proxies(["127.0.0.0/8"])
FROM = {"X_Forwarded_For": "203.0.113.7"}
OTHER = {"X_Forwarded_For": "203.0.113.8"}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("wire", OPENINGS)
@async_test
async def test_an_address_that_comes_too_often_is_answered_429(valkey_url, prefix, wire, fast):
    """Before anything is made of it, with the time to come back; others come in."""
    limits = {"ip_handshakes_per_s": 2}
    async with plane(valkey_url, prefix, fast=fast, proxies=BEHIND, limits=limits) as hub:
        begun = [await begin(hub.port, OPENINGS[wire](**FROM)) for _ in range(4)]
        other = await begin(hub.port, OPENINGS[wire](**OTHER))
        statuses = [one.status for one in begun]
        if wire == "sse":  # EventSource gives up on a status, so it is told in a stream
            assert statuses == [200] * 4 and b"3013" in await asyncio.wait_for(begun[3].reader.read(), 5)
        else:
            assert statuses[:2] == [other.status] * 2 and statuses[2:] == [429] * 2
            assert begun[3].headers["retry-after"] == "1"
        assert other.status in GOOD
        assert hub.services.quotas.refusals.counts["ip_handshakes"] == 2
        for one in (*begun, other):
            one.close()


@pytest.mark.parametrize("wire", HELD)
@async_test
async def test_connections_of_an_address_are_counted_and_given_back(valkey_url, prefix, wire):
    """Two are allowed; who goes makes room, however it went."""
    async with plane(valkey_url, prefix, proxies=BEHIND, limits={"ip_connections": 2}) as hub:
        room = hub.services.quotas
        one, two = [await begin(hub.port, OPENINGS[wire](**FROM)) for _ in range(2)]
        assert room.by_ip() == {"203.0.113.7": 2}
        third = await begin(hub.port, OPENINGS[wire](**FROM))
        assert room.refusals.counts["ip_connections"] == 1 and (third.status == 429 or wire == "sse")
        third.close()
        one.writer.transport.abort()
        async with asyncio.timeout(5):
            while room.connections > 1:
                await asyncio.sleep(0.01)
        fourth = await begin(hub.port, OPENINGS[wire](**FROM))
        assert fourth.status in GOOD and room.by_ip() == {"203.0.113.7": 2}
        two.close()
        fourth.close()
        async with asyncio.timeout(5):
            while room.connections:
                await asyncio.sleep(0.01)
        assert room.by_ip() == {}


@async_test
async def test_a_session_that_polls_and_a_poll_that_waits_count_as_connections(valkey_url, prefix):
    """They hold as much of a worker as those with a socket."""
    async with plane(valkey_url, prefix, proxies=BEHIND, limits={"ip_connections": 2}) as hub:
        room = hub.services.quotas
        assert await status_of(hub.port, OPENINGS["socket.io polling"](**FROM)) == 200
        _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(http("GET", "/poll?channel=open:a&wait=30", **FROM))
        async with asyncio.timeout(5):
            while room.by_ip() != {"203.0.113.7": 2}:
                await asyncio.sleep(0.01)
        assert await status_of(hub.port, OPENINGS["socket.io polling"](**FROM)) == 429
        writer.close()
        async with asyncio.timeout(5):
            while room.by_ip() != {"203.0.113.7": 1}:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("wire", HELD)
@async_test
async def test_a_worker_with_all_its_clients_answers_503(valkey_url, prefix, wire):
    async with plane(valkey_url, prefix, limits={"connections": 1}) as hub:
        one = await begin(hub.port, OPENINGS[wire]())
        two = await begin(hub.port, OPENINGS[wire]())
        assert two.status == 503 or (wire == "sse" and b"3001" in await asyncio.wait_for(two.reader.read(), 5))
        assert hub.services.quotas.refusals.counts["connections"] == 1
        one.close()
        two.close()


def token(user: str = "ann") -> str:
    return auth.make(user, SECRET, 60, time.time())


@async_test
async def test_a_user_has_so_many_connections_and_then_3504(valkey_url, prefix):
    """Once they have connected, on all wires that connect; other users, and nobody in particular, come in."""
    async with plane(valkey_url, prefix, limits={"user_connections": 1}) as hub:
        async with client(hub.url, token()) as one:
            assert one.id
            async with client(hub.url), client(hub.url), client(hub.url, token("bob")):
                pass
            async with connect(hub.url, proxy=None) as two:
                await two.send(orjson.dumps({"id": 1, "connect": {"token": token()}}).decode())
                await asyncio.wait_for(two.wait_closed(), 5)
                assert (two.close_code, two.close_reason) == (3504, "connection limit")
            status, _, body = await request(
                hub.http_url, http("GET", "/sse?channel=open:a", Authorization=f"Bearer {token()}")
            )
            assert (status, orjson.loads(body)["error"]["code"]) == (429, 111)
        assert hub.services.quotas.refusals.counts["user_connections"] == 2
        async with client(hub.url, token()) as again:
            assert again.id


@async_test
async def test_commands_beyond_the_rate_fail_and_in_the_end_so_does_the_connection(valkey_url, prefix):
    """111 for each, and 3013 for who does not stop."""
    async with plane(valkey_url, prefix, limits={"commands_per_s": 20}) as hub, client(hub.url) as one:
        await one.subscribe("open:a")
        replies = [await one.command(presence_stats={"channel": "open:a"}) for _ in range(40)]
        codes = [reply["error"]["code"] for reply in replies]
        assert codes[0] == 108 and 111 in codes
        flood = "\n".join('{"id":9,"presence_stats":{"channel":"open:a"}}' for _ in range(250))
        for _ in range(MOST_REFUSED // 250 + 1):
            await one.socket.send(flood)
        assert await closing(one) == (3013, "too many requests")
        assert hub.services.quotas.refusals.counts["floods"] == 1


@async_test
async def test_commands_over_a_stream_are_held_to_the_rate(valkey_url, prefix):
    """Their replies come in the stream."""
    async with plane(valkey_url, prefix, limits={"commands_per_s": 5}) as hub, stream_client(hub.http_url) as one:
        codes = [(await one.command(history={"channel": "open:a"}))["error"]["code"] for _ in range(10)]
        assert codes[0] != 111 and 111 in codes


@async_test
async def test_requests_beyond_the_rate_of_their_address_are_answered_429(valkey_url, prefix):
    """Publishing, and what brings commands to a session; with the time to come back."""
    async with plane(valkey_url, prefix, proxies=BEHIND, limits={"ip_commands_per_s": 3}) as hub:
        publish = OPENINGS["publish"]
        assert [await status_of(hub.port, publish(**FROM)) for _ in range(4)] == [200] * 3 + [429]
        assert await status_of(hub.port, publish(**OTHER)) == 200
        status, headers, _ = await request(hub.http_url, http("POST", "/emulation", b"{}", **FROM))
        assert (status, headers["retry-after"]) == (429, "1")
        path = "/socket.io/?EIO=4&transport=polling&sid=a"
        status, headers, _ = await request(hub.http_url, http("GET", path, **FROM))
        assert (status, headers["retry-after"]) == (429, "1")


@async_test
async def test_whoever_goes_on_asking_for_more_channels_is_closed(valkey_url, prefix):
    """106 for each, and 3505 for who does not stop."""
    async with plane(valkey_url, prefix, client={"channels": 1}) as hub, client(hub.url) as one:
        await one.subscribe("open:a")
        codes = [(await one.command(subscribe={"channel": "open:b"}))["error"]["code"] for _ in range(MOST_STRIKES)]
        assert set(codes) == {106}
        await one.socket.send('{"id":900,"subscribe":{"channel":"open:b"}}')
        assert await closing(one) == (3505, "channel limit")


@async_test
async def test_a_worker_has_so_many_channels(valkey_url, prefix):
    """Known ones take subscribers as before; 111, as another worker may have room."""
    async with plane(valkey_url, prefix, limits={"channels": 1}) as hub:
        async with client(hub.url) as one, client(hub.url) as two:
            await one.subscribe("open:a")
            for channel in ("open:b", "chat:b", "ticker:B"):
                assert (await two.command(subscribe={"channel": channel}))["error"]["code"] == 111
            await two.subscribe("open:a")
        assert hub.services.quotas.refusals.counts["worker_channels"] == 3


@pytest.mark.parametrize("opcode", [0x89, 0x8A], ids=["ping", "pong"])
@async_test
async def test_a_flood_of_pings_is_closed(valkey_url, prefix, opcode):
    """1008 beyond ten in a second; ten are answered."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        for _ in range(10):
            await asyncio.wait_for(await one.socket.ping(), 5)
        one.socket.transport.write(bytes((opcode, 0x80, 0, 0, 0, 0)) * 11)
        assert await closing(one) == (1008, "too many pings")
        assert hub.services.quotas.refusals.counts["pings"] == 1


@pytest.mark.parametrize(
    "command",
    ['{"id":5,"publish":{"channel":"open:a","data":%s}}', '{"id":5,"rpc":{"method":"hub.time","data":%s}}'],
)
@async_test
async def test_a_command_that_is_nested_too_deep_fails(valkey_url, prefix, command):
    """Whatever it is: 33 levels of data, and 900; 32 pass."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        for depth, good in ((32, True), (35, False), (900, False)):
            await one.socket.send(command % ("[" * depth + "]" * depth))
            reply = await one._first(lambda line: line.get("id") == 5)
            assert ("error" not in reply) is good, reply
            assert good or reply["error"]["code"] == 107
        assert hub.services.quotas.refusals.counts["json"] == 2


@async_test
async def test_a_bomb_of_values_closes_the_connection(valkey_url, prefix):
    """3501, before it is parsed."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await one.socket.send('{"id":5,"publish":{"channel":"open:a","data":[%s[]]}}' % ("[]," * 15_000))
        assert await closing(one) == (3501, "too many values in one command")
        assert hub.services.quotas.refusals.counts["json"] == 1


def test_refusals_are_shared_with_whoever_counts():
    refusals = Refusals()
    assert Quotas(refusals=refusals).refusals is refusals


# Socket.IO, and Engine.IO without it.


@async_test
async def test_socketio_events_beyond_the_rate_fail_and_in_the_end_so_does_the_connection(valkey_url, prefix):
    """111 in the ack, or in an `error` event where none is asked for; other namespaces share the connection's rate."""
    settings = {"namespaces": ["/admin"]}
    limits = {"commands_per_s": 20}
    async with plane(valkey_url, prefix, limits=limits, socketio=settings) as hub, member(hub) as socket:
        await socket.send("40/admin,")
        assert (await receive(socket)).startswith("40/admin,{")
        for number in range(40):
            await socket.send(f'42/admin,{number}["history",{{"channel":"open:a"}}]')
        acks = [await receive(socket) for _ in range(40)]
        assert "108" in acks[0] and acks[-1] == '43/admin,39[{"error":{"code":111,"message":"too many requests"' + (
            ',"temporary":true}}]'
        )
        for _ in range(30):
            await socket.send('42["history",{"channel":"open:a"}]')
        found = [await receive(socket) for _ in range(30)]
        assert found[-1].startswith('42["error",{"event":"history","code":111')
        with pytest.raises(ConnectionClosed):
            for _ in range(MOST_REFUSED + 1):
                await socket.send('421["history",{"channel":"open:a"}]')
            while True:
                await receive(socket)
        assert socket.close_code == 3013


@async_test
async def test_a_socketio_event_that_is_nested_too_deep_fails(valkey_url, prefix):
    """107; a connect that is ends the connection."""
    async with plane(valkey_url, prefix) as hub, member(hub) as socket:
        for depth, good in ((32, True), (33, False), (900, False)):
            data = "[" * depth + "]" * depth
            await socket.send(f'427["publish",{{"channel":"open:a","data":{data}}}]')
            ack = await receive(socket)
            assert (ack == "437[{}]") is good and ("107" in ack) is not good, ack
        await socket.send("40/admin," + '{"a":' * 50 + "1" + "}" * 50)
        assert await receive(socket) == "41"
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 3501


@async_test
async def test_a_message_of_a_bare_client_beyond_the_rate_ends_it(valkey_url, prefix):
    """There is no answer that could say so, and nothing is lost without a word."""
    raw = Raw()
    async with plane(valkey_url, prefix, app=raw.app, limits={"commands_per_s": 5}) as hub, raw_socket(hub) as socket:
        for _ in range(10):
            await socket.send("4a")
        with pytest.raises(ConnectionClosed):
            while True:
                await receive(socket)
        assert socket.close_code == 3013


@async_test
async def test_a_socketio_user_has_so_many_namespaces(valkey_url, prefix):
    """Beyond, a connect_error with the code 3504; what is left makes room."""
    async with plane(valkey_url, prefix, limits={"user_connections": 1}) as hub:
        async with member(hub, auth={"token": token()}), websocket(hub) as socket:
            await receive(socket)
            await socket.send("40" + orjson.dumps({"token": token()}).decode())
            assert await receive(socket) == '44{"message":"connection limit","data":{"code":3504}}'
        async with asyncio.timeout(5):
            while hub.services.users.count("ann"):
                await asyncio.sleep(0.01)
        async with member(hub, auth={"token": token()}):
            pass


# Real workers.


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_user_is_counted_on_all_workers(fast):
    """Of ten devices on two workers three stay; the others are told so and don't come back."""
    with HubProcess({"limits": {"user_connections": 3}, "fast_upgrade": fast}) as hub:

        async def device() -> int:
            async with connect(hub.ws_url, proxy=None) as socket:
                await socket.send(orjson.dumps({"id": 1, "connect": {"token": hub.token("ann")}}).decode())
                await socket.wait_closed()
                return socket.close_code or 0

        devices = [asyncio.ensure_future(device()) for _ in range(10)]
        closed = []
        for one in asyncio.as_completed(devices):
            closed.append(await one)
            if len(closed) == 7:
                break
        assert closed == [3504] * 7
        assert sum(not one.done() for one in devices) == 3
        for one in devices:
            one.cancel()
        await asyncio.gather(*devices, return_exceptions=True)


@async_test
async def test_a_killed_worker_gives_its_users_connections_back():
    """With its lease, a few seconds later."""
    with HubProcess({"limits": {"user_connections": 1}}) as hub:

        async def comes_in(patience_s: float) -> bool:
            """Whether a connection of ann's is let be for so long: it is ended once all workers' are counted."""
            async with connect(hub.ws_url, proxy=None) as socket:
                await socket.send(orjson.dumps({"id": 1, "connect": {"token": hub.token("ann")}}).decode())
                try:
                    async with asyncio.timeout(patience_s):
                        while True:
                            await socket.recv()
                except TimeoutError:
                    return True
                except ConnectionClosed:
                    return False

        async with connect(hub.ws_url, proxy=None) as socket:
            await socket.send(orjson.dumps({"id": 1, "connect": {"token": hub.token("ann")}}).decode())
            assert b"connect" in (await socket.recv()).encode()
            assert not await comes_in(10)
            for pid in hub.worker_pids():
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError, ConnectionClosed):
                    if await comes_in(1):
                        break


TICKETED = ("websocket", "socket.io websocket", "http_stream", "sse")


@pytest.mark.parametrize("wire", TICKETED)
@async_test
async def test_who_waits_for_redis_takes_nobodys_place(valkey_url, prefix, wire):
    """Requests with tickets of one address, all at a time: each is judged again once its ticket is known."""
    async with plane(valkey_url, prefix, proxies=BEHIND, limits={"ip_connections": 2}) as hub:
        requests = []
        for _ in range(6):
            first, _, rest = OPENINGS[wire](**FROM).partition(b" HTTP/1.1")
            ticket = await hub.tickets.issue({"sub": "ann"})
            requests.append(first + (b"&" if b"?" in first else b"?") + f"ticket={ticket} HTTP/1.1".encode() + rest)
        begun = await asyncio.gather(*(begin(hub.port, request) for request in requests))
        assert hub.services.quotas.by_ip() == {"203.0.113.7": 2}
        if wire != "sse":
            assert sorted(one.status for one in begun)[-4:] == [429] * 4
        for one in begun:
            one.close()


@pytest.mark.parametrize("path", ["/sse?channel=open:a", "/poll?channel=open:a&wait=30"])
@async_test
async def test_who_waits_for_the_application_takes_nobodys_place(valkey_url, prefix, path):
    """The same where it is asked who may come in."""
    app, asked, answer = App(), 0, asyncio.Event()

    @app.on_connect()
    async def connect(client, data):
        nonlocal asked
        asked += 1
        await answer.wait()

    app.on_subscribe()(lambda client, channel: None)

    async with plane(valkey_url, prefix, proxies=BEHIND, limits={"ip_connections": 2}, app=app) as hub:
        opened = []
        for _ in range(5):
            opened.append(await asyncio.open_connection("127.0.0.1", hub.port))
            opened[-1][1].write(http("GET", path, Accept="text/event-stream", **FROM))
        async with asyncio.timeout(5):
            while asked < 5:
                await asyncio.sleep(0.01)
            answer.set()
            while hub.services.quotas.refusals.counts["ip_connections"] < 3:
                await asyncio.sleep(0.01)
        assert hub.services.quotas.by_ip() == {"203.0.113.7": 2}
        for _, writer in opened:
            writer.close()


def test_lower_limits_are_for_the_next_one_and_nobody_goes_for_them():
    """Who is over them stays, and is given back as it was counted."""
    room = quotas(ip_connections=5)
    meters = [room.open("203.0.113.7") for _ in range(3)]
    room.retune(UNLIMITED.model_copy(update={"ip_connections": 2, "connections": 3}), Proxies())
    assert (room.no_room("203.0.113.7"), room.no_room("203.0.113.8")) == ("ip_connections", "connections")
    for meter in meters:
        meter.close()
    assert (room.no_room("203.0.113.7"), room.connections, dict(room.by_ip())) == ("", 0, {})


def test_a_first_limit_begins_with_those_who_come():
    """Who was here before had no address to be counted under; that it goes must not take another's place."""
    room = quotas()
    before = room.open("203.0.113.7")
    room.retune(UNLIMITED.model_copy(update={"ip_connections": 1}), Proxies())
    assert room.no_room("203.0.113.7") == ""
    after = room.open("203.0.113.7")
    assert room.no_room("203.0.113.7") == "ip_connections"
    before.close()
    assert room.no_room("203.0.113.7") == "ip_connections"
    after.close()
    assert room.no_room("203.0.113.7") == ""


def test_a_connection_has_the_rates_of_now():
    clock = FakeClock()
    room = quotas(clock, commands_per_s=1)
    meter = room.open("")
    assert [meter.spend(clock(), 1, 9) for _ in range(2)] == [True, False]
    room.retune(UNLIMITED.model_copy(update={"commands_per_s": 0}), Proxies())
    assert [meter.spend(clock(), 1, 9) for _ in range(20)] == [True] * 20


def test_a_proxy_that_is_trusted_no_more_is_under_the_limits():
    room = quotas(proxies=Proxies(["203.0.113.0/24"]), ip_connections=1)
    room.open("203.0.113.7")
    assert room.no_room("203.0.113.7") == ""
    room.retune(room.settings, Proxies())
    room.open("203.0.113.7")
    assert room.no_room("203.0.113.7") == "ip_connections"


BAD = {
    "no frames": b"\x00" * 6,
    "too large": b"\x82\xff\0\0\0\0\x7f\xff\xff\xff" + bytes(4),
    "no text": b"\x81\x81\0\0\0\0\xff",
    "no command": b"\x81\x81\0\0\0\0x",
    "binary": b"\x82\x81\0\0\0\0x",
    "too many fragments": b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 100,
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
@async_test
async def test_what_a_client_is_closed_for_counts_against_its_address(valkey_url, prefix, data):
    """Once; a client that just goes, or is closed for the hub's own reasons, costs nothing."""
    limits = {"ip_handshakes_per_s": 100, "ip_offences_per_s": 1}
    async with plane(valkey_url, prefix, limits=limits) as hub:
        counts = hub.services.quotas.refusals.counts
        for last in (b"\x88\x82\0\0\0\0\x03\xe8", data):
            assert not counts["offences"]
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
            writer.write(OPENINGS["websocket"]())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(last)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.readexactly(1), 5) == b"\x88"
            writer.close()
        assert counts["offences"] == 1
        begun = [await begin(hub.port, OPENINGS["websocket"]()) for _ in range(2)]
        assert {one.status for one in begun} <= {101, 429}
        for one in begun:
            one.close()


@async_test
async def test_busy_clients_of_an_address_share_an_account(valkey_url, prefix):
    """On every connection that is read on the plane, where addresses have a rate of the loop's time."""
    async with plane(valkey_url, prefix, limits={"ip_loop_ms_per_s": 100}) as hub, client(hub.url), client(hub.url):
        one, two = hub.reactor.connections.values()
        assert one.account is two.account is not None and one.account.holders == 2
    async with plane(valkey_url, prefix) as hub, client(hub.url):
        [one] = hub.reactor.connections.values()
        assert one.account is None


@async_test
async def test_a_worker_leaves_unread_who_keeps_its_loop_busy():
    """With a thousandth of it two hundred commands are seconds' worth; who says little is answered meanwhile."""
    commands = "\n".join(f'{{"id":{number},"history":{{"channel":"none:a"}}}}' for number in range(2, 202))
    settings = {"workers": 1, "limits": {"loop_ms_per_s": 1}, "worker": {"busy_ms_per_s": 5}}
    with HubProcess(settings) as hub:
        async with connect(hub.ws_url) as busy, connect(hub.ws_url) as quiet:
            for one in (busy, quiet):
                await one.send('{"id":1,"connect":{}}')
                await one.recv()
            await busy.send(commands)
            assert (await asyncio.wait_for(busy.recv(), 5)).count("\n") == 199
            await busy.send('{"id":300,"history":{"channel":"none:a"}}')
            await quiet.send('{"id":300,"history":{"channel":"none:a"}}')
            assert '"id":300' in await asyncio.wait_for(quiet.recv(), 5)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(busy.recv(), 0.3)
