"""Every wire behind nginx and HAProxy with the files of config/, round robin over hubs that they know nothing of.

`machines`: two hubs of two workers that share a Redis and reach each other by [relay]; `workers`: one hub of four.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import re
import ssl
import subprocess
import threading
import uuid
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from hub.sections import ClientSettings, HttpSettings, SocketIOSettings
from hub.transports.longpoll import MAX_WAIT_S
from hub.transports.polling import GRACE_S
from tests.e2e import nodejs
from tests.e2e.proxies import CONFIG, HAPROXY, KINDS, MOST_CLIENTS, NGINX, OPENSSL, Front, Kind, differences
from tests.e2e.test_fallbacks import no_upgrades
from tests.hubs import HubProcess
from tests.nodes import until
from tests.stores import free_port
from tests.support import async_test

OPEN = {"subscribe": "anyone", "publish": "anyone", "history": "anyone"}
SETTINGS = {"namespaces": {"log": {"mode": "stream", **OPEN}, "chat": {"mode": "stream", **OPEN}}}
CURL = pytest.mark.needs("curl", "apt-get install curl")
TRANSPORTS = ("polling", "websocket", "polling,websocket")

pytestmark = OPENSSL


class Site(NamedTuple):
    """A proxy and the hubs behind it."""

    front: Front
    hubs: list[HubProcess]


@contextlib.contextmanager
def machine(valkey_url: str, prefix: str) -> Iterator[HubProcess]:
    """One of several hubs."""
    internal = f"127.0.0.1:{free_port()}"
    relay = {"url": f"http://{internal}", "secret": "a secret of both machines, of 32 bytes or more"}
    redis = {"url": valkey_url, "prefix": prefix}
    with HubProcess({**SETTINGS, "workers": 2, "internal": [internal], "redis": redis, "relay": relay}) as hub:
        yield hub


def address(hub: HubProcess) -> str:
    return urlsplit(hub.ws_url).netloc


@contextlib.contextmanager
def a_site(kind: Kind, topology: str, valkey_url: str) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        if topology == "machines":
            prefix = f"p{uuid.uuid4().hex[:12]}"
            hubs = [stack.enter_context(machine(valkey_url, prefix)) for _ in range(2)]
        else:
            hubs = [stack.enter_context(HubProcess({**SETTINGS, "workers": 4}))]
        yield Site(stack.enter_context(Front(kind, *map(address, hubs))), hubs)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module", params=["machines", "workers"])
def site(request: pytest.FixtureRequest, kind: Kind, valkey_url: str) -> Iterator[Site]:
    """For all tests that leave it as it was."""
    with a_site(kind, request.param, valkey_url) as site:
        yield site


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Node's clients take the certificate for a good one."""
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(site.front.certificate))


# The files.


def test_only_addresses_ports_and_paths_differ_from_the_shipped_file(kind: Kind) -> None:
    """What is tested here is what operators copy."""
    front = Front(kind, "127.0.0.1:1", "127.0.0.1:2")
    try:
        assert front.adapted != front.shipped
        assert differences(front.shipped, front.adapted) == []
        worse = front.adapted.replace("90s", "9s")
        assert set(differences(front.shipped, worse)) <= {"90s", "90s;"} != set()
    finally:
        front._remove()


@pytest.mark.parametrize("mistake", [False, True])
def test_the_proxys_own_check_passes(kind: Kind, mistake: bool) -> None:
    """What the head of the file says: `nginx -t`, `haproxy -c -f FILE`."""
    with Front(kind, "127.0.0.1:1", "127.0.0.1:2") as front:
        config = front.directory / "checked"
        config.write_text(front.adapted + ("nonsense\n" if mistake else ""))
        command = kind.command(config)[:-2] if kind is NGINX else [kind.binary, "-f", str(config)]
        command += ["-t"] if kind is NGINX else ["-c", "-n", MOST_CLIENTS]
        assert (subprocess.run(command, capture_output=True, timeout=30).returncode == 0) is not mistake


def test_its_patience_is_longer_than_ours(kind: Kind) -> None:
    """Every time of silence there is longer than between any two words of the hub's, by its defaults."""
    text = (CONFIG / kind.file).read_text()
    names = {NGINX: r"proxy_(?:read|send)_timeout", HAPROXY: r"timeout (?:client|server|tunnel)"}[kind]
    times = [int(found) for found in re.findall(rf"^ *{names} +(\d+)s", text, re.MULTILINE)]
    assert len(times) == {NGINX: 2, HAPROXY: 3}[kind]
    socketio = SocketIOSettings()
    polls_s = (socketio.ping_interval_ms + socketio.ping_timeout_ms) / 1000 + GRACE_S
    assert min(times) > max(ClientSettings().ping_interval_s, MAX_WAIT_S, polls_s) + 10
    kept = {NGINX: r"keepalive_timeout (\d+)s", HAPROXY: r"pool-purge-delay (\d+)s"}[kind]
    assert int(re.search(kept, text)[1]) < HttpSettings().idle_timeout_s


# Stock clients.


@nodejs.NODE
@nodejs.PACKAGES
@pytest.mark.usefixtures("trust")
class TestStockClients:
    """Which know nothing of the proxy, and it nothing of their sessions."""

    @pytest.mark.parametrize("transport", ["http_stream", "sse"])
    def test_sdk_over_http(self, site: Site, transport: str) -> None:
        """Streams arrive unbuffered, and each command in its session: 204, and no other answer."""
        nodejs.run("fallbacks.mjs", "works", site.front.url, transport, site.hubs[0].token("ann"))

    def test_sdk_over_websocket(self, site: Site) -> None:
        """The upgrade passes."""
        transports = "websocket,http_stream,sse"
        nodejs.run("fallbacks.mjs", "fallsBack", site.front.url, transports, "websocket")

    @pytest.mark.parametrize("transports", TRANSPORTS)
    def test_socketio(self, site: Site, transports: str) -> None:
        """No session is unknown, nothing is lost, order is kept; polls end in a WebSocket, wherever that lands."""
        nodejs.run("socketio.mjs", "isMany", site.front.url, transports, 12, 10)

    @nodejs.CHROMIUM
    def test_chromium_over_http_2(self, site: Site) -> None:
        """Ten event streams, a WebSocket and a request at once, of one page; HTTP/1.1 has six connections for all."""
        nodejs.run("proxies.mjs", "page", site.front.url)


@nodejs.NODE
@nodejs.PACKAGES
@async_test
async def test_socketio_stays_with_its_polls_where_upgrades_are_refused() -> None:
    """By a proxy that knows only HTTP: no error, no loss."""
    with HubProcess(SETTINGS) as hub:
        port = urlsplit(hub.ws_url).port
        assert port is not None
        async with no_upgrades(port) as url:
            await asyncio.to_thread(nodejs.run, "proxies.mjs", "staysWithPolls", url)


# curl.


def curl(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["curl", "-sS", "--http2", "--cacert", str(site.front.certificate), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=20, text=True)


@CURL
def test_curl_follows_a_channel(site: Site) -> None:
    """Each event when it comes, over HTTP/2."""
    url, channel = site.front.url, f"log:{uuid.uuid4().hex}"
    command = ["curl", "-sSN", "--http2", "-i", "--cacert", str(site.front.certificate), f"{url}/sse?channel={channel}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listener:
        try:
            lines = iter(listener.stdout.readline, "")
            assert next(lines).startswith("HTTP/2 200")
            next(line for line in lines if line == "event: cursor\n")
            for number in range(3):
                body = json.dumps({"channel": channel, "data": number})
                assert json.loads(curl(site, f"{url}/publish", "--json", body).stdout)["offset"] == number + 1
                data = next(line for line in lines if line.startswith('data: {"channel"'))
                assert json.loads(data.removeprefix("data: "))["pub"]["data"] == number
        finally:
            listener.kill()


@CURL
def test_curl_polls(site: Site) -> None:
    """A cursor of one machine is one of the other's."""
    url, channel = site.front.url, f"log:{uuid.uuid4().hex}"
    poll = f"{url}/poll?channel={channel}"
    head = curl(site, "-D", "-", "-o", "/dev/null", f"{poll}&wait=0").stdout
    assert head.startswith("HTTP/2 204")
    cursor = next(line.split()[1] for line in head.splitlines() if line.startswith("hub-cursor:"))
    for number in range(6):
        curl(site, f"{url}/publish", "--json", json.dumps({"channel": channel, "data": number}))
        answer = json.loads(curl(site, f"{poll}&since={cursor}").stdout)
        assert [message["pub"]["data"] for message in answer["messages"]] == [number]
        cursor = answer["cursor"]


@CURL
@async_test
async def test_what_is_logged_holds_no_token(site: Site) -> None:
    """The path, and not the query."""
    site.front.log()  # reads what others left: the kernel keeps few lines of HAProxy's
    curl(site, f"{site.front.url}/connection/nowhere?channel=log:a&token=visible")
    await until(lambda: "GET /connection/nowhere" in site.front.log())
    log = site.front.log()
    assert "visible" not in log and "channel=" not in log


@CURL
def test_plain_http_is_sent_to_https(site: Site) -> None:
    """With 308, which keeps the method."""
    head = curl(site, "-D", "-", "-o", "/dev/null", f"{site.front.plain_url}/sse?channel=a").stdout
    assert " 308 " in head.splitlines()[0]
    assert re.search(r"(?i)^location: https://127\.0\.0\.1[^/]*/sse\?channel=a\r?$", head, re.MULTILINE)


# Bare requests.


def connection(front: Front) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(front.certificate))
    return http.client.HTTPSConnection("127.0.0.1", front.port, timeout=10, context=context)


def fetch(front: Front, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    with contextlib.closing(connection(front)) as one:
        one.request("GET" if body is None else "POST", target, body)
        response = one.getresponse()
        return response.status, response.read()


QUERY = "/socket.io/?EIO=4&transport=polling"


@async_test
async def test_a_poll_that_is_given_up_ends_at_the_hub(site: Site) -> None:
    """The proxy tells it on, so that a session whose client is gone is not kept for a minute."""
    for _ in range(4):
        body = (await asyncio.to_thread(fetch, site.front, QUERY))[1]
        query = f"{QUERY}&sid={json.loads(body[1:])['sid']}"
        assert (await asyncio.to_thread(fetch, site.front, query, b"40")) == (200, b"ok")
        assert (await asyncio.to_thread(fetch, site.front, query))[1].startswith(b"40{")
        poll = connection(site.front)
        poll.request("GET", query)
        # Answered behind the poll, so it is held by now at the hub.
        assert (await asyncio.to_thread(fetch, site.front, query, b"3")) == (200, b"ok")
        poll.close()
        await until(lambda query=query: fetch(site.front, query, b"3")[0] == 400)


class Witness(http.server.BaseHTTPRequestHandler):
    """A hub that only writes down how it was asked."""

    seen: list[http.client.HTTPMessage]

    def do_GET(self) -> None:
        self.seen.append(self.headers)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_what_the_hub_is_told_of_the_client(kind: Kind) -> None:
    """The Host with its port, the real address and scheme, whatever the client claims."""
    witness = type("Own", (Witness,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), witness) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with Front(kind, f"127.0.0.1:{server.server_port}") as front:
                with contextlib.closing(connection(front)) as one:
                    one.request("GET", "/x", headers={"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "gopher"})
                    assert one.getresponse().status == 200
                seen = next(headers for headers in witness.seen if "X-Forwarded-For" in headers)
                assert seen.get_all("X-Forwarded-For") == ["127.0.0.1"]
                assert seen.get_all("X-Forwarded-Proto") == ["https"]
                assert seen["Host"] == f"127.0.0.1:{front.port}"
                assert seen["Upgrade"] is None
        finally:
            server.shutdown()


def test_a_machine_that_stops_costs_no_request(kind: Kind, valkey_url: str) -> None:
    """SIGTERM while requests come: all are answered by it or by the other, also over connections that were kept."""
    with a_site(kind, "machines", valkey_url) as site:
        found, stopped = [], threading.Thread(target=site.hubs[0].stop)
        for number in range(60):
            if number == 20:
                stopped.start()
            found.append(fetch(site.front, f"/poll?channel=log:{number}&wait=0")[0])
        stopped.join()
        found += [fetch(site.front, "/poll?channel=log:a&wait=0")[0] for _ in range(20)]
        assert set(found) == {204}


def ask(hub: HubProcess, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request to a hub itself, on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection(address(hub), timeout=10)) as one:
        one.request("GET" if body is None else "POST", target, body)
        response = one.getresponse()
        return response.status, response.read()


@async_test
async def test_a_socketio_client_moves_to_a_websocket_through_another_machine(valkey_url: str, prefix: str) -> None:
    """Its session stays where it is; the machine between drains in time, and the session ends with its WebSocket."""
    with machine(valkey_url, prefix) as there, machine(valkey_url, prefix) as here:
        sid = json.loads(ask(there, QUERY)[1][1:])["sid"]
        query = f"{QUERY}&sid={sid}"
        assert ask(there, query, b"40") == (200, b"ok")
        assert ask(there, query)[1].startswith(b"40{")
        url = f"ws://{address(here)}/socket.io/?EIO=4&transport=websocket&sid={sid}"
        async with asyncio.timeout(20), connect(url, proxy=None, compression=None) as socket:
            await socket.send("2probe")
            assert await socket.recv() == "3probe"
            await socket.send("5")
            for number in range(3):
                data = "x" * 100_000
                await socket.send(f'42{number}["publish",{json.dumps({"channel": "log:far", "data": data})}]')
                assert str(await socket.recv()).startswith(f'43{number}[{{"ack":"memory"')
            assert ask(there, query, b"3")[0] == 400  # it does not poll any more
            assert await asyncio.to_thread(here.stop) == 0
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            await until(lambda: json.loads(ask(there, query)[1])["code"] == 1)


@async_test
async def test_a_websocket_for_a_session_of_nowhere_is_refused(valkey_url: str, prefix: str) -> None:
    """400, Session ID unknown: its machine has gone."""
    with machine(valkey_url, prefix) as here:
        with machine(valkey_url, prefix) as there:
            sid = json.loads(ask(there, QUERY)[1][1:])["sid"]
        url = f"ws://{address(here)}/socket.io/?EIO=4&transport=websocket&sid={sid}"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, proxy=None)
        assert refused.value.response.status_code == 400
        assert json.loads(refused.value.response.body)["code"] == 1


# Who is behind it.


async def comes_in(front: Front, source: str) -> int:
    """Status of a WebSocket from an address of this machine, which claims another one and stays until the end."""
    context = ssl.create_default_context(cafile=str(front.certificate))
    claims = {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1", "X-Real-IP": "192.0.2.1"}
    options = {"proxy": None, "ssl": context, "additional_headers": claims, "local_addr": (source, 0)}
    try:
        async with connect(f"wss://127.0.0.1:{front.port}/connection/websocket", **options) as socket:
            await socket.send('{"id":1,"connect":{}}')
            await asyncio.wait_for(socket.recv(), 10)
            assert await comes_in_again(front, source) == 429
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def comes_in_again(front: Front, source: str) -> int:
    """The same while the first is there."""
    context = ssl.create_default_context(cafile=str(front.certificate))
    try:
        url = f"wss://127.0.0.1:{front.port}/connection/websocket"
        async with connect(url, proxy=None, ssl=context, local_addr=(source, 0)):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def addresses(hub: HubProcess) -> set[str]:
    return set(re.findall(r"closed wire=.* address=(\S+)", hub.stderr))


BEHIND = {"trusted_proxies": ["127.0.0.1"], "log_addresses": True, "limits": {"ip_connections": 1}, "workers": 1}


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_the_hub_sees_who_is_behind_the_proxy(kind: Kind, fast: bool) -> None:
    """By what the proxy has added, and by nothing that the client wrote: each address has its own limit."""
    with HubProcess({**BEHIND, "fast_upgrade": fast}) as hub, Front(kind, address(hub)) as front:
        assert [await comes_in(front, source) for source in ("127.0.0.2", "127.0.0.3")] == [101, 101]
        await until(lambda: addresses(hub) == {"127.0.0.2", "127.0.0.3"})


@pytest.mark.needs(HAPROXY.binary, "apt-get install haproxy")
@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_haproxy_says_who_is_behind_it_by_the_proxy_protocol(fast: bool) -> None:
    """`send-proxy`, as the comment in the file has it; without X-Forwarded-For."""
    listen = {"listen": ["127.0.0.1:0"], "proxy_protocol": ["127.0.0.1:0"]}
    with HubProcess({**BEHIND, **listen, "fast_upgrade": fast}) as hub:
        front = Front(HAPROXY, address(hub))
        text = front.adapted.replace("    http-request set-header X-Forwarded-For %[src]\n", "")
        text = re.sub(r"^( +server \w+ \S+)$", r"\1 send-proxy", text, flags=re.MULTILINE)
        assert text.count(" send-proxy\n") == 2 and "X-Forwarded-For %" not in text
        front._config.write_text(text)
        with front:
            assert [await comes_in(front, source) for source in ("127.0.0.2", "127.0.0.3")] == [101, 101]
        await until(lambda: addresses(hub) == {"127.0.0.2", "127.0.0.3"})
