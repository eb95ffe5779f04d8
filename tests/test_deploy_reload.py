"""Deploy and reload: one asked for in each phase of the other, and what the workers of each generation go by."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub import deploying, facts, reloading, status
from tests.test_deploy import Hub, programs  # noqa: F401 (a fixture)
from tests.test_supervisor import alive, greeting, wait_until

GOOD = "^settings were read anew: "
BAD = "^settings were not changed: "


def reload(one: Hub) -> None:
    one.process.send_signal(signal.SIGHUP)


class Asking:
    """`hub reload`, as it waits."""

    def __init__(self, one: Hub) -> None:
        self.found: dict[str, Any] | BaseException = {}
        self._thread = threading.Thread(target=self._ask, args=(one.process.pid,))
        self._thread.start()

    def _ask(self, pid: int) -> None:
        try:
            self.found = reloading.outcome(pid, 30.0)
        except BaseException as error:  # for whoever looks
            self.found = error

    def outcome(self) -> dict[str, Any]:
        self._thread.join()
        assert isinstance(self.found, dict), self.found
        return self.found


def test_a_worker_that_dies_while_others_rise_leaves_the_supervisor_at_rest(hub: Callable[..., Hub]) -> None:
    """Its successor is due, and waits for what becomes of the deploy: no reason to look again at once."""
    one = hub(deploy_timeout_s=2)
    old = one.workers()
    one.version("two", boot="hang")
    one.deploy()
    one.wait_for("^worker 1 started", 2)
    os.kill(old[0], signal.SIGKILL)
    one.wait_for("^deploy failed, the old workers go on: ")
    one.wait_for("^worker 0 started", 3)
    assert not one.said("^spins$")


def test_settings_that_were_read_anew_reach_workers_of_each_generation(hub: Callable[..., Hub]) -> None:
    """Before a deploy and after it; numbers and counts go on as if there had been none."""
    one = hub()
    one.settings(limits={"connections": 5})
    assert Asking(one).outcome()["changed"] == ["limits.connections"]
    one.version("two")
    one.deploy()
    one.wait_for("^the last worker of the old generation has gone$")
    assert Asking(one).outcome()["changed"] == []
    one.settings(limits={"connections": 6})
    assert Asking(one).outcome()["changed"] == ["limits.connections"]
    record = status.read(one.process.pid)
    assert (record["reloads"], record["reloads_failed"], record["begun"], record["ended"]) == (3, 0, 3, 3)


def test_settings_that_turn_out_bad_while_the_new_version_is_checked_end_nobody(hub: Callable[..., Hub]) -> None:
    """What the check has found good is not what the heir would read: it is made again, and refuses."""
    one = hub()
    before = one.workers()
    with one.connect() as client:
        greeting(client)
        one.version("two", check="wait")
        one.deploy()
        one.wait_for("checking the new version")
        wait_until(lambda: (one.directory / "started").read_text().startswith("check"))
        one.settings(limits="none")
        (one.directory / "settings").write_text("1")
        reload(one)
        one.wait_for(f"{BAD}the settings are no table$")
        one.version("three", check="refuse")
        one.go()
        one.wait_for("^deploy refused, version one goes on: ")
        assert not select.select([client], [], [], 0)[0]
    assert one.workers() == before and one.process.poll() is None
    assert len(one.said("checking the new version")) == 2
    assert (one.standing().done, one.standing().failed) == (0, 1)


def test_settings_that_turn_out_bad_between_check_and_exec_end_nobody(hub: Callable[..., Hub]) -> None:
    """SIGHUP at the last moment comes first, too."""
    one = hub()
    one.version("one", hangs_up=True)
    one.restart()
    before = one.workers()
    one.version("two", check="wait")
    one.deploy()
    wait_until(lambda: (one.directory / "started").read_text().startswith("check"))
    (one.directory / "settings").write_text("1")
    one.version("three", check="refuse")
    one.go()
    one.wait_for(f"{BAD}the settings are no table$")
    one.wait_for("^deploy refused, version one goes on: ")
    assert one.workers() == before and one.process.poll() is None


def test_settings_that_turn_out_bad_after_the_exec_are_not_read(hub: Callable[..., Hub]) -> None:
    """The heir begins with what its check has found good; the file's turn is the next reload."""
    one = hub()
    one.version("two", spoils=True)
    one.settings(limits={"connections": 5})
    one.deploy()
    one.wait_for("^deployed version two")
    assert one.process.poll() is None
    assert Asking(one).outcome()["errors"] == ["the settings are no table"]
    one.settings(limits={"connections": 6})
    assert Asking(one).outcome()["changed"] == ["limits.connections"]


def test_a_settings_file_that_changes_during_the_check_is_checked_too(hub: Callable[..., Hub]) -> None:
    """Nobody has said that it has, and what the heir reads has to be what was found good."""
    one = hub()
    before = one.workers()
    one.version("two", check="wait")
    one.deploy()
    wait_until(lambda: (one.directory / "started").read_text().startswith("check"))
    (one.directory / "hub.toml").write_text("limits = 1")
    one.version("three", check="refuse")
    one.go()
    one.wait_for("^deploy refused, version one goes on: ")
    assert one.workers() == before and len(one.said("checking the new version")) == 2


def test_good_settings_while_the_new_version_is_checked_are_its_own_too(hub: Callable[..., Hub]) -> None:
    """Nobody is asked twice: the reload is done, and then the deploy."""
    one = hub()
    one.version("two", check="wait")
    one.deploy()
    wait_until(lambda: (one.directory / "started").read_text().startswith("check"))
    one.settings(limits={"connections": 5})
    assert Asking(one).outcome()["ok"]
    one.go()
    one.wait_for("^deployed version two")
    assert Asking(one).outcome()["changed"] == []


def test_a_reload_that_is_asked_for_while_workers_rise_is_done_when_they_have(hub: Callable[..., Hub]) -> None:
    """By the new ones; `hub reload` waits for as long."""
    one = hub()
    Asking(one).outcome()
    one.version("two", boot="hang")
    one.deploy()
    one.wait_for("^worker 1 started", 2)
    one.settings(limits={"connections": 5})
    asking = Asking(one)
    one.wait_for("^SIGHUP: the settings are read anew after what goes on now$")
    assert len(one.said(GOOD)) == 1 and not one.said("^spins$")
    one.go()
    assert asking.outcome()["changed"] == ["limits.connections"]
    assert one.log.index("deployed version two") < one.log.rindex("settings were read anew")


def test_a_deploy_that_is_asked_for_while_settings_are_read_is_done_afterwards(hub: Callable[..., Hub]) -> None:
    """A stopped worker holds the reload up: nothing is checked before it has answered."""
    one = hub(heartbeat_timeout_s=60)
    old = one.workers()
    os.kill(old[0], signal.SIGSTOP)
    asking = Asking(one)
    wait_until(lambda: status.read(one.process.pid)["stage"] == "preparing")
    one.version("two")
    one.deploy()
    wait_until(lambda: status.read(one.process.pid)["stage"] == "preparing")
    assert not one.said("checking the new version")
    os.kill(old[0], signal.SIGCONT)
    assert asking.outcome()["ok"]
    one.wait_for("^deployed version two")
    assert one.log.index("settings were read anew") < one.log.index("checking the new version")


def test_workers_that_drain_are_asked_nothing(hub: Callable[..., Hub]) -> None:
    """A reload meanwhile is the new ones'; the old ones go when they would have gone."""
    one = hub()
    (one.directory / "hold").touch()
    old = one.workers()
    one.version("two")
    one.deploy()
    one.wait_for("^deployed version two")
    one.settings(limits={"connections": 5})
    assert Asking(one).outcome()["ok"]
    os.kill(old[0], signal.SIGKILL)
    assert Asking(one).outcome()["ok"]
    (one.directory / "hold").unlink()
    one.wait_for("^the last worker of the old generation has gone$")
    assert not any(map(alive, old)) and len(one.workers()) == 2


@pytest.mark.parametrize("version", ["one", "two"])
def test_a_generation_that_stays_takes_new_settings_of_its_own_version_alone(
    hub: Callable[..., Hub], version: str
) -> None:
    """Another version's may be other things by the same names."""
    one = hub()
    before = one.workers()
    one.version(version, boot="error")
    one.deploy()
    one.wait_for("^deploy failed, the old workers go on: app.module: no such thing$")
    wait_until(lambda: one.workers() == before, 20.0)
    found = Asking(one).outcome()
    assert found["ok"] is (version == "one"), found
    assert one.workers() == before
    # A deploy mends it.
    one.version("three")
    one.deploy()
    one.wait_for("^deployed version three")
    assert Asking(one).outcome()["ok"]


@pytest.mark.parametrize("anew", [False, True])
def test_old_workers_have_the_times_that_they_were_told(hub: Callable[..., Hub], anew: bool) -> None:
    """At their start, or by a reload. Shorter ones of the new version would have them killed amid their drain."""
    one = hub(drain_window_s=0 if anew else 60)
    if anew:
        one.settings(drain_window_s=60)
        assert Asking(one).outcome()["changed"] == ["drain_window_s"]
    one.version("two")
    one.settings(drain_window_s=0, client={"close_timeout_s": 0.5})
    one.deploy()
    one.wait_for("^deployed version two")
    [window] = one.said("^deployed version two; 2 workers of the old generation drain for up to (.*) s$")
    assert float(window) >= 60


def test_who_asks_for_a_deploy_meanwhile_hears_of_its_own(hub: Callable[..., Hub]) -> None:
    """The one that goes on may be of a version that was there before, and what becomes of it is not the answer."""
    one = hub()
    one.version("two", check="wait")
    one.deploy()
    wait_until(lambda: one.standing().busy)
    wait_until(lambda: (one.directory / "started").read_text().startswith("check"))
    directory, before = deploying.locate(one.directory / "hub.toml", one.process.pid, os.environ)
    one.deploy()
    one.wait_for("^SIGUSR2: a deploy is under way")
    # The check that is made once more for it is of the first deploy, and not the second one's.
    assert Asking(one).outcome()["ok"]
    one.wait_for("checking the new version", 2)
    one.version("three", boot="error")
    one.go()
    after = deploying.wait(directory, before, 30.0)
    assert (after.version, after.done, after.failed) == ("one", 0, 2) and after.outcome


def test_settings_that_came_by_a_deploy_end_the_alarm_of_a_bad_reload(hub: Callable[..., Hub]) -> None:
    """They are in force, as of that time; and no count begins anew."""
    one = hub()
    (one.directory / "settings").write_text("1")
    assert not Asking(one).outcome()["ok"]
    directory, _ = deploying.locate(one.directory / "hub.toml", one.process.pid, os.environ)
    before = facts.read(directory)
    assert before["reload_ok"] == 0 and "reloaded_at" not in before
    one.settings()
    one.version("two", boot="error")
    one.deploy()
    one.wait_for("^deploy failed, the old workers go on: app.module: no such thing$")
    assert facts.read(directory)["reload_ok"] == 0
    one.version("three")
    one.deploy()
    one.wait_for("^deployed version three")
    after = facts.read(directory)
    assert after["reload_ok"] == 1 and after["reloaded_at"] > before["began_at"]
    assert after["counts"] == {"reloads": {"failed": 1}, "deploys": {"failed": 1, "ok": 1}}


def test_a_worker_that_is_forked_during_a_check_has_nothing_of_it(hub: Callable[..., Hub]) -> None:
    """What the check writes would be held as long as that worker lives."""
    one = hub()
    one.version("two", check="wait")
    one.deploy()
    wait_until(lambda: (one.directory / "started").read_text().startswith("check"))
    before = one.workers()
    os.kill(before[0], signal.SIGKILL)
    one.wait_for("^worker 0 started", 2)
    [forked] = [int(text) for text in one.said(r"^worker 0 started, pid (\d+)$") if int(text) != before[0]]

    def held(pid: int) -> set[str]:
        return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}

    wait_until(lambda: not any("anon_inode:[eventpoll]" in name for name in held(forked)))
    assert any("hub-check" in name for name in held(one.process.pid))
    assert not any("hub-check" in name for name in held(forked))
