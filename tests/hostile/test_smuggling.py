"""Request smuggling, at the hub itself and behind the real nginx and HAProxy with the files of config/."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e.proxies import KINDS, OPENSSL, Front
from tests.hostile.smuggling import BAD, GOOD, IDLE_S, INNER, PATIENCE_S, Shape, numbered, paths, send, smuggled
from tests.hubs import HubProcess
from tests.nodes import until
from tests.support import async_test

AT_A_TIME = 16
VICTIMS = 30


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """Which logs each request that it understands."""
    with HubProcess({"workers": 1, "log_level": "debug"}) as hub:
        yield hub


def port_of(hub: HubProcess) -> int:
    port = urlsplit(hub.ws_url).port
    assert port is not None
    return port


async def send_all(shapes: list[Shape], port: int, context: ssl.SSLContext | None = None) -> dict[str, bytes]:
    """The answers by name."""
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(shape: Shape) -> tuple[str, bytes]:
        async with room:
            # A proxy may wait for more of what it has understood in its own way; the hub itself never does.
            waits = IDLE_S if context and shape.name in BAD else PATIENCE_S
            return shape.name, await send(port, shape.data, context, waits)

    return dict(await asyncio.gather(*map(one, shapes)))


async def handled(hub: HubProcess, mark: str) -> str:
    """The hub's log once the request that is marked is in it, and so all that were handled before."""
    await until(lambda: mark in hub.stderr, PATIENCE_S)
    return hub.stderr


@async_test
async def test_the_hub_takes_none_of_them_for_two_requests(hub: HubProcess) -> None:
    """One answer that refuses, or none, and the end; nothing behind is looked at. What is good is answered."""
    shapes = numbered(1000)
    answers = await send_all(shapes, port_of(hub))
    await send(port_of(hub), b"GET /marked-direct HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    understood = paths(await handled(hub, "/marked-direct"))
    for shape in shapes:
        answer, inner = answers[shape.name], f"/inner-{shape.number}"
        assert inner not in understood, shape.name
        if shape.name in GOOD:
            assert answer.startswith(b"HTTP/1.1 404 ") and f"/first-{shape.number}" in understood, shape.name
        else:
            assert re.fullmatch(rb"(?s)(HTTP/1\.1 (4|5)\d\d .*)?", answer), (shape.name, answer)
            assert len(re.findall(rb"HTTP/1\.1 \d", answer)) <= 1, (shape.name, answer)
            assert f"/first-{shape.number}" not in understood, shape.name


@OPENSSL
@pytest.mark.parametrize("kind", KINDS)
@async_test
async def test_a_proxy_and_the_hub_agree_on_every_request(hub: HubProcess, kind) -> None:
    """What the hub understood, the proxy has passed on as a request of its own; and who comes behind is well."""
    loop = asyncio.get_running_loop()
    with Front(kind, urlsplit(hub.ws_url).netloc) as front, contextlib.ExitStack() as stack:
        context = ssl.create_default_context(cafile=str(front.certificate))
        loop.add_reader(front._log.fileno(), front.log)
        stack.callback(loop.remove_reader, front._log.fileno())
        shapes = numbered(2000 if kind.name == "nginx" else 3000)
        await send_all(shapes, front.port, context)
        mark = f"/marked-{kind.name}"
        for number in range(VICTIMS):
            path = f"{mark}-{number}".encode()
            request = b"GET " + path + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            answer = await send(front.port, request, context)
            assert answer.startswith(b"HTTP/1.1 404 ") and answer.count(b"HTTP/1.1 ") == 1
        await handled(hub, f"{mark}-{VICTIMS - 1}")
        numbers = {shape.number: shape.name for shape in shapes}
        understood = "\n".join(path for path in paths(hub.stderr) if int(path[-4:]) in numbers)
        await until(lambda: f"{mark}-{VICTIMS - 1}" in front.log(), PATIENCE_S)
        await until(lambda: not smuggled(front.log(), understood), PATIENCE_S)
        assert {f"/first-{shape.number}" for shape in shapes if shape.name in GOOD} <= paths(understood)


def test_what_is_smuggled_is_found_in_the_logs() -> None:
    """A request in the hub's log that is not in the proxy's."""
    assert smuggled("POST /first-0001 404", "POST /first-0001 404\nGET /inner-0001 404") == {1: "/inner-0001"}
    assert smuggled("POST /first-0001 404\nGET /inner-0001 404", "POST /first-0001 404") == {}


def test_each_shape_has_something_to_smuggle() -> None:
    """A second request; numbers are unique."""
    assert all(INNER in data for name, data in BAD.items()), "no second request"
    assert len({shape.number for shape in numbered(1)}) == len(GOOD) + len(BAD)
