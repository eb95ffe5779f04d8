"""The pages for machines, of a real hub of two workers: what they say against what real clients did."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as read_text

from tests.hubs import HubProcess
from tests.nodes import own_valkey, until
from tests.pki import Authority
from tests.plane import client
from tests.support import async_test

CONFIG = Path(__file__).parents[2] / "config"
TABLE = {
    "hub_connections",
    "hub_connections_opened_total",
    "hub_disconnects_total",
    "hub_handshake_rejected_total",
    "hub_handshake_seconds",
    "hub_publishes_total",
    "hub_deliveries_total",
    "hub_delivery_latency_seconds",
    "hub_fanout_seconds",
    "hub_conflated_total",
    "hub_queue_bytes",
    "hub_recoveries_total",
    "hub_recovered_messages_total",
    "hub_gaps_total",
    "hub_position_checks_total",
    "hub_store_fence_total",
    "hub_mailbox_items",
    "hub_mailbox_bytes",
    "hub_mailbox_dead_total",
    "hub_redis_up",
    "hub_redis_commands_seconds",
    "hub_redis_reconnects_total",
    "hub_redis_pubsub_lag_seconds",
    "hub_worker_up",
    "hub_worker_restarts_total",
    "hub_event_loop_lag_seconds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "hub_open_fds",
    "hub_max_fds",
    "hub_listen_overflows_total",
    "hub_config_last_reload_success",
    "hub_tls_cert_expiry_seconds",
    "hub_build_info",
}
"""What operators build on: a name that goes breaks dashboards and alerts of theirs."""
SUFFIXES = re.compile(r"_(?:bucket|sum|count)\b")
COUNTED = ("_total", "_bucket", "_sum", "_count")
Told = dict[tuple[str, ...], float]
soon = partial(until, patience_s=20.0)
"""Of a machine that is busy with other tests."""


def fetch(hub: HubProcess, path: str, **headers: str) -> tuple[int, str]:
    """Status and body of a page of the internal listener."""
    url = f"{hub.api_url.removesuffix('/api')}/{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def told(hub: HubProcess) -> Told:
    """Samples by name and labels."""
    status, text = fetch(hub, "metrics")
    assert status == 200
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in read_text(text)
        for sample in family.samples
    }


def total(found: Told, name: str, *labels: str) -> float:
    """All samples of a name that have these labels."""
    return sum(value for key, value in found.items() if key[0] == name and set(labels) <= set(key))


@async_test
async def test_the_numbers_are_what_clients_did():
    """Twenty, over both workers as the kernel has it; one publishes to all; one is refused; half of them go."""
    with HubProcess({"limits": {"ip_connections": 21}}) as hub:
        async with contextlib.AsyncExitStack() as stay, contextlib.AsyncExitStack() as go:
            ones = [await (stay if number % 2 else go).enter_async_context(client(hub.ws_url)) for number in range(20)]
            for one in ones:
                await one.subscribe("chat:secret-room")
            assert "publish" in await ones[0].command(publish={"channel": "chat:secret-room", "data": "hi"})
            for one in ones:
                await one.push()
            await soon(lambda: total(told(hub), "hub_deliveries_total") == 20)
            found = told(hub)
            assert total(found, "hub_connections", "transport=websocket") == 20 == total(found, "hub_subscriptions")
            assert total(found, "hub_connections_opened_total") == 20 == total(found, "hub_handshake_seconds_count")
            assert total(found, "hub_publishes_total", "result=taken") == 1 == total(found, "hub_publishes_total")
            assert total(found, "hub_redis_up") == 4 and total(found, "hub_worker_up") == 2
            assert total(found, "hub_disconnects_total") == 0
            await go.aclose()
            await soon(lambda: total(told(hub), "hub_disconnects_total", "code=1000") == 10)
            found = told(hub)
            assert total(found, "hub_connections") == 10 == total(found, "hub_connections_opened_total") / 2
            assert total(found, "hub_subscriptions") == 10
            _, text = fetch(hub, "metrics")
            assert "secret-room" not in text and "127.0.0.1" not in text
        await soon(lambda: total(told(hub), "hub_delivery_latency_seconds_count") >= 2)
        found = told(hub)
        assert (
            total(found, "hub_redis_pubsub_lag_seconds_count") >= 2 <= total(found, "hub_event_loop_lag_seconds_count")
        )
        assert 0 < total(found, "hub_delivery_latency_seconds_sum") < 60


@async_test
async def test_no_count_ever_falls_whoever_is_killed():
    """kill -9 of each worker, and again of its successor: all counts go on, gauges of the dead are gone."""
    with HubProcess() as hub:
        async with client(hub.ws_url) as one:
            assert "publish" in await one.command(publish={"channel": "chat:a", "data": 1})
        await soon(lambda: total(told(hub), "hub_disconnects_total") == 1)
        before = told(hub)
        for times in range(1, 5):
            pids = hub.worker_pids()
            os.kill(pids[0], signal.SIGKILL)
            await soon(lambda pids=pids: len(hub.worker_pids()) == 2 and pids[0] not in hub.worker_pids())
            await soon(lambda: total(told(hub), "hub_worker_up") == 2)
            now = told(hub)
            fallen = [key for key, value in before.items() if key[0].endswith(COUNTED) and now.get(key, -1) < value]
            assert not fallen
            assert total(now, "hub_worker_restarts_total", "reason=SIGKILL") == times
            before = now
        assert total(now, "hub_publishes_total", "result=taken") == 1 == total(now, "hub_connections_opened_total")
        assert total(now, "hub_connections") == 0


@async_test
async def test_every_name_is_there_with_its_samples(tmp_path):
    """With TLS, for its certificate; mailboxes' and restarts' samples come with the first of them."""
    pair = Authority(tmp_path).issue().write(tmp_path)
    line = f'[tls]\ncertificates = [{{ cert = "{pair.cert}", key = "{pair.key}" }}]\n'
    secure = HubProcess({"listen": ["127.0.0.1:0", "tls:127.0.0.1:0"]})
    secure.config_path.write_text(f"{secure.config_path.read_text()}{line}")
    with HubProcess({"workers": 1}) as plain, secure as hub:
        found, (_, text) = told(hub), fetch(hub, "metrics")
        names = {SUFFIXES.sub("", key[0]) for key in found}
        later = {"hub_mailbox_dead_total", "hub_worker_restarts_total"}
        assert TABLE - names == later
        assert all(f"# TYPE {name} counter" in text for name in later)
        assert 1.7e9 < found["hub_tls_cert_expiry_seconds",] < 4e9
        assert "hub_tls_cert_expiry_seconds " not in fetch(plain, "metrics")[1]


def queried(text: str) -> set[str]:
    """Names of metrics in PromQL, as they are told: without a histogram's endings."""
    return {SUFFIXES.sub("", name) for name in re.findall(r"\b(?:hub|process)_[a-z_]+", text)}


def known_names() -> set[str]:
    """What a hub tells, by its own HELP lines."""
    with HubProcess({"workers": 1, "ticker": {"source": "simulate"}}) as hub:
        return set(re.findall(r"^# HELP (\w+)", fetch(hub, "metrics")[1], re.MULTILINE)) | {
            "hub_tls_cert_expiry_seconds"
        }


def test_the_dashboard_and_the_alerts_ask_for_what_there_is():
    """A name that is misspelt shows an empty chart, and an alert that never fires."""
    known = known_names()
    text = (CONFIG / "grafana-dashboard.json").read_text()
    dashboard = json.loads(text)
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())}
    assert len(asked) >= 20 and dashboard["title"] and dashboard["uid"]
    for each in (*asked, text, (CONFIG / "prometheus-alerts.yml").read_text()):
        assert queried(each) and not queried(each) - known, each


PROMTOOL = pytest.mark.needs("promtool", "apt-get install --no-install-recommends prometheus")
ALERTS, ALERT_TESTS = CONFIG / "prometheus-alerts.yml", Path(__file__).parent.parent / "prometheus-alerts-test.yml"


@PROMTOOL
def test_prometheus_takes_the_alerts():
    """As Prometheus checks them when it starts; a warning of a duplicate is a fault, too."""
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=60)
    count = len(re.findall("- alert: ", ALERTS.read_text()))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"SUCCESS: {count} rules found" in done.stdout


@PROMTOOL
def test_each_alert_fires_when_it_should_and_not_before():
    """By Prometheus' own evaluation: for a hub that is in trouble, and not for the one beside it."""
    done = subprocess.run(["promtool", "test", "rules", str(ALERT_TESTS)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_without_its_test():
    """One time at which it does not fire, and one at which it does."""
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    text = ALERT_TESTS.read_text()
    cases = re.findall(r"alertname: (\w+),? *(?:\n +)?eval_time: \w+,? *(?:\n +)?exp_alerts:( \[\])?", text)
    assert Counter(cases) == Counter((name, quiet) for name in alerts for quiet in (" []", ""))


@async_test
async def test_the_ticker_tells_who_leads_and_what_became_of_its_ticks():
    """One of two workers; a hub without a source says nothing of it."""
    with HubProcess({"workers": 2, "ticker": {"source": "simulate"}}) as hub:
        await soon(lambda: total(told(hub), "hub_ticker_ticks_total", "result=published") > 0)
        found = told(hub)
        assert total(found, "hub_ticker_leader") == 1
        assert {key[1] for key in found if key[0] == "hub_ticker_leader"} == {"worker=0", "worker=1"}
        assert total(found, "hub_ticker_ticks_total", "result=malformed") == 0
        assert ("hub_ticker_bars_total",) in found
    with HubProcess({"workers": 1}) as hub:
        assert not [key for key in told(hub) if key[0].startswith("hub_ticker_")]


def test_who_may_ask():
    """On this machine, but by no proxy; with the key everybody."""
    with HubProcess({"workers": 1}) as hub:
        assert fetch(hub, "metrics")[0] == 200
        assert fetch(hub, "metrics", **{"X-Forwarded-For": "203.0.113.7"})[0] == 401
        assert fetch(hub, "metrics", **{"X-Forwarded-For": "203.0.113.7", "X-API-Key": hub.key})[0] == 200
        url = hub.ws_url.replace("ws:", "http:").removesuffix("/connection/websocket")
        for page in ("metrics", "livez", "readyz"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{url}/{page}", timeout=10)


@async_test
async def test_without_redis_a_hub_lives_and_is_not_ready():
    """And tells its metrics; with Redis it is ready again."""
    with own_valkey() as valkey, HubProcess({"workers": 1, "redis": {"url": valkey.url}}) as hub:
        assert (fetch(hub, "livez")[0], fetch(hub, "readyz")[0]) == (200, 200)
        valkey.stop()
        await soon(lambda: fetch(hub, "readyz")[0] == 503)
        assert list(json.loads(fetch(hub, "readyz")[1])["reasons"]) == ["redis"] and fetch(hub, "livez")[0] == 200
        await soon(lambda: total(told(hub), "hub_redis_up") == 0)
        valkey.start()
        await soon(lambda: fetch(hub, "readyz")[0] == 200)
        await soon(lambda: total(told(hub), "hub_redis_up") == 2)
        assert total(told(hub), "hub_redis_reconnects_total") >= 1


@async_test
async def test_a_worker_that_is_missing_is_told():
    """One of two is stopped and so is silent: its gauges stay, as it lives; killed and not back yet, it is down."""
    with HubProcess({"health": {"min_workers": 2}}) as hub:
        assert fetch(hub, "readyz")[0] == 200
        os.kill(hub.pid, signal.SIGSTOP)  # so that nobody replaces it
        try:
            pids = hub.worker_pids()
            os.kill(pids[0], signal.SIGKILL)
            await soon(lambda: hub.worker_pids() == pids[1:])
            async with asyncio.timeout(20):
                while True:
                    # Of both workers' queues only one is served; the kernel chooses by the client's port.
                    with contextlib.suppress(TimeoutError, urllib.error.URLError):
                        status, body = await asyncio.to_thread(fetch_soon, hub, "readyz")
                        break
            assert status == 503 and list(json.loads(body)["reasons"]) == ["workers"]
        finally:
            os.kill(hub.pid, signal.SIGCONT)
        await soon(lambda: len(hub.worker_pids()) == 2)


def fetch_soon(hub: HubProcess, path: str) -> tuple[int, str]:
    url = f"{hub.api_url.removesuffix('/api')}/{path}"
    try:
        with urllib.request.urlopen(url, timeout=0.5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
