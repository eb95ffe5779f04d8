"""What Prometheus reads: of all workers, of the supervisor, the machine and the store."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from redis.asyncio import Redis

from hub import __version__, exposition
from hub.exposition import Exposition
from hub.facts import Facts
from hub.metrics import Metrics
from hub.sections import RedisSettings
from hub.store import Store
from tests.support import async_test
from tests.test_metrics import figures, sheet

NOWHERE = "unix:///nonexistent/valkey.sock"
NETSTAT = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 17 23\nIpExt: InOctets\nIpExt: 5\n"


class Rig:
    """One worker's exposition, of a hub of three slots."""

    def __init__(self, directory: Path, url: str = NOWHERE, prefix: str = "hub") -> None:
        self.figures = figures(users=3)
        self.facts = Facts()
        self.facts.open(str(directory))
        self.store = Store(RedisSettings(prefix=prefix), url)
        self.metrics = Metrics(str(directory), 0, lambda: self.figures)
        (directory / "netstat").write_text(NETSTAT)
        self.exposition = Exposition(self.metrics, str(directory), 3, self.store, directory / "netstat")

    async def told(self) -> dict[tuple[str, ...], float]:
        text, _ = await self.exposition.text("")
        return {
            (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
            for family in read_text(text.decode())
            for sample in family.samples
        }

    async def close(self) -> None:
        await self.exposition.close()
        self.metrics.close()
        self.facts.close()


@async_test
async def test_all_workers_and_what_is_of_the_whole_hub(tmp_path: Path) -> None:
    """Slot 1 is another process', slot 2 has none."""
    rig = Rig(tmp_path)
    rig.facts.count("worker_restarts", "SIGKILL", 2)
    rig.facts.count("reloads", "failed")
    rig.facts.note(reload_ok=0, reloaded_at=17.0)
    (tmp_path / "metrics").mkdir()
    with sheet(tmp_path / "metrics", 1, users=4):
        found = await rig.told()
    assert [found["hub_worker_up", f"worker={slot}"] for slot in range(3)] == [1, 1, 0]
    assert (found["hub_users", "worker=0"], found["hub_users", "worker=1"]) == (3, 4)
    assert found["hub_worker_restarts_total", "reason=SIGKILL"] == 2
    assert found["hub_config_reloads_total", "result=failed"] == 1
    assert found["hub_config_last_reload_success",] == 0
    assert found["hub_config_last_reload_timestamp_seconds",] == 17
    assert (found["hub_listen_overflows_total",], found["hub_listen_drops_total",]) == (17, 23)
    assert [key[2] for key in found if key[0] == "hub_build_info"] == [f"version={__version__}"]
    assert found["hub_supervisor_memory_bytes",] > 1e6
    await rig.close()


@async_test
async def test_before_the_first_reload_all_is_well(tmp_path: Path) -> None:
    """The settings that are in force are those of the start."""
    rig = Rig(tmp_path)
    found = await rig.told()
    assert found["hub_config_last_reload_success",] == 1
    assert found["hub_config_last_reload_timestamp_seconds",] > 1.7e9
    await rig.close()


@async_test
async def test_the_stores_part(valkey_url: str, prefix: str, tmp_path: Path) -> None:
    """As the mailboxes' scripts count; reasons alone are reasons."""
    rig = Rig(tmp_path, valkey_url, prefix)
    redis = Redis.from_url(valkey_url)
    totals = {"messages": 5, "bytes": 700, "dead_bytes": 90, "dead_expired": 2, "dead_forgotten": 1, "ms": 1, "seq": 0}
    await redis.hset(rig.store.keys.mail_totals, mapping=totals)
    found = await rig.told()
    assert (found["hub_mailbox_items",], found["hub_mailbox_bytes",]) == (5, 700)
    assert {key[1]: found[key] for key in found if key[0] == "hub_mailbox_dead_total"} == {"reason=expired": 2}
    assert found["hub_redis_memory_bytes",] > 1e5
    await redis.delete(rig.store.keys.mail_totals)
    assert (await rig.told())["hub_mailbox_items",] == 0
    await redis.aclose()
    await rig.close()


@async_test
async def test_a_user_of_redis_who_may_not_ask_for_its_memory(valkey_url: str, prefix: str, tmp_path: Path) -> None:
    """The rest is told all the same."""
    admin = Redis.from_url(valkey_url)
    user = f"user{os.getpid()}"
    await admin.acl_setuser(user, enabled=True, nopass=True, keys=["*"], commands=["+hgetall", "+auth"])
    rig = Rig(tmp_path, valkey_url.replace("unix://", f"unix://{user}:x@"), prefix)
    found = await rig.told()
    assert found["hub_mailbox_items",] == 0 and ("hub_redis_memory_bytes",) not in found
    await rig.close()
    await admin.acl_deluser(user)
    await admin.aclose()


@async_test
async def test_where_redis_hangs_the_rest_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing."""
    monkeypatch.setattr(exposition, "STORE_S", 0.05)
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{directory}/hangs")
        server.listen()
        rig = Rig(tmp_path, f"unix://{directory}/hangs")
        found = await rig.told()
        assert found["hub_users", "worker=0"] == 3 and ("hub_mailbox_items",) not in found
        await rig.close()


@async_test
async def test_however_many_ask_at_once_it_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who goes away takes the answer from nobody."""
    rig, merged, real = Rig(tmp_path), [], exposition.files

    def files(*arguments: Any) -> Any:
        merged.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(exposition, "files", files)
    asked = [asyncio.create_task(rig.exposition.text("")) for _ in range(10)]
    await asyncio.sleep(0)
    asked[0].cancel()
    answers = await asyncio.gather(*asked[1:])
    assert len({text for text, _ in answers}) == 1 and b"hub_users" in answers[0][0] and len(merged) == 1
    await rig.exposition.text("")
    assert len(merged) == 2
    await rig.close()


@async_test
async def test_the_form_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    """Prometheus asks for OpenMetrics, and takes it; people get text."""
    rig = Rig(tmp_path)
    text, kind = await rig.exposition.text("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert kind.startswith("application/openmetrics-text") and text.endswith(b"# EOF\n")
    names = {family.name for family in read_openmetrics(text.decode())}
    assert {"hub_deliveries", "hub_event_loop_lag_seconds", "hub_worker_up"} <= names
    assert (await rig.exposition.text("text/html"))[1].startswith("text/plain")
    await rig.close()


@pytest.mark.expects_log
@async_test
async def test_a_bad_file_costs_its_own_numbers(tmp_path: Path) -> None:
    """Of a slot whose next process has not come yet."""
    rig = Rig(tmp_path)
    (tmp_path / "metrics").mkdir()
    with sheet(tmp_path / "metrics", 1):
        (tmp_path / "metrics" / "counter_2.0.db").write_bytes(b"\x20\x00\x00\x00" + b"\x7f" * 4092)
        found = await rig.told()
    assert found["hub_users", "worker=0"] == 3 and found["hub_deliveries_total",] == 0
    await rig.close()


@pytest.mark.parametrize("text", ["", "TcpExt: a\n", "IpExt: a\nIpExt: 1\n"])
def test_a_kernel_that_says_less(tmp_path: Path, text: str) -> None:
    (tmp_path / "netstat").write_text(text)
    assert exposition._netstat(tmp_path / "netstat") == {} == exposition._netstat(tmp_path / "none")
