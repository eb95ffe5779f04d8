"""A worker's numbers in files: who goes on where whose were, and what a full disk, a kill and a bad file cost."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from hub import metrics as room
from hub.broker import OUTCOMES
from hub.histogram import Histogram
from hub.metric_names import METRICS
from hub.metrics import FILE_BYTES, MAX_LANES, Metrics, Sheet, files
from hub.refusals import REASONS
from hub.tally import Tally
from tests.support import async_test

NO_KEY = struct.pack("ii", 40, 0) + struct.pack("i12sdd", 8, b"no json!", 1.0, 0.0) + bytes(FILE_BYTES - 44)
"""Whole, but for what it says."""


def figures(**over: Any) -> dict[str, Any]:
    """Those of a worker that has just begun."""
    tally, seconds = Tally(), Histogram((0.1, 1.0))
    found: dict[str, Any] = {
        "started_at": 5.0,
        "connections": {
            "open": {**tally.open, "long_poll": 0},
            "opened": tally.opened,
            "closed": tally.closed,
            "refused": dict.fromkeys(REASONS, 0),
            "handshake_s": tally.handshakes.about(),
        },
        "users": 0,
        "subscriptions": 0,
        "channels": 0,
        "delivery": {
            "deliveries": 0,
            "conflated": {"slow": 0, "behind": 0},
            "dropped": {"slow": 0, "behind": 0},
            "sweep_s": seconds.about(),
            "latency_s": seconds.about(),
        },
        "publishes": dict.fromkeys(OUTCOMES, 0),
        "streams": {
            **dict.fromkeys(("gaps", "displaced", "recovered", "lost", "recovered_publications"), 0),
            "checks": {"ok": 0, "behind": 0, "lost": 0},
        },
        "loop": {"lag_s": seconds.about(), "worst_s": 0.0},
        "waiting": {"outboxes": 0, "sweep": 0, "redis": 0, "rings": 0},
        "redis": {
            **dict.fromkeys(("links", "missed", "generations"), 0),
            "commands_up": True,
            "subscriber_up": True,
            "lags_s": seconds.about(),
            "command_s": seconds.about(),
        },
        "process": {"memory_bytes": 1, "cpu_s": 0.5, "fds": 2, "max_fds": 3},
        "tls_ends_at": 9.0,
        "ticker": {"leader": 1, "ticks": {"published": 0, "malformed": 0}, "bars": 0},
    }
    return found | over


@contextlib.contextmanager
def sheet(directory: Path, slot: int = 0, **over: Any) -> Iterator[Sheet]:
    one = Sheet(str(directory), slot, figures())
    try:
        one.write(figures(**over))
        yield one
    finally:
        one.close()


def told(directory: Path, workers: int = 2) -> dict[tuple[str, ...], float]:
    """Samples by name and labels, as a scrape has them."""
    found, _ = files(str(directory), workers)
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in MultiProcessCollector.merge(found)
        for sample in family.samples
    }


def test_counts_of_all_workers_are_added_up_and_gauges_are_each_ones(tmp_path: Path) -> None:
    with sheet(tmp_path, 0, users=2, streams={**figures()["streams"], "gaps": 3}), sheet(tmp_path, 1, users=5) as other:
        other.write(figures(users=7, streams={**figures()["streams"], "gaps": 4}))
        found = told(tmp_path)
    assert found["hub_gaps_total", "cause=feed"] == 7
    assert (found["hub_users", "worker=0"], found["hub_users", "worker=1"]) == (2, 7)
    assert found["hub_tls_cert_expiry_seconds",] == 9


def test_a_histogram_is_told_as_prometheus_has_it(tmp_path: Path) -> None:
    """Buckets add up, from the smallest to +Inf, which is the count."""
    seconds = Histogram((0.1, 1.0))
    for value in (0.05, 0.5, 0.6, 7.0):
        seconds.observe(value)
    with sheet(tmp_path, loop={"lag_s": seconds.about(), "worst_s": 7.0}):
        found = told(tmp_path)
    name = "hub_event_loop_lag_seconds"
    assert [found[f"{name}_bucket", f"le={bound}"] for bound in ("0.1", "1.0", "+Inf")] == [1, 3, 4]
    assert found[f"{name}_count",] == 4 and found[f"{name}_sum",] == pytest.approx(8.15)


def test_who_takes_a_slot_goes_on_counting(tmp_path: Path) -> None:
    """Its predecessor's counts stay, its gauges go; and no file is added, however often that happens."""
    publishes = dict.fromkeys(OUTCOMES, 0)
    for _ in range(5):
        with sheet(tmp_path, users=3, publishes={**publishes, "taken": 2}):
            names = sorted(os.listdir(tmp_path))
    found = told(tmp_path)
    assert found["hub_publishes_total", "result=taken"] == 10
    assert not [key for key in found if key[0] == "hub_users"], "nobody lives"
    assert sorted(os.listdir(tmp_path)) == names and len(names) == 5
    with sheet(tmp_path):
        assert told(tmp_path)["hub_users", "worker=0"] == 0


def test_two_processes_of_a_slot_have_files_of_their_own(tmp_path: Path) -> None:
    """As in a deploy, where the old one still drains: what they have is added up."""
    with sheet(tmp_path, users=3) as old, sheet(tmp_path, users=4) as new:
        assert (old.name, new.name) == ("0.0", "0.1")
        assert told(tmp_path)["hub_users", "worker=0"] == 7
        assert files(str(tmp_path), 2)[1] == {0}
        old.close()
        old.close = lambda: None  # type: ignore[method-assign]
        with sheet(tmp_path) as newest:
            assert newest.name == "0.0"


def test_a_killed_process_lets_go_and_its_counts_stay(tmp_path: Path) -> None:
    """SIGKILL: no handler of ours runs; the kernel lets go of the lock, and what was written is there."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        Sheet(str(tmp_path), 0, figures()).write(figures(users=3, publishes={**dict.fromkeys(OUTCOMES, 0), "taken": 2}))
        os.write(writer, b".")
        signal.pause()
    try:
        os.read(reader, 1)
        assert files(str(tmp_path), 2)[1] == {0} and told(tmp_path)["hub_users", "worker=0"] == 3
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    assert files(str(tmp_path), 2)[1] == set()
    assert told(tmp_path)["hub_publishes_total", "result=taken"] == 2
    with sheet(tmp_path, publishes={**dict.fromkeys(OUTCOMES, 0), "taken": 1}) as successor:
        assert successor.name == "0.0" and told(tmp_path)["hub_publishes_total", "result=taken"] == 3


def test_lanes_are_bounded(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_LANES):
            stack.enter_context(sheet(tmp_path))
        with pytest.raises(BlockingIOError, match="slot 0"):
            Sheet(str(tmp_path), 0, figures())


def test_files_have_all_their_blocks_and_never_grow(tmp_path: Path) -> None:
    """A page of a file without its blocks, on a disk that is full, is SIGBUS. Half of each file is still free."""
    with sheet(tmp_path):
        for path in tmp_path.glob("*.db"):
            assert path.stat().st_size == FILE_BYTES <= path.stat().st_blocks * 512
            assert int.from_bytes(path.read_bytes()[:4], "little") < FILE_BYTES / 2


@pytest.mark.expects_log
@async_test
async def test_a_full_disk_costs_the_metrics_and_not_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, nothing left behind, another try after a while; and then what was counted meanwhile is there."""

    def no_room(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    found = figures(users=3)
    one = Metrics(str(tmp_path), 0, lambda: found)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room)
        one.flush()
        one.flush()
        assert sorted(os.listdir(tmp_path / "metrics")) == ["0.0.lock"] and one.living(2) == 0
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    one.flush()
    assert one.living(2) == 0, "not before RETRY_S"
    monkeypatch.setattr(one, "_next_try", 0.0)
    one.flush()
    assert one.living(2) == 1 and told(tmp_path / "metrics")["hub_users", "worker=0"] == 3
    one.close()
    assert one.living(2) == 0


@pytest.mark.expects_log
@pytest.mark.parametrize(
    "content", [b"", b"\xff" * FILE_BYTES, b"\x20\x00\x00\x00" + b"\x7f" * (FILE_BYTES - 4), NO_KEY]
)
def test_a_bad_file_begins_anew(tmp_path: Path, content: bytes) -> None:
    """Torn, or of something else: the slot's next process makes a new one."""
    with sheet(tmp_path):
        pass
    (tmp_path / "counter_0.0.db").write_bytes(content)
    with sheet(tmp_path, publishes={**dict.fromkeys(OUTCOMES, 0), "taken": 1}):
        assert told(tmp_path)["hub_publishes_total", "result=taken"] == 1


def test_without_tls_there_is_no_certificate_to_tell_of(tmp_path: Path) -> None:
    """0 would be one that ended in 1970."""
    one = Sheet(str(tmp_path), 0, figures(tls_ends_at=0.0))
    one.write(figures(tls_ends_at=0.0))
    assert not [key for key in told(tmp_path) if key[0].startswith("hub_tls")]
    one.close()


def test_what_has_not_changed_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of some hundred numbers stay as they are from one second to the next."""
    with sheet(tmp_path) as one:
        writes: list[Any] = []
        monkeypatch.setattr(room.MmapedDict, "write_value", lambda self, key, *value: writes.append(key))
        one.write(figures())
        assert writes == []
        one.write(figures(users=1))
        assert len(writes) == 1


def test_the_environment_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus_client takes the directory from there; an application's own metrics are none of ours."""
    monkeypatch.delenv(room.ENV, raising=False)
    with sheet(tmp_path):
        assert room.ENV not in os.environ
    monkeypatch.setenv(room.ENV, "/elsewhere")
    with sheet(tmp_path):
        assert os.environ[room.ENV] == "/elsewhere" and len(METRICS) > 30
