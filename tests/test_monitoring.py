"""Who may look at the metrics, and how health is answered."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.netutil import bind_sockets

from hub import httpd, monitoring
from hub.health import Verdict
from hub.monitoring import Monitoring, has_key, is_local
from hub.sections import HealthSettings, HttpSettings
from tests.support import async_test, serving

KEY = "ключ"
KEY_HEADER = KEY.encode().decode("latin-1")


class Exposition:
    """Knows one number."""

    async def text(self, accept: str) -> tuple[bytes, str]:
        return b"one 1\n", f"text/plain; asked={accept}"


class Health:
    verdict = Verdict({}, {})

    def live(self) -> Verdict:
        return self.verdict

    def ready(self) -> Verdict:
        return self.verdict._replace(degraded={"redis": "away"})


@contextlib.asynccontextmanager
async def pages(health: Health, key: str = KEY, guarded: bool = False) -> AsyncIterator[str]:
    routes = monitoring.routes(Monitoring(Exposition(), health, key, guarded, 4))
    server = httpd.Server(httpd.application(routes), HttpSettings())
    sockets = bind_sockets(0, "127.0.0.1")
    async with serving(server, sockets):
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"


async def get(url: str, method: str = "GET", **headers: str) -> HTTPResponse:
    return await AsyncHTTPClient().fetch(
        url,
        method=method,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        raise_error=False,
    )


@async_test
async def test_metrics_are_for_this_machine_and_for_who_has_the_key():
    """A proxy on this machine stands for anybody."""
    async with pages(Health()) as url:
        answer = await get(f"{url}/metrics", Accept="x/y")
        assert (answer.code, answer.body) == (200, b"one 1\n")
        assert answer.headers["Content-Type"] == "text/plain; asked=x/y"
        assert answer.headers["Cache-Control"] == "no-store"
        for header in ("X_Forwarded_For", "Forwarded", "Via", "X_Real_IP"):
            assert (await get(f"{url}/metrics", **{header: "203.0.113.7"})).code == 401
        assert (await get(f"{url}/metrics", X_Forwarded_For="203.0.113.7", X_API_Key=KEY_HEADER)).code == 200
        assert (await get(f"{url}/metrics", X_Forwarded_For="203.0.113.7", X_API_Key="wrong")).code == 401
        assert (await get(f"{url}/metrics", "DELETE")).code == 405


@async_test
async def test_where_an_address_is_public_too_everybody_needs_the_key():
    async with pages(Health(), guarded=True) as url:
        assert (await get(f"{url}/metrics")).code == 401
        assert (await get(f"{url}/metrics", Authorization=f"apikey {KEY_HEADER}")).code == 200
        assert (await get(f"{url}/livez")).code == 200


@async_test
async def test_without_a_key_nobody_has_it():
    async with pages(Health(), key="", guarded=True) as url:
        for offer in ({}, {"X_API_Key": ""}, {"Authorization": "apikey "}):
            assert (await get(f"{url}/metrics", **offer)).code == 401


@async_test
async def test_health_is_a_status_with_reasons():
    """For balancers that look at the status alone, and for people who look at the body; HEAD, too."""
    health = Health()
    async with pages(health) as url:
        assert orjson.loads((await get(f"{url}/livez")).body) == {"status": "ok"}
        assert orjson.loads((await get(f"{url}/readyz")).body) == {"status": "ok", "degraded": {"redis": "away"}}
        health.verdict = Verdict({"draining": "it ends"}, {})
        for page in ("livez", "readyz"):
            answer = await get(f"{url}/{page}")
            assert answer.code == 503 and answer.headers["Content-Type"] == "application/json"
            assert orjson.loads(answer.body)["reasons"] == {"draining": "it ends"}
            answer = await get(f"{url}/{page}", "HEAD")
            assert (answer.code, answer.body) == (503, b"")


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.8.8", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("::ffff:192.0.2.1", 1, 0, 0), False),
        (("192.168.0.1", 1), False),
        (("fe80::1%lo", 1, 0, 0), False),
        (("nonsense", 1), False),
        ("", True),
        (b"", True),
        (None, True),
    ],
)
def test_from_this_machine(peer: object, local: bool) -> None:
    assert is_local(peer, {}) is local


def test_what_shows_the_key() -> None:
    assert has_key({"x-api-key": KEY_HEADER}, KEY) and has_key({"authorization": f"ApiKey  {KEY_HEADER}"}, KEY)
    assert not has_key({"authorization": f"Bearer {KEY_HEADER}"}, KEY) and not has_key({}, KEY)
    assert not has_key({"x-api-key": ""}, "")


def test_no_more_workers_are_asked_for_than_there_are_to_be() -> None:
    """However many CPUs the worker that is asked may run on."""
    health = Health()
    pages = Monitoring(Exposition(), health, "", False, 4)
    for asked, wanted in ((3, 3), (9, 4)):
        pages.retune(KEY, HealthSettings(min_workers=asked))
        assert (pages.key, health.min_workers, health.needs_redis) == (KEY, wanted, True)
