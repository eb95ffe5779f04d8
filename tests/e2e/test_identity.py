"""Identity from outside: a hub of two workers whose keys are a provider's, and tickets of its server API."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from hub import auth
from tests.hubs import KEY, HubProcess, run_hub, to_toml
from tests.plane import Client
from tests.support import async_test
from tests.test_keys import EC, ED, RSA, jwk, pem

ORIGIN = "https://app.example"


class Provider(http.server.BaseHTTPRequestHandler):
    """Serves `keys`, whoever asks."""

    keys: ClassVar[list[dict]] = []

    def do_GET(self) -> None:
        body = orjson.dumps({"keys": self.keys})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def provider() -> Iterator[str]:
    """Its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/jwks.json"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """With a key in a file, and one of a provider."""
    file = tmp_path_factory.mktemp("keys") / "a.pem"
    file.write_bytes(pem(RSA))
    Provider.keys = [jwk(EC, kid="first")]
    with provider() as url:
        identity = {"keys": [f"a={file}"], "jwks_url": url, "audience": "hub", "cookie": "session"}
        with HubProcess({"auth": identity, "allowed_origins": [ORIGIN], "log_level": "debug"}) as hub:
            yield hub


def token(key: object, algorithm: str, kid: str) -> str:
    return auth.make("ann", key, 60, time.time(), algorithm, kid, aud="hub")


async def user_of(url: str, **headers: str) -> str:
    """Who a connection by this URL is: 'ann', '' for nobody, or '401'."""
    try:
        async with connect(url, proxy=None, additional_headers=headers) as socket:
            one = Client(socket)
            reply = await one.command(connect={})
            if "error" in reply:
                return str(reply["error"]["code"])
            return "ann" if "subscribe" in await one.command(subscribe={"channel": "members:a"}) else ""
    except InvalidStatus as refused:
        return str(refused.response.status_code)


@async_test
async def test_keys_of_files_and_of_the_provider_are_good_in_all_workers(hub):
    """From the first connection on; nobody else's are."""
    good, bad = (token(RSA, "RS256", "a"), token(EC, "ES256", "first")), token(EC, "ES256", "a")
    for text, user in [(good[0], "ann"), (good[1], "ann"), (bad, "401")] * 4:
        assert await user_of(f"{hub.ws_url}?token={text}") == user
    assert await user_of(hub.ws_url) == ""


@async_test
async def test_a_new_key_of_the_provider_is_found(hub):
    """Its first token is told to try again, by each worker, while that fetches the set."""
    Provider.keys = [jwk(EC, kid="first"), jwk(ED, kid="second")]
    url = f"{hub.ws_url}?token={token(ED, 'EdDSA', 'second')}"
    seen: list[str] = []
    async with asyncio.timeout(20):
        while seen[-8:] != ["ann"] * 8:
            seen.append(await user_of(url))
    assert set(seen) == {"503", "ann"}, seen


def ask(hub: HubProcess, **params: object) -> dict:
    request = urllib.request.Request(f"{hub.api_url}/ticket", orjson.dumps(params), {"X-API-Key": KEY})
    with urllib.request.urlopen(request, timeout=10) as response:
        return orjson.loads(response.read())


@async_test
async def test_a_ticket_of_the_server_api_opens_one_connection(hub):
    """On whichever worker; the next one who shows it is refused, by each of them."""
    for _ in range(4):
        ticket = ask(hub, user="ann")["result"]["ticket"]
        url = f"{hub.ws_url}?ticket={ticket}"
        assert [await user_of(url) for _ in range(4)] == ["ann", "401", "401", "401"]
        assert ticket not in hub.stderr
    assert ask(hub, user="ann", ttl=61)["error"]["code"] == 107


@async_test
async def test_a_page_s_cookie_names_its_user(hub):
    """Of an allowed origin, in each worker; from elsewhere it is none."""
    cookie = f"session={token(RSA, 'RS256', 'a')}"
    for _ in range(4):
        assert await user_of(hub.ws_url, Cookie=cookie, Origin=ORIGIN) == "ann"
        assert await user_of(hub.ws_url, Cookie=cookie) == ""
        assert await user_of(hub.ws_url, Cookie=cookie, Origin="https://evil.example") == "403"
        assert await user_of(hub.ws_url, Cookie="session=x", Origin=ORIGIN) == "401"


@async_test
async def test_without_keys_tokens_are_the_application_s(tmp_path):
    """With an application, nobody is turned away for one; without, each of them is bad."""
    (tmp_path / "own.py").write_text("from hub.app import App\n\napp = App()\n")
    bare = {"auth": {"hmac_secret": ""}}
    application = {"app": {"module": "own:app", "directory": str(tmp_path)}}
    for settings, user in (({**bare, **application}, ""), (application, "401"), (bare, "401")):
        with HubProcess({**settings, "workers": 1}) as hub:
            assert await user_of(f"{hub.ws_url}?token=its-own") == user


def test_no_token_stands_in_the_log(hub):
    """Of all that was shown above, and of a broken request, at the level that says most."""
    text = token(RSA, "RS256", "a")
    for path in (f"/sse?token={text}", f"/nowhere?token={text}", f"/poll?token={text}&token={text}"):
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(hub.ws_url.replace("ws:", "http:").split("/connection")[0] + path, timeout=10)
    log = hub.logged("GET /nowhere 404", "GET /connection/websocket 101", "found several")
    assert "eyJ" not in log and "token=" not in log and "ticket=" not in log


def test_a_bad_key_file_is_told_by_check_and_before_a_start(tmp_path: Path):
    """One line, and status 2."""
    path = tmp_path / "hub.toml"
    path.write_text(to_toml({"auth": {"keys": ["missing.pem"]}, "state_dir": str(tmp_path)}))
    for command in ("check", "serve"):
        done = run_hub(command, "--config", str(path))
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"hub: auth.keys[0]: found {tmp_path}/missing.pem: No such file or directory;")
        assert done.stderr.count("\n") == 1
