"""Permissions: who may do what, as one function says and as every wire does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson
import pytest

from hub import auth, capabilities
from hub.auth import Claims
from hub.capabilities import HISTORY, PRESENCE, PUBLISH, SUBSCRIBE
from hub.channels import Namespace
from hub.errors import CommandError
from hub.grants import Grant
from hub.permissions import decide, decide_symbols
from tests.emulated import stream_client
from tests.eventsource import request
from tests.nodes import until
from tests.plane import SECRET, Plane, client, plane
from tests.support import async_test
from tests.transports.polls import member, receive

NOBODY, ANN = Claims("", 0.0), Claims("ann", 0.0)
OK, NO = 0, 103


def verdict(action: str, who: Claims, channel: str, namespace: Namespace, **more: object) -> int:
    try:
        decide(action, who, channel, namespace, **more)
    except CommandError as error:
        return error.reply.code
    return OK


@pytest.mark.parametrize(
    ("rule", "verdicts"),
    [("nobody", [NO, NO]), ("anyone", [OK, OK]), ("user", [NO, OK]), ("token", [NO, NO])],
)
def test_who_may_subscribe_by_the_rule(rule, verdicts):
    """The whole table: for an anonymous client, and for one with a user."""
    namespace = Namespace(subscribe=rule)
    assert [verdict(SUBSCRIBE, who, "a", namespace) for who in (NOBODY, ANN)] == verdicts


@pytest.mark.parametrize(
    ("rule", "verdicts"),
    [
        ("nobody", [NO, NO, NO, NO]),
        ("anyone", [OK, OK, OK, OK]),
        ("user", [NO, NO, OK, OK]),
        ("subscriber", [NO, OK, NO, OK]),
        ("token", [NO, NO, NO, NO]),
    ],
)
@pytest.mark.parametrize(("action", "name"), [(PUBLISH, "publish"), (HISTORY, "history"), (PRESENCE, "presence")])
def test_who_may_publish_and_ask_by_the_rule(rule, verdicts, action, name):
    """The whole table: anonymous, anonymous and subscribed, user, user and subscribed."""
    if rule == "token" and name != "publish":
        return  # no such rule there
    namespace = Namespace(mode="stream", **{name: rule})
    cases = [(NOBODY, False), (NOBODY, True), (ANN, False), (ANN, True)]
    assert [verdict(action, who, "a", namespace, subscribed=inside) for who, inside in cases] == verdicts


EVERYTHING = {SUBSCRIBE: "sub", PUBLISH: "pub", HISTORY: "hst", PRESENCE: "prs"}
CLOSED = Namespace(subscribe="nobody", publish="nobody", history="nobody", presence="nobody")


@pytest.mark.parametrize("action", EVERYTHING)
def test_capabilities_add_what_they_allow_and_nothing_else(action):
    """In the channels that they name."""
    only = capabilities.read([{"channels": ["a"], "allow": [action]}])
    others = capabilities.read([{"channels": ["a"], "allow": [one for one in EVERYTHING if one != action]}])
    assert verdict(action, ANN._replace(capabilities=only), "a", CLOSED) == OK
    assert verdict(action, ANN._replace(capabilities=only), "b", CLOSED) == NO
    assert verdict(action, ANN._replace(capabilities=others), "a", CLOSED) == NO
    opened = Namespace(subscribe="anyone", publish="anyone", history="anyone", presence="anyone")
    assert verdict(action, ANN._replace(capabilities=others), "a", opened) == OK


@pytest.mark.parametrize("action", EVERYTHING)
def test_a_channel_token_gives_its_channel_and_what_it_lists(action):
    """To subscribe is what it is for; one for another channel is refused also where the rule would say yes."""
    expected = OK if action == SUBSCRIBE else NO
    assert verdict(action, ANN, "a", CLOSED, grant=Grant("a")) == expected
    assert verdict(action, ANN, "a", CLOSED, grant=Grant("a", allow=frozenset({action}))) == OK
    opened = Namespace(subscribe="anyone", publish="anyone", history="anyone", presence="anyone")
    assert verdict(action, ANN, "a", opened, grant=Grant("a")) == OK
    assert verdict(action, ANN, "a", opened, grant=Grant("b")) == NO


@pytest.mark.parametrize("action", EVERYTHING)
def test_a_channel_of_other_users_is_theirs_whatever_one_holds(action):
    """Neither a rule, a capability nor a channel token opens it; its own users still need the rule."""
    caps = capabilities.read([{"channels": ["*"], "match": "wildcard", "allow": list(EVERYTHING)}])
    opened = Namespace(subscribe="anyone", publish="anyone", history="anyone", presence="anyone")
    for who in (NOBODY, ANN, ANN._replace(capabilities=caps)):
        grant = Grant("dm:#bob", allow=frozenset(EVERYTHING))
        assert verdict(action, who, "dm:#bob", opened, grant=grant) == NO
    assert verdict(action, ANN, "dm:#bob,ann", opened) == OK
    assert verdict(action, ANN, "dm:#bob,ann", CLOSED) == NO


def test_each_symbol_of_a_watch_list_is_asked_for():
    """One that is not allowed keeps the list out; where the rule says yes all are."""
    caps = capabilities.read([{"channels": ["t:A", "t:B"], "allow": ["sub"]}])
    who = ANN._replace(capabilities=caps)
    decide_symbols(who, "t", CLOSED, ["A", "B"])
    decide_symbols(ANN, "t", Namespace(subscribe="user"), ["A", "C"])
    for identity, symbols in ((who, ["A", "C"]), (ANN, ["A"])):
        with pytest.raises(CommandError):
            decide_symbols(identity, "t", CLOSED, symbols)


def test_a_pattern_of_a_watch_list_needs_a_capability_for_all_that_begin_so():
    """One whose text happens to be allowed as a name is not enough."""
    decide_symbols(ANN, "t", Namespace(subscribe="user"), ["AC*"])
    for entry, good in (
        ({"channels": ["t:A*"], "match": "wildcard", "allow": ["sub"]}, True),
        ({"channels": ["t:AC*"], "allow": ["sub"]}, False),
        ({"channels": ["t:AC", "t:ACME"], "allow": ["sub"]}, False),
    ):
        who = ANN._replace(capabilities=capabilities.read([entry]))
        with contextlib.nullcontext() if good else pytest.raises(CommandError):
            decide_symbols(who, "t", CLOSED, ["AC*"])


@pytest.mark.parametrize("path", ["/sse", "/poll"])
@async_test
async def test_each_symbol_of_a_plain_requests_list_is_asked_for(valkey_url, prefix, path):
    """A capability for the list's own name alone lets nobody read a symbol."""
    async with plane(valkey_url, prefix) as hub:
        bearer = {"Authorization": f"Bearer {connection_token('ann with caps')}"}
        for symbols, good in (("ACME", True), ("BETA", False), ("ACME,BETA", False)):
            query = f"channel=desk:$watch&symbols={symbols}&wait=0"
            method = "HEAD" if path == "/sse" else "GET"
            answer = await request(hub.port, method, f"{path}?{query}", **bearer)
            assert answer.status in ((200, 204) if good else (403,))


# Every wire. What is asked, by whom, of which channel, and what becomes of it.

CAPS = [
    {"channels": ["vault:a", "desk:$watch", "desk:ACME"], "allow": list(EVERYTHING)},
    {"channels": ["vault:p*"], "match": "wildcard", "allow": ["pub"]},
]
IDENTITIES = ("nobody", "ann", "ann with caps", "ann with a channel token")
TABLE: list[tuple[str, str, tuple[int, int, int, int]]] = [
    (SUBSCRIBE, "open:a", (OK, OK, OK, OK)),
    (SUBSCRIBE, "users:a", (NO, OK, OK, OK)),
    (SUBSCRIBE, "closed:a", (NO, NO, NO, OK)),
    (SUBSCRIBE, "tokens:a", (NO, NO, NO, OK)),
    (SUBSCRIBE, "vault:a", (NO, NO, OK, OK)),
    (SUBSCRIBE, "vault:p1", (NO, NO, NO, OK)),
    (SUBSCRIBE, "open:#ann", (NO, OK, OK, OK)),
    (SUBSCRIBE, "open:#bob", (NO, NO, NO, NO)),
    (PUBLISH, "open:a", (OK, OK, OK, OK)),
    (PUBLISH, "users:a", (NO, OK, OK, OK)),
    (PUBLISH, "tokens:a", (NO, NO, NO, OK)),
    (PUBLISH, "vault:a", (NO, NO, OK, OK)),
    (PUBLISH, "vault:p1", (NO, NO, OK, OK)),
    (PUBLISH, "vault:x", (NO, NO, NO, OK)),
    (PUBLISH, "open:#bob", (NO, NO, NO, NO)),
    (HISTORY, "chat:a", (OK, OK, OK, OK)),
    (HISTORY, "vault:a", (NO, NO, OK, OK)),
    (HISTORY, "vault:p1", (NO, NO, NO, OK)),
    (HISTORY, "chat:#bob", (NO, NO, NO, NO)),
    (PRESENCE, "room:a", (OK, OK, OK, OK)),
    (PRESENCE, "vault:a", (NO, NO, OK, OK)),
    (PRESENCE, "vault:p1", (NO, NO, NO, OK)),
    (PRESENCE, "room:#bob", (NO, NO, NO, NO)),
    ("watch", "ACME", (NO, NO, OK, NO)),
    ("watch", "BETA", (NO, NO, NO, NO)),
]

Ask = Callable[..., Awaitable[int]]
"""(action, channel, channel token or '') -> 0 or the code of its error."""
METHODS = {SUBSCRIBE: "subscribe", PUBLISH: "publish", HISTORY: "history", PRESENCE: "presence"}


def connection_token(identity: str) -> str | None:
    if identity == "nobody":
        return None
    claims = {"caps": CAPS} if identity == "ann with caps" else {}
    return auth.make("ann", SECRET, 60, time.time(), **claims)


def channel_token(channel: str) -> str:
    return auth.make("ann", SECRET, 60, time.time(), channel=channel, allow=list(EVERYTHING))


async def of_session(command: Callable[..., Awaitable[dict]], action: str, channel: str, token: str) -> int:
    """By a connection that gives commands: what needs a channel token is done inside the channel."""
    if action == "watch":
        lists = {"channel": "desk:$watch", "data": {"symbols": [channel]}}
        reply = await command("subscribe", **lists, **({"token": channel_token("desk:$watch")} if token else {}))
        if "error" not in reply:
            await command("unsubscribe", channel="desk:$watch")
        return reply.get("error", {}).get("code", OK)
    if token:
        reply = await command("subscribe", channel=channel, token=token)
        if "error" in reply:
            return reply["error"]["code"]
    if not (token and action == SUBSCRIBE):
        reply = await command(METHODS[action], channel=channel, **({"data": 1} if action == PUBLISH else {}))
    if token or (action == SUBSCRIBE and "error" not in reply):
        await command("unsubscribe", channel=channel)
    return reply.get("error", {}).get("code", OK)


@contextlib.asynccontextmanager
async def by_websocket(hub: Plane, identity: str) -> AsyncIterator[Ask]:
    async with client(hub.url, connection_token(identity)) as one:

        async def command(method: str, **params: object) -> dict:
            return await one.command(**{method: params})

        yield lambda *asked: of_session(command, *asked)


def by_stream(wire: str) -> Callable[[Plane, str], contextlib.AbstractAsyncContextManager[Ask]]:
    @contextlib.asynccontextmanager
    async def connected(hub: Plane, identity: str) -> AsyncIterator[Ask]:
        async with stream_client(hub.http_url, wire, connection_token(identity)) as one:

            async def command(method: str, **params: object) -> dict:
                return await one.command(**{method: params})

            yield lambda *asked: of_session(command, *asked)

    return connected


@contextlib.asynccontextmanager
async def by_socketio(hub: Plane, identity: str) -> AsyncIterator[Ask]:
    token, number = connection_token(identity), 0
    async with member(hub, auth={"token": token} if token else None) as socket:

        async def command(method: str, **params: object) -> dict:
            nonlocal number
            number += 1
            await socket.send(f"42{number}" + orjson.dumps([method, params]).decode())
            while not (message := await receive(socket)).startswith(f"43{number}["):
                pass  # a publication to itself
            return orjson.loads(message[2 + len(str(number)) :])[0]

        yield lambda *asked: of_session(command, *asked)


def by_request(path: str) -> Callable[[Plane, str], contextlib.AbstractAsyncContextManager[Ask]]:
    """One request for each. HEAD has an event stream's verdict, but no body to read a code in."""

    @contextlib.asynccontextmanager
    async def connected(hub: Plane, identity: str) -> AsyncIterator[Ask]:
        bearer = connection_token(identity)
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}

        async def ask(action: str, channel: str, token: str) -> int:
            if path == "/publish":
                body = {"channel": channel, "data": 1, **({"token": token} if token else {})}
                answer = await request(hub.port, "POST", path, orjson.dumps(body), **headers)
            else:
                query = f"channel={channel.replace('#', '%23')}&wait=0" + (f"&channel_token={token}" if token else "")
                method = "HEAD" if path == "/sse" else "GET"
                answer = await request(hub.port, method, f"{path}?{query}", **headers)
            return {403: NO, 200: OK, 204: OK}[answer.status]

        yield ask

    return connected


SESSIONS = (*EVERYTHING, "watch")
WIRES = {
    "websocket": (by_websocket, SESSIONS),
    "http_stream": (by_stream("lines"), SESSIONS),
    "native sse": (by_stream("events"), SESSIONS),
    "socketio": (by_socketio, SESSIONS),
    "sse": (by_request("/sse"), (SUBSCRIBE,)),
    "poll": (by_request("/poll"), (SUBSCRIBE,)),
    "publish": (by_request("/publish"), (PUBLISH,)),
}


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("wire", WIRES)
@async_test
async def test_every_wire_keeps_to_the_table(valkey_url, prefix, wire, identity):
    """Each action of each identity has the same verdict on every wire that knows it."""
    connected, actions = WIRES[wire]
    column = IDENTITIES.index(identity)
    async with plane(valkey_url, prefix) as hub, connected(hub, identity) as ask:
        expected = {(action, name): verdicts[column] for action, name, verdicts in TABLE if action in actions}
        token = channel_token if "channel token" in identity else lambda channel: ""
        assert {asked: await ask(*asked, token(asked[1])) for asked in expected} == expected


@pytest.mark.parametrize("wire", ["websocket", "http_stream", "native sse", "socketio"])
@async_test
async def test_a_channel_token_for_another_channel_or_user_opens_nothing(valkey_url, prefix, wire):
    """Nor does one that has ended, which is told as such."""
    connected, _ = WIRES[wire]
    now = time.time()
    async with plane(valkey_url, prefix) as hub, connected(hub, "ann") as ask:
        assert await ask(SUBSCRIBE, "tokens:a", channel_token("tokens:b")) == NO
        assert await ask(SUBSCRIBE, "open:a", channel_token("open:b")) == NO
        assert await ask(SUBSCRIBE, "tokens:a", auth.make("bob", SECRET, 60, now, channel="tokens:a")) == NO
        assert await ask(SUBSCRIBE, "tokens:a", auth.make("ann", SECRET + "x", 60, now, channel="tokens:a")) == NO
        assert await ask(SUBSCRIBE, "tokens:a", auth.make("ann", SECRET, 60, now)) == NO
        assert await ask(SUBSCRIBE, "tokens:a", auth.make("ann", SECRET, -1, now, channel="tokens:a")) == 109


@async_test
async def test_requests_say_what_is_wrong_with_a_channel_token(valkey_url, prefix):
    """Ended is 401, so that clients get another; of another user 403; of a channel that nobody asked for 400."""
    now, bearer = time.time(), auth.make("ann", SECRET, 60, time.time())
    ended = auth.make("ann", SECRET, -1, now, channel="tokens:a")
    bobs = auth.make("bob", SECRET, 60, now, channel="tokens:a")
    good = channel_token("tokens:a")
    cases = [(ended, 401, 109), (bobs, 403, 103), (channel_token("tokens:b"), 400, 107)]
    async with plane(valkey_url, prefix) as hub:
        for path in ("/sse", "/poll"):
            target = f"{path}?channel=tokens:a&token={bearer}&channel_token="
            for token, *expected in cases:
                answer = await request(hub.port, "GET", target + token)
                assert [answer.status, answer.code] == expected, path
                assert answer.json["error"]["token"] == 0
            both = f"{path}?channel=tokens:a&channel=tokens:b&token={bearer}"
            answer = await request(hub.port, "GET", f"{both}&channel_token={good}&channel_token={ended}")
            assert (answer.code, answer.json["error"]["token"]) == (109, 1)
            answer = await request(hub.port, "GET", f"{target}{good}&channel_token={good}")
            assert (answer.status, answer.code) == (400, 107)


@async_test
async def test_symbols_are_added_to_a_list_only_if_each_is_allowed(valkey_url, prefix):
    """By `hub.watch` as when it begins; what is refused has changed nothing."""
    async with plane(valkey_url, prefix) as hub, client(hub.url, connection_token("ann with caps")) as one:
        await one.subscribe("desk:$watch", data={"symbols": []})
        added = {"channel": "desk:$watch", "add": ["ACME", "BETA"]}
        reply = await one.command(rpc={"method": "hub.watch", "data": added})
        assert reply["error"]["code"] == NO
        reply = await one.command(rpc={"method": "hub.watch", "data": {**added, "add": ["ACME"]}})
        assert reply["rpc"]["data"] == {"symbols": 1}


@async_test
async def test_a_list_that_was_kept_is_not_a_way_around(valkey_url, prefix):
    """Who comes back with fewer capabilities has what it asks for, not what it once added."""
    more = [{"channels": ["desk:*"], "match": "wildcard", "allow": ["sub"]}]
    begun = {"symbols": ["ACME"]}
    async with plane(valkey_url, prefix) as hub:
        async with client(hub.url, auth.make("ann", SECRET, 60, time.time(), caps=more)) as one:
            await one.subscribe("desk:$watch", data=begun)
            watch = {"method": "hub.watch", "data": {"channel": "desk:$watch", "add": ["BETA"]}}
            assert (await one.command(rpc=watch))["rpc"]["data"] == {"symbols": 2}
        await until(lambda: not hub.fanout.subscriptions)
        async with client(hub.url, connection_token("ann with caps")) as one:
            await one.subscribe("desk:$watch", data=begun, recover=True)
            assert set(hub.fanout.lines.counts()) == {"desk:ACME"}
