"""Reloading: `hub reload` against real hubs, and against processes that are none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from hub import reloading, status
from hub.errors import HubError
from tests.hubs import HubProcess, merged, run_hub, to_toml


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with HubProcess({"workers": 1}) as hub:
        yield hub


def write(hub: HubProcess, settings: dict) -> None:
    hub.config_path.write_text(to_toml(merged(hub.settings, settings)))


def reload(hub: HubProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_hub("reload", "--pid", str(hub.pid), *arguments)


def test_what_has_changed_is_printed(hub: HubProcess) -> None:
    """Without --pid too, where it is the only hub of the machine; other tests may have some."""
    write(hub, {"limits": {"connections": 50}})
    done = reload(hub)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("reloaded in ") and done.stdout.endswith(" s: limits.connections\n")
    assert reload(hub).stdout.endswith(" s: nothing is different\n")


def test_a_refusal_is_exit_status_2_with_a_line_for_each_reason(hub: HubProcess) -> None:
    write(hub, {"workers": 2, "listen": ["127.0.0.1:1"]})
    done = reload(hub)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "hub: workers needs a restart (was 1, is 2)",
        "hub: listen needs a restart (was ['127.0.0.1:0'], is ['127.0.0.1:1'])",
    ]


def test_json_says_all_of_it(hub: HubProcess) -> None:
    """Also of a refusal, whose exit status is 2 all the same."""
    write(hub, {"limits": {"connections": 60}})
    done = reload(hub, "--json")
    found = orjson.loads(done.stdout)
    assert (done.returncode, found["ok"], found["pid"]) == (0, True, hub.pid)
    assert set(found) == {"pid", "ok", "errors", "changed", "more", "seconds", "at"}
    hub.config_path.write_text("limits = 1")
    done = reload(hub, "--json")
    assert done.returncode == 2 and orjson.loads(done.stdout)["errors"] == [done.stderr.removeprefix("hub: ").strip()]


def test_of_very_many_the_first_twenty_are_shown_and_the_rest_counted(hub: HubProcess) -> None:
    """Changes, and mistakes."""
    write(hub, {})
    assert reload(hub).returncode == 0  # whatever an earlier test has left
    write(hub, {"namespaces": {f"n{number}": {} for number in range(2000)}})
    shown = ", ".join(f"namespaces.n{number}" for number in range(20))
    assert reload(hub).stdout.endswith(f" s: {shown}, … and 1,980 more\n")
    write(hub, {})
    found = orjson.loads(reload(hub, "--json").stdout)
    assert (len(found["changed"]), found["more"]) == (20, 1980)
    hub.config_path.write_text("".join(f"x{number} = 1\n" for number in range(30)))
    lines = reload(hub).stderr.splitlines()
    assert len(lines) == 21 and lines[0].startswith("hub: x0: ") and lines[-1].startswith("hub: … and ")
    write(hub, {})
    assert orjson.loads(reload(hub, "--json").stdout)["more"] == 0


def test_the_record_counts_what_became_of_them(hub: HubProcess) -> None:
    before = status.read(hub.pid)
    write(hub, {})
    reload(hub)
    hub.config_path.write_text("nonsense")
    reload(hub)
    now = status.read(hub.pid)
    assert now["reloads"] == before["reloads"] + 1 and now["reloads_failed"] == before["reloads_failed"] + 1
    assert abs(now["last_success_at"] - time.time()) < 60


def test_a_process_that_is_no_hub_gets_no_signal() -> None:
    """SIGHUP would end it."""
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            done = run_hub("reload", "--pid", str(other.pid))
            assert done.returncode == 1
            assert done.stderr == f"hub: process {other.pid} is not the supervisor of a hub\n"
            assert other.poll() is None
        finally:
            other.kill()


def test_a_worker_is_no_supervisor(hub: HubProcess) -> None:
    """It has let go of the supervisor's record."""
    (worker,) = hub.worker_pids()
    assert run_hub("reload", "--pid", str(worker)).stderr == f"hub: process {worker} is not the supervisor of a hub\n"
    assert hub.pid in status.find() and worker not in status.find()


def test_a_hub_is_chosen_by_its_settings_file(hub: HubProcess) -> None:
    """However the path is written that leads there from where one is."""
    write(hub, {"limits": {"connections": 65}})
    for text in (str(hub.config_path), os.path.relpath(hub.config_path)):
        done = run_hub("reload", "--config", text, "--json")
        assert (done.returncode, orjson.loads(done.stdout)["pid"]) == (0, hub.pid), done.stderr
    assert run_hub("reload", "--config", str(hub.config_path), "--pid", str(hub.pid)).returncode == 0
    other = str(hub.config_path.with_name("other.toml"))
    assert run_hub("reload", "--config", other).stderr.startswith(f"hub: no hub runs with the settings of {other}, or ")
    done = run_hub("reload", "--config", other, "--pid", str(hub.pid))
    assert done.stderr == f"hub: process {hub.pid} does not run with the settings of {other}\n" and done.returncode == 1


def test_which_hub_is_meant_must_be_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends while they are looked for is none."""
    hubs: dict[int, dict] = {}

    def read(pid: int) -> dict:
        if not hubs[pid]:
            raise HubError("it has ended")
        return hubs[pid]

    monkeypatch.setattr(status, "find", lambda: sorted(hubs))
    monkeypatch.setattr(status, "read", read)
    with pytest.raises(HubError, match="no hub of this user runs on this machine"):
        reloading.locate(None, None)
    hubs |= {6: {}, 7: {"config": "/a"}}
    assert reloading.locate(None, None) == 7
    hubs |= {8: {"config": "/b"}, 9: {"of": "an older version"}}
    with pytest.raises(HubError, match=r"several hubs run on this machine: 7 \(/a\), 8 \(/b\), 9; choose by --config"):
        reloading.locate(None, None)
    assert reloading.locate(Path("/b"), None) == 8 and reloading.locate(None, 9) == 9
    hubs[10] = {"config": "/b"}
    with pytest.raises(HubError, match=r"several hubs run on this machine: 8 \(/b\), 10 \(/b\); choose by --pid"):
        reloading.locate(Path("/b"), None)


def test_an_outcome_that_does_not_come_is_exit_status_1(hub: HubProcess) -> None:
    """As of a supervisor that is stopped; the reload is done once it goes on."""
    write(hub, {"limits": {"connections": 70}})
    ended = status.read(hub.pid)["ended"]
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        done = reload(hub, "--timeout", "0.3")
    finally:
        os.kill(hub.pid, signal.SIGCONT)
    assert done.returncode == 1 and done.stderr == "hub: no outcome within 0.3 s; the hub's log will have it\n"
    deadline = time.monotonic() + 20.0
    while status.read(hub.pid)["ended"] == ended:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # nothing else tells it


def test_of_two_at_a_time_each_hears_of_one_that_began_after_it(hub: HubProcess) -> None:
    """Both edits were made before, so both read them."""
    write(hub, {"limits": {"connections": 80}})
    command = ["reload", "--pid", str(hub.pid), "--json"]
    several = [
        subprocess.Popen([sys.executable, "-m", "hub", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    found = [orjson.loads(one.communicate(timeout=60)[0]) for one in several]
    assert all(one["ok"] for one in found)
    assert reload(hub).stdout.endswith("nothing is different\n")
