"""The server API on a real server and Valkey: with PyPI `cent`, with plain requests, and with wrong ones."""

from __future__ import annotations

import asyncio
from math import inf

import cent
import orjson
import pytest

from hub import __version__, api
from hub.capabilities import Capability
from hub.message import ClientInfo
from tests.apis import KEY, MOST_COMMANDS, NAMESPACES, error_of, hub, topic
from tests.nodes import node, own_valkey
from tests.support import async_test

# With PyPI cent.


@async_test
async def test_cents_async_client_works_unchanged(valkey_url, prefix):
    """publish, broadcast, batch, info and channels give cent the models that it expects."""
    async with hub(valkey_url, prefix, key="k") as one, cent.AsyncClient(one.url, "k") as client:
        one.counts["news"] = 3
        async with one.hearing(topic(prefix, "a"), topic(prefix, "b")) as hear:
            await client.publish(cent.PublishRequest(channel="a", data={"n": 1}, tags={"t": "x"}))
            assert await hear() == ("a", {"data": {"n": 1}, "tags": {"t": "x"}})
            result = await client.broadcast(cent.BroadcastRequest(channels=["a", "b", "no:b"], data="all"))
            assert [r.error.code if r.error else 0 for r in result.responses] == [0, 0, 102]
            assert [await hear(), await hear()] == [("a", {"data": "all"}), ("b", {"data": "all"})]
        publish = cent.PublishRequest(channel="a", data=1)
        batch = await client.batch(cent.BatchRequest(requests=[publish, cent.InfoRequest()], parallel=True))
        assert [type(reply) for reply in batch.replies] == [cent.PublishResult, cent.InfoResult]
        (worker,) = (await client.info(cent.InfoRequest())).nodes
        assert (worker.uid, worker.name, worker.version) == (one.registry.uid, one.registry.name, __version__)
        assert (worker.num_clients, worker.num_users, worker.uptime) == (5, 2, 0)
        channels = (await client.channels(cent.ChannelsRequest(pattern="n*"))).channels
        assert {name: info.num_clients for name, info in channels.items()} == {"news": 3}


@async_test
async def test_cents_sync_client_works_unchanged(valkey_url, prefix):
    """The same over its blocking client, and its own errors for ours."""

    def talk(url: str) -> None:
        with cent.Client(url, "k") as client:
            client.publish(cent.PublishRequest(channel="a", data=[1]))
            assert len(client.broadcast(cent.BroadcastRequest(channels=["a"], data=1)).responses) == 1
            publish = cent.PublishRequest(channel="a", data=1)
            assert len(client.batch(cent.BatchRequest(requests=[publish, publish])).replies) == 2
            assert len(client.info(cent.InfoRequest()).nodes) == 1
            assert client.channels(cent.ChannelsRequest()).channels == {}
            with pytest.raises(cent.CentApiResponseError) as refused:
                client.history(cent.HistoryRequest(channel="a"))
            assert refused.value.code == 108
            with pytest.raises(cent.CentApiResponseError) as refused:
                client.publish(cent.PublishRequest(channel="no:a", data=1))
            assert refused.value.code == 102
        with cent.Client(url, "wrong") as client, pytest.raises(cent.CentUnauthorizedError):
            client.info(cent.InfoRequest())

    async with hub(valkey_url, prefix, key="k") as one:
        await asyncio.to_thread(talk, one.url)


# Tickets.


@async_test
async def test_a_ticket_stands_for_claims(valkey_url, prefix):
    """For what the request says of the user; each request makes another one."""
    async with hub(valkey_url, prefix) as one:
        caps = [{"channels": ["a"], "allow": ["pub"]}]
        found = (await one.ask("ticket", {"user": "ann", "ttl": 5, "caps": caps, "info": {"n": 1}}))["result"]
        assert found["ttl"] == 5 and await one.redis.pttl(one.tickets._key(found["ticket"])) <= 5000
        claims = await one.tickets.redeem(found["ticket"])
        assert (claims.user, claims.expires_at) == ("ann", inf)
        assert claims.capabilities == (Capability(frozenset({"pub"}), frozenset({"a"})),)
        assert claims.extra == {"info": {"n": 1}}
        other = (await one.ask("ticket", {"user": "ann", "exp": 9e9}))["result"]
        assert other["ttl"] == 30 and other["ticket"] != found["ticket"]
        assert (await one.tickets.redeem(other["ticket"])).expires_at == 9e9


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, 107),
        ({"user": 7}, 107),
        ({"sub": "ann"}, 107),
        ({"user": "ann", "ttl": 61}, 107),
        ({"user": "ann", "ttl": "5"}, 107),
        ({"user": "ann", "ttl": True}, 107),
        ({"user": "ann", "ttl": None}, 107),
        ({"user": "ann", "exp": 1}, 109),
        ({"user": "ann", "caps": {}}, 107),
        ({"user": "ann", "channel": "a"}, 107),
        ({"user": "ann", "x": "x" * 5000}, 106),
    ],
    ids=range(11),
)
@async_test
async def test_what_no_ticket_can_stand_for_is_refused(params, code, valkey_url, prefix):
    """By the same rules as a token's claims."""
    async with hub(valkey_url, prefix) as one:
        assert (await one.ask("ticket", params))["error"]["code"] == code


# Presence.


@async_test
async def test_presence_is_answered_also_where_no_client_may_ask(valkey_url, prefix):
    """The key is above the rule; cent reads the answers as its models."""
    async with hub(valkey_url, prefix, key="k") as one, cent.AsyncClient(one.url, "k") as client:
        for user, name in (("ann", "c1"), ("ann", "c2"), ("", "c3")):
            one.presence.enter("room:a", NAMESPACES["room"], ClientInfo(user, name), None)
        found = (await client.presence(cent.PresenceRequest(channel="room:a"))).presence
        assert {name: info.user for name, info in found.items()} == {"c1": "ann", "c2": "ann", "c3": ""}
        stats = await client.presence_stats(cent.PresenceStatsRequest(channel="room:a"))
        assert (stats.num_clients, stats.num_users) == (3, 1)
        assert (await client.presence(cent.PresenceRequest(channel="room:nobody"))).presence == {}
        batch = await client.batch(cent.BatchRequest(requests=[cent.PresenceStatsRequest(channel="room:a")] * 2))
        assert [reply.num_clients for reply in batch.replies] == [3, 3]


@async_test
async def test_what_presence_can_not_answer(valkey_url, prefix):
    """108 where it is not kept, 106 for more than fit, 102 and 107 for channels that are none."""
    async with hub(valkey_url, prefix) as one:
        for name in ("c1", "c2", "c3", "c4"):
            one.presence.enter("room:a", NAMESPACES["room"], ClientInfo("", name), None)
        for channel, code in (("a", 108), ("closed:a", 108), ("room:a", 106), ("no:a", 102), ("a b", 107), (7, 107)):
            assert error_of(await one.post("presence", {"channel": channel}))["code"] == code, channel
        for channel, clients in (("room:a", 4), ("room:nobody", 0)):
            stats = {"num_clients": clients, "num_users": 0}
            assert await one.ask("presence_stats", {"channel": channel}) == {"result": stats}
        assert error_of(await one.post("presence_stats", {"channel": "a"}))["code"] == 108


@pytest.mark.expects_log
@async_test
async def test_presence_is_temporarily_unavailable_without_redis(prefix):
    """503, to be tried again."""
    with own_valkey() as valkey:
        async with hub(valkey.url, prefix) as one:
            valkey.stop()
            for method in ("presence", "presence_stats"):
                response = await one.post(method, {"channel": "room:a"})
                assert response.code == 503 and error_of(response)["temporary"] is True
            valkey.start()


# Publishing.


@async_test
async def test_publish_reaches_namespaces_where_no_client_may_publish(valkey_url, prefix):
    """The key is above the publish rule; a `latest` namespace goes by its feed and keeps the value."""
    async with hub(valkey_url, prefix) as one:
        async with one.hearing(topic(prefix, "closed:x"), f"{prefix}:feed:{{ticker}}") as hear:
            assert await one.ask("publish", {"channel": "closed:x", "data": None}) == {"result": {}}
            assert await hear() == ("closed:x", {"data": None})
            assert await one.ask("publish", {"channel": "ticker:ACME", "data": 1.5}) == {"result": {}}
            assert await hear() == ("ticker:ACME", {"data": 1.5})
        assert await one.redis.get(f"{prefix}:last:{{ticker}}:ACME") == b'{"data":1.5}'


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"data": 1}, 107),
        ({"channel": "", "data": 1}, 107),
        ({"channel": "a b", "data": 1}, 107),
        ({"channel": 7, "data": 1}, 107),
        ({"channel": "a" * 256, "data": 1}, 107),
        ({"channel": "a"}, 107),
        ({"channel": "a", "data": orjson.loads(b"[" * 33 + b"]" * 33)}, 107),
        ({"channel": "a", "data": 1, "tags": {"x": 1}}, 107),
        ({"channel": "a", "data": 1, "tags": ["x"]}, 107),
        ({"channel": "nowhere:a", "data": 1}, 102),
        ({"channel": "a", "b64data": "AA=="}, 108),
        ({"channel": "a", "data": 1, "delta": True}, 108),
        ({"channel": "a", "data": 1, "version": 3}, 108),
        ({"channel": "ticker:a", "data": 1, "version": 3}, 108),
        ({"channel": "ticker:a", "data": 1, "idempotency_key": "k"}, 108),
        ({"channel": "ticker:a", "data": 1, "skip_history": True}, 108),
        ({"channel": "chat:a", "data": 1, "version": 3, "skip_history": True}, 108),
        ({"channel": "chat:a", "data": 1, "skip_history": 1}, 107),
        ({"channel": "chat:a", "data": 1, "version": -1}, 107),
        ({"channel": "chat:a", "data": 1, "version": 1.5}, 107),
        ({"channel": "chat:a", "data": 1, "version": "3"}, 107),
        ({"channel": "chat:a", "data": 1, "version": True}, 107),
        ({"channel": "chat:a", "data": 1, "version": 2**53}, 107),
        ({"channel": "chat:a", "data": 1, "version": 1, "version_epoch": 7}, 107),
        ({"channel": "chat:a", "data": 1, "version": 1, "version_epoch": "v" * 256}, 107),
        ({"channel": "chat:a", "data": 1, "idempotency_key": 7}, 107),
        ({"channel": "chat:a", "data": 1, "idempotency_key": ["k"]}, 107),
        ({"channel": "chat:a", "data": 1, "idempotency_key": "k" * 256}, 107),
        ({"channel": "chat:a", "data": 1, "idempotency_key": "a\nb"}, 107),
    ],
)
@async_test
async def test_a_publish_that_can_not_be_honoured_is_refused(params, code, valkey_url, prefix):
    """Bad names, data, tags, and options that would change the meaning: an error code, and nothing published."""
    async with hub(valkey_url, prefix) as one, one.hearing(topic(prefix, "a")) as hear:
        answer = await one.ask("publish", params)
        assert answer["error"]["code"] == code
        assert set(answer["error"]) == {"code", "message"}
        await one.ask("publish", {"channel": "a", "data": "next"})
        assert await hear() == ("a", {"data": "next"})


@async_test
async def test_options_that_change_nothing_are_accepted(valkey_url, prefix):
    """skip_history without history, and options that are switched off."""
    options = {"skip_history": True, "b64data": "", "idempotency_key": "", "delta": False, "tags": None}
    async with hub(valkey_url, prefix) as one:
        assert await one.ask("publish", {"channel": "a", "data": 1, **options}) == {"result": {}}


@async_test
async def test_broadcast_answers_for_each_channel_in_order(valkey_url, prefix):
    """More channels than go to Redis at once, good ones and bad ones mixed: one response for each, in order."""
    channels = [f"c{i}" if i % 10 else f"nowhere:{i}" for i in range(api.BROADCAST_AT_ONCE * 2 + 5)]
    async with hub(valkey_url, prefix) as one:
        responses = (await one.ask("broadcast", {"channels": channels, "data": 1}))["result"]["responses"]
        wanted = [
            {"result": {}} if i % 10 else {"error": {"code": 102, "message": "unknown channel"}} for i in range(133)
        ]
        assert responses == wanted


@pytest.mark.parametrize(
    ("channels", "code"), [(None, 107), ([], 107), ("a", 107), ({"a": 1}, 107), (["a"] * (api.MAX_BROADCAST + 1), 106)]
)
@async_test
async def test_a_broadcast_without_a_proper_list_is_refused(channels, code, valkey_url, prefix):
    """No list, an empty one, too long a one: one error for the whole."""
    async with hub(valkey_url, prefix) as one:
        answer = await one.ask("broadcast", {"channels": channels, "data": 1})
        assert answer["error"]["code"] == code


@pytest.mark.parametrize("parallel", [False, True])
@async_test
async def test_a_batch_answers_each_command_in_order(parallel, valkey_url, prefix):
    """Good and bad commands side by side; publications arrive in the order of the commands."""
    commands = [
        {"publish": {"channel": "a", "data": 1}},
        {"explode": {}},
        {"publish": {"channel": "nowhere:a", "data": 1}},
        {"batch": {"commands": []}},
        {"publish": {"channel": "a", "data": 2}, "info": {}},
        {"publish": []},
        "publish",
        {"channels": {}},
        {"publish": {"channel": "a", "data": 3}},
    ]
    async with hub(valkey_url, prefix) as one, one.hearing(topic(prefix, "a")) as hear:
        answer = await one.ask("batch", {"commands": commands, "parallel": parallel})
        codes = [reply["error"]["code"] if "error" in reply else reply for reply in answer["replies"]]
        assert codes == [{"publish": {}}, 104, 102, 104, 107, 107, 107, {"channels": {"channels": {}}}, {"publish": {}}]
        assert [await hear(), await hear()] == [("a", {"data": 1}), ("a", {"data": 3})]
        assert await one.ask("batch", {"commands": []}) == {"replies": []}


@pytest.mark.parametrize(("parallel", "codes"), [(False, [0, 0, 0, 0]), (True, [0, 0, 111, 111])])
@async_test
async def test_only_a_parallel_batch_puts_its_publications_in_the_queue_together(parallel, codes, valkey_url, prefix):
    """With room for two: one after another all pass, together the third and fourth are refused."""
    commands = [{"publish": {"channel": "a", "data": 1}}] * 4
    async with hub(valkey_url, prefix, most_waiting=2) as one:
        replies = (await one.ask("batch", {"commands": commands, "parallel": parallel}))["replies"]
        assert [reply["error"]["code"] if "error" in reply else 0 for reply in replies] == codes


@pytest.mark.parametrize("body", [{}, {"commands": {}}, {"commands": [{"info": {}}] * (MOST_COMMANDS + 1)}])
@async_test
async def test_what_is_no_batch_is_a_400(body, valkey_url, prefix):
    """Without a list of at most so many commands there are no replies to give."""
    async with hub(valkey_url, prefix) as one:
        response = await one.post("batch", body)
        assert response.code == 400
        assert error_of(response)["code"] in (106, 107)


# Asking.


@async_test
async def test_info_channels_and_connections_cover_all_workers(valkey_url, prefix):
    """Two workers, asked at one of them; with a silent third, an incomplete answer says so."""
    other = {"num_clients": 2, "num_users": 1, "num_subs": 3, "num_channels": 2}
    async with (
        hub(valkey_url, prefix) as one,
        node(valkey_url, prefix, 1, counts=lambda: {"a": 2, "b": 1}, stats=lambda: other) as second,
    ):
        one.counts.update({"a": 1})
        nodes = (await one.ask("info"))["result"]["nodes"]
        assert [(n["uid"], n["num_subs"], n["num_channels"]) for n in nodes][1] == (second.uid, 3, 2)
        fields = "uid name version num_clients num_users num_subs num_channels uptime"
        assert set(nodes[0]) == set(fields.split())
        assert await one.ask("channels") == {"result": {"channels": {"a": {"num_clients": 3}, "b": {"num_clients": 1}}}}
        assert await one.ask("channels", {"pattern": "b*"}) == {"result": {"channels": {"b": {"num_clients": 1}}}}
        assert (await one.ask("channels", {"pattern": 7}))["error"]["code"] == 107
        connections = (await one.ask("connections"))["result"]
        assert (connections["num_clients"], connections["num_users"], len(connections["nodes"])) == (7, 3, 2)
        assert "silent_nodes" not in connections
        async with node(valkey_url, prefix, 2, deaf=True) as deaf:
            assert (await one.ask("connections"))["result"]["silent_nodes"] == [deaf.uid]


# The request itself.


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": KEY[:-1]},
        {"Authorization": "apikey wrong"},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "apikey"},
    ],
)
@async_test
async def test_without_the_key_everything_is_a_401(headers, valkey_url, prefix):
    """A missing, wrong or misplaced key: 401 with code 101, for methods that exist and for those that don't."""
    raw = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    async with hub(valkey_url, prefix) as one:
        for path in ("info", "publish", "nothing"):
            response = await one.request("POST", path, body=b"{}", headers=raw)
            assert (response.code, error_of(response)["code"]) == (401, 101)


@pytest.mark.parametrize("name", ["X-API-Key", "Authorization"])
@async_test
async def test_the_key_is_taken_from_either_header(name, valkey_url, prefix):
    """X-API-Key: KEY, or Authorization: apikey KEY; also with letters beyond ASCII."""
    value = {"X-API-Key": KEY, "Authorization": f"apikey {KEY}"}[name]
    async with hub(valkey_url, prefix) as one:
        headers = {name: value.encode().decode("latin-1")}
        assert (await one.request("POST", "info", body=b"{}", headers=headers)).code == 200


@async_test
async def test_without_a_key_in_the_settings_the_api_is_off(valkey_url, prefix):
    """No key opens it, not even an empty one, and the answer names the setting."""
    async with hub(valkey_url, prefix, key="") as one:
        for key in ("", "x"):
            response = await one.request("POST", "info", body=b"{}", headers={"X-API-Key": key})
            assert response.code == 401
            assert "api.key is not set" in error_of(response)["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"null", b'"x"', b"\xff", b"a=b&c=%zz", b"[" * 100_000])
@async_test
async def test_a_body_that_is_no_json_object_is_a_400(body, valkey_url, prefix):
    """One JSON error, which does not repeat the body; also with curl's default content type."""
    async with hub(valkey_url, prefix) as one:
        for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
            response = await one.post("publish", body, **headers)
            assert (response.code, error_of(response)["code"]) == (400, 107)
            assert len(response.body) < 200


@async_test
async def test_curls_default_content_type_does_no_harm(valkey_url, prefix):
    """`curl -d '{…}'` says that it sends a form; it is read as the JSON that it is."""
    async with hub(valkey_url, prefix) as one:
        body = b'{"channel":"a","data":"50%&x=y"}'
        response = await one.post("publish", body, **{"Content-Type": "application/x-www-form-urlencoded"})
        assert (response.code, response.body) == (200, b'{"result":{}}')


@async_test
async def test_a_body_beyond_the_limit_is_refused(valkey_url, prefix):
    """http.body_bytes holds here, and the worker serves on."""
    async with hub(valkey_url, prefix, body_bytes=2000) as one:
        response = await one.post("publish", {"channel": "a", "data": "x" * 3000})
        assert response.code in (400, 413, 599)
        assert (await one.post("info")).code == 200


@pytest.mark.parametrize("path", ["nothing", "publish/", "batch/x", "", "../api/info", "PUBLISH"])
@async_test
async def test_an_unknown_method_is_a_404(path, valkey_url, prefix):
    """As Centrifugo has it for paths, with code 104 in the body."""
    async with hub(valkey_url, prefix) as one:
        response = await one.post(path)
        assert (response.code, error_of(response)["code"]) == (404, 104)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
@async_test
async def test_other_than_post_is_a_405(method, valkey_url, prefix):
    """With or without the key; the body is JSON too."""
    async with hub(valkey_url, prefix) as one:
        response = await one.request(method, "info")
        assert response.code == 405
        assert method == "HEAD" or error_of(response)["code"] == 107


@pytest.mark.expects_log
@async_test
async def test_a_fault_of_ours_is_a_500_in_json(valkey_url, prefix, monkeypatch):
    """An unforeseen exception is logged, and the client gets code 100 without its text."""

    async def fail(*args: object) -> dict:
        raise ZeroDivisionError("secret")

    monkeypatch.setitem(api.METHODS, "info", fail)
    async with hub(valkey_url, prefix) as one:
        response = await one.post("info")
        assert (response.code, error_of(response)["code"]) == (500, 100)
        assert b"secret" not in response.body


# Redis away, queues full.


REQUESTS = {
    "publish": {"channel": "a", "data": 1},
    "broadcast": {"channels": ["a", "b"], "data": 1},
    "batch": {"commands": [{"publish": {"channel": "a", "data": 1}}, {"info": {}}]},
    "info": {},
    "channels": {},
    "connections": {},
    "ticket": {"user": "ann"},
}


@pytest.mark.expects_log
@async_test
async def test_without_redis_every_method_is_a_503(prefix):
    """Code 100, temporary, Retry-After, and no address of Redis; a refusal that has another cause stays a 200."""
    with own_valkey() as valkey:
        async with hub(valkey.url, prefix) as one:
            valkey.stop()
            for method, body in REQUESTS.items():
                response = await one.post(method, body)
                assert (response.code, response.headers["Retry-After"]) == (503, "1"), method
                error = error_of(response)
                assert (error["code"], error["temporary"]) == (100, True)
                assert "valkey.sock" not in error["message"]
            assert (await one.ask("publish", {"channel": "no:a", "data": 1}))["error"]["code"] == 102
            mixed = (await one.ask("broadcast", {"channels": ["a", "no:a"], "data": 1}))["result"]["responses"]
            assert [(r["error"]["code"], r["error"].get("temporary")) for r in mixed] == [(100, True), (102, None)]


@async_test
async def test_a_full_queue_is_a_503_with_code_111(valkey_url, prefix):
    """More publications than may wait: those that fit are taken, the others are temporary errors."""
    async with hub(valkey_url, prefix, most_waiting=2) as one:
        answer = await one.ask("broadcast", {"channels": ["a"] * 5, "data": 1})
        codes = [r["error"]["code"] if "error" in r else 0 for r in answer["result"]["responses"]]
        assert codes == [0, 0, 111, 111, 111]
    async with hub(valkey_url, prefix, most_waiting=0) as one:
        response = await one.post("publish", {"channel": "a", "data": 1})
        assert (response.code, error_of(response)["code"]) == (503, 111)
