"""The example of a source of one's own, in real hubs: what is appended to its file arrives, whoever leads."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from redis import Redis

from tests.hubs import HubProcess, run_hub, to_toml
from tests.nodes import own_valkey, until
from tests.plane import client
from tests.support import async_test

DEMOS = Path(__file__).parent.parent.parent / "hub" / "demos"


def ticker(path: Path, **more: object) -> dict:
    return {"source": "own_source:Lines", "directory": str(DEMOS), "options": {"path": str(path)}, **more}


def leader(redis: Redis) -> int:
    """The process that leads; 0 for none."""
    owner = redis.hget("hub:lease:{ticker}", "owner")
    return int(owner.decode().split(":")[-2]) if owner else 0


@async_test
async def test_lines_arrive_once_and_in_order_over_killed_and_suspended_leaders(tmp_path):
    """One leader is killed, one is stopped until its lease has passed on, and wakes: no line is lost or comes twice."""
    path = tmp_path / "ticks.jsonl"
    with own_valkey() as valkey, Redis.from_url(valkey.url, socket_timeout=30) as redis:
        settings = {
            "workers": 3,
            "redis": {"url": valkey.url},
            "heartbeat_timeout_s": 60.0,  # a stopped worker is not replaced meanwhile
            "ticker": ticker(path, lease_ttl_s=0.5),
        }
        with HubProcess(settings), path.open("a") as file:
            written = 0

            def write(count: int) -> None:
                nonlocal written
                for _ in range(count):
                    written += 1
                    file.write(json.dumps({"symbol": "ACME", "price": written}) + "\n")
                file.write('{"symbol":')  # half a line, which is completed by the next ones
                file.flush()
                file.write('"HALF","price":1}\n')

            def newest() -> float:
                body = redis.get("hub:last:{ticker}:ACME")
                return json.loads(body)["data"]["price"] if body else 0

            feed = redis.pubsub()
            feed.subscribe("hub:feed:{ticker}")
            await until(lambda: feed.get_message() is not None)
            write(50)
            await until(lambda: newest() == written, 10)
            os.kill(leader(redis), signal.SIGKILL)
            write(50)
            await until(lambda: newest() == written, 10)
            stopped = leader(redis)
            os.kill(stopped, signal.SIGSTOP)
            write(50)
            await until(lambda: newest() == written, 10)
            assert leader(redis) != stopped
            os.kill(stopped, signal.SIGCONT)
            write(50)
            await until(lambda: newest() == written, 10)
            heard = []
            while message := feed.get_message(ignore_subscribe_messages=True, timeout=2):
                heard += [json.loads(line)["data"] for line in message["data"].split(b"\n")[2::2]]
            acme = [tick for tick in heard if tick["symbol"] == "ACME"]
            assert [tick["price"] for tick in acme] == [tick["seq"] for tick in acme] == list(range(1, 201))


@async_test
async def test_a_client_hears_what_is_appended(tmp_path):
    """From the file to a WebSocket; a line that is no JSON is named in the log and costs itself alone."""
    path = tmp_path / "ticks.jsonl"
    with HubProcess({"ticker": ticker(path)}) as hub:
        async with client(hub.ws_url) as one:
            await one.subscribe("ticker:ACME")
            path.write_text('{"symbol":"ACME","price":7}\nno JSON\n{"symbol":"ACME","price":8,"seq":9}\n')
            ticks = [(await one.push())["pub"]["data"] for _ in range(2)]
            assert [(tick["price"], tick["seq"]) for tick in ticks] == [(7, 1), (8, 9)]
            await until(lambda: "the ticker dropped ticks.jsonl, byte 28: " in hub.stderr)


def test_check_loads_it_and_names_a_mistake(tmp_path):
    """`hub check` finds what a start would find, in one line; nothing is started."""
    namespaces = {"ticker": {"mode": "latest"}}
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(to_toml({"demo": True, "namespaces": namespaces, "ticker": ticker(tmp_path / "x")}))
    assert run_hub("check", "--config", str(good)).returncode == 0
    bad.write_text(to_toml({"demo": True, "namespaces": namespaces, "ticker": ticker(tmp_path / "x", options={})}))
    checked = run_hub("check", "--config", str(bad))
    assert checked.returncode == 2
    (line,) = checked.stderr.splitlines()
    assert line.startswith("hub: ticker.source: found 'own_source:Lines' in ")
    assert line.endswith(": KeyError: 'path' (own_source.py, line 38)")
