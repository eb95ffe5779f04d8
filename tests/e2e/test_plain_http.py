"""Event streams, polls and publishing over HTTP at a real hub: npm `eventsource`, Chromium, curl, and bare requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import orjson
import pytest

from tests.e2e import nodejs
from tests.eventsource import request
from tests.hubs import HubProcess
from tests.nodes import until
from tests.support import async_test

NAMESPACES = {"log": {"mode": "stream", "subscribe": "anyone", "publish": "anyone"}}
JSON = ("-H", "Content-Type: application/json")
CURL = pytest.mark.needs("curl", "apt-get install curl")


@pytest.fixture
def hub() -> Iterator[HubProcess]:
    """One hub of two workers for one test, which may kill them."""
    with HubProcess({"namespaces": NAMESPACES, "drain_window_s": 0.0}) as hub:
        yield hub


def base(hub: HubProcess) -> str:
    """http://127.0.0.1:PORT"""
    return f"http://{urlsplit(hub.ws_url).netloc}"


def run(hub: HubProcess, scenario: str) -> None:
    nodejs.run("plain_http.mjs", scenario, base(hub), ",".join(map(str, hub.worker_pids())))


@nodejs.NODE
@nodejs.PACKAGES
def test_npm_eventsource_misses_nothing_and_gets_nothing_twice(hub: HubProcess) -> None:
    """All workers are killed while messages are published: it comes back with its id."""
    run(hub, "one")


@nodejs.NODE
@nodejs.PACKAGES
def test_npm_eventsource_misses_nothing_of_several_channels(hub: HubProcess) -> None:
    run(hub, "several")


@nodejs.CHROMIUM
@nodejs.NODE
@nodejs.PACKAGES
def test_chromium_comes_back_with_its_last_event_id(hub: HubProcess) -> None:
    """The browser's own EventSource, over the same kill."""
    run(hub, "browser")


@CURL
def test_curl_follows_a_channel_until_the_hub_stops(hub: HubProcess) -> None:
    """It ends by itself with status 0: the last event, then the end of the body."""
    url = base(hub)
    command = ["curl", "-sSN", f"{url}/sse?channel=log:a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as curl:
        try:
            lines = iter(curl.stdout.readline, "")
            assert next(line for line in lines if line.startswith("event: ")) == "event: open\n"
            next(line for line in lines if line == "event: cursor\n")
            publish = ["curl", "-sS", f"{url}/publish", *JSON, "-d", '{"channel":"log:a","data":"hi"}']
            sent = json.loads(subprocess.run(publish, capture_output=True, check=True, timeout=10).stdout)
            assert (sent["ack"], sent["offset"]) == ("memory", 1)
            data = next(line for line in lines if "hi" in line)
            assert json.loads(data.removeprefix("data: "))["pub"]["data"] == "hi"
            hub.stop()
            rest = curl.communicate(timeout=15)[0]
            assert 'event: closed\ndata: {"code":3001' in rest
            assert curl.returncode == 0
        finally:
            curl.kill()


RETRY = ["curl", "-sSN", "--retry", "20", "--retry-all-errors", "--retry-delay", "1"]


class CurlReader:
    """Event streams by curl, one after the other, each with the last id of the one before."""

    def __init__(self, hub: HubProcess) -> None:
        self._url = f"{base(hub)}/sse?channel=log:a&channel=log:b"
        self._offsets = {"log:a": 0, "log:b": 0}
        self.last_id = ""
        self.got: list[int] = []

    @contextlib.contextmanager
    def reading(self) -> Iterator[subprocess.Popen[str]]:
        """One of them; it is in both channels."""
        command = [*RETRY, "-H", f"Last-Event-ID: {self.last_id}", self._url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as curl:
            try:
                self.until(curl, lambda: self.last_id.count("~") == 6)
                yield curl
            finally:
                curl.kill()

    def until(self, curl: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
        """Read on until it is so."""
        while not condition():
            line = curl.stdout.readline()
            assert line, f"ended with {self.got}"
            name, _, value = line.strip().partition(": ")
            if name == "id":
                self.last_id = value
            elif name == "data" and "pub" in (message := json.loads(value)):
                channel, pub = message["channel"], message["pub"]
                if pub["offset"] > self._offsets[channel]:
                    self._offsets[channel] = pub["offset"]
                    self.got.append(pub["data"])


@CURL
def test_curl_goes_on_where_it_was_when_all_workers_are_killed(hub: HubProcess) -> None:
    """With the last id as the header, over two channels: each message, and each but once by its offset."""

    def publish(*numbers: int) -> None:
        for number in numbers:
            body = {"channel": f"log:{'ab'[number % 2]}", "data": number, "idempotency_key": f"k{number}"}
            command = [*RETRY, "-f", f"{base(hub)}/publish", *JSON, "-d", json.dumps(body)]
            subprocess.run(command, capture_output=True, check=True, timeout=60)

    reader = CurlReader(hub)
    with reader.reading() as curl:
        publish(0, 1, 2, 3)
        reader.until(curl, lambda: len(reader.got) == 4)
        for pid in hub.worker_pids():
            os.kill(pid, signal.SIGKILL)
        curl.kill()
    publish(4, 5, 6, 7)
    with reader.reading() as curl:
        publish(8, 9)
        reader.until(curl, lambda: len(reader.got) == 10)
    assert sorted(reader.got) == list(range(10))


@CURL
def test_curl_polls(hub: HubProcess) -> None:
    """The cursor of one answer is what the next request brings."""
    url = f"{base(hub)}/poll?channel=log:a"
    command = ["curl", "-sS", "-D", "-", "-o", "/dev/null", f"{url}&wait=0"]
    head = subprocess.run(command, capture_output=True, check=True, timeout=10, text=True).stdout
    assert head.startswith("HTTP/1.1 204 ")
    cursor = next(line.split()[1] for line in head.splitlines() if line.lower().startswith("hub-cursor:"))
    publish = ["curl", "-sS", f"{base(hub)}/publish", *JSON, "-d", '{"channel":"log:a","data":"hi"}']
    subprocess.run(publish, capture_output=True, check=True, timeout=10)
    answer = subprocess.run(["curl", "-sS", f"{url}&since={cursor}"], capture_output=True, check=True, timeout=10)
    assert json.loads(answer.stdout)["messages"][0]["pub"]["data"] == "hi"


@async_test
async def test_a_hub_that_stops_answers_its_polls_at_once() -> None:
    """And not when their time is over; with the cursor, as another machine may go on."""
    with HubProcess({"workers": 1, "namespaces": NAMESPACES}) as hub:
        port = urlsplit(hub.ws_url).port
        assert port is not None
        waiting = asyncio.create_task(request(port, "GET", "/poll?channel=log:a&wait=60"))
        await until(lambda: subscribers(hub, port))
        assert await asyncio.to_thread(hub.stop) == 0
        answer = await asyncio.wait_for(waiting, 5)
        assert answer.status == 204 and answer.cursor


async def subscribers(hub: HubProcess, port: int) -> int:
    """Of all channels, as the server API counts them."""
    internal = urlsplit(hub.api_url).port
    assert internal is not None
    answer = await request(internal, "POST", "/api/channels", b"{}", X_API_Key=hub.key)
    return len(answer.json["result"]["channels"])


@async_test
async def test_polls_over_four_workers_lose_and_repeat_nothing() -> None:
    """A new TCP connection for each request, polls and publishes, so that any worker answers any of them."""
    channels = ["log:a", "log:b"]
    query = "&".join(f"channel={channel}" for channel in channels)
    count = 300
    with HubProcess({"workers": 4, "namespaces": NAMESPACES}) as hub:
        port = urlsplit(hub.ws_url).port
        assert port is not None

        async def poll(at: str, wait: float = 10) -> tuple[list[int], str]:
            answer = await request(port, "GET", f"/poll?{query}&since={at}&wait={wait}")
            assert answer.status in (200, 204), answer
            assert answer.status == 204 or "lost" not in answer.json
            messages = answer.json["messages"] if answer.status == 200 else []
            return [message["pub"]["data"] for message in messages], answer.cursor

        async def publish() -> None:
            for number in range(count):
                body = orjson.dumps({"channel": channels[number % 2], "data": number})
                assert (await request(port, "POST", "/publish", body)).status == 200

        async def follow(at: str) -> list[int]:
            got: list[int] = []
            while len(got) < count:
                some, at = await poll(at)
                got += some
            return got

        start = (await poll("", wait=0))[1]
        followers = [asyncio.create_task(follow(start)) for _ in range(4)]
        await publish()
        for got in await asyncio.gather(*followers):
            assert sorted(got) == list(range(count))
            assert [n for n in got if n % 2] == list(range(1, count, 2))
            assert [n for n in got if n % 2 == 0] == list(range(0, count, 2))
