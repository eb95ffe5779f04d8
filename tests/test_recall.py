"""Recall: records in a real Valkey, given out once."""

from __future__ import annotations

import asyncio

import pytest

from hub import recall as recall_module
from hub.recall import Recall
from hub.sections import RedisSettings
from hub.store import Store
from tests.nodes import own_valkey
from tests.support import FakeClock, async_test


async def taken(recall: Recall, pid: str) -> bytes | None:
    future = asyncio.get_running_loop().create_future()
    recall.take(pid, future.set_result)
    return await asyncio.wait_for(future, 5)


async def round_trips(recall: Recall, count: int) -> None:
    for _ in range(count):
        await taken(recall, "nobody")


def store(url: str, prefix: str) -> Store:
    return Store(RedisSettings(prefix=prefix), url)


@async_test
async def test_a_record_is_given_out_once_to_any_worker(valkey_url, prefix):
    """And not after its time."""
    one, other = Recall(store(valkey_url, prefix), 60_000), Recall(store(valkey_url, prefix), 1)
    one.start()
    other.start()
    for i in range(300):
        one.save(f"pid{i}", b"%d" % i)
    assert await taken(one, "nobody") is None
    assert await taken(other, "pid299") == b"299"
    assert await taken(one, "pid299") is None
    other.save("late", b"x")
    # A take that goes with the save would always find it: so many round trips take longer than its millisecond.
    while await round_trips(other, 20) or await taken(other, "late") is not None:
        other.save("late", b"x")
    await one.close()
    await other.close()


@async_test
async def test_what_waits_is_saved_at_the_end(valkey_url, prefix):
    """A worker that drains loses all its clients in its last moments."""
    one = Recall(store(valkey_url, prefix), 60_000)
    one.start()
    for i in range(600):
        one.save(f"pid{i}", b"x")
    await one.close()
    other = Recall(store(valkey_url, prefix), 60_000)
    other.start()
    assert await taken(other, "pid599") == b"x"
    await other.close()


@pytest.mark.parametrize("name", ["MAX_WAITING", "MAX_BYTES"])
@async_test
async def test_what_waits_is_bounded(name, valkey_url, prefix, monkeypatch):
    """A save too many is dropped; whoever asks then finds nothing."""
    monkeypatch.setattr(recall_module, name, 1)
    one = Recall(store(valkey_url, prefix), 60_000)
    one.save("first", b"x")
    one.save("second", b"x")
    if name == "MAX_WAITING":
        assert await taken(one, "first") is None
    one.start()
    while (found := await taken(one, "first")) is None:
        pass
    assert found == b"x"
    assert await taken(one, "second") is None
    one.save("third", b"x")  # what has been saved counts no more
    assert await taken(one, "third") == (b"x" if name == "MAX_BYTES" else None)
    await one.close()


@pytest.mark.expects_log
@async_test
async def test_what_redis_keeps_is_bounded(valkey_url, prefix, caplog):
    """In bytes, from one worker: a save too many is dropped, with one line, until an earlier record has ended."""
    clock = FakeClock()
    one = Recall(store(valkey_url, prefix), 60_000, 10, clock)
    one.start()
    for pid in ("first", "second", "third", "fourth"):
        one.save(pid, b"12345")
    assert [await taken(one, pid) for pid in ("first", "second", "third", "fourth")] == [b"12345"] * 2 + [None] * 2
    clock.advance(59.9)
    one.save("early", b"1")
    clock.advance(0.1)
    one.save("in time", b"1234567890")
    assert [await taken(one, pid) for pid in ("early", "in time")] == [None, b"1234567890"]
    assert [record.message for record in caplog.records] == [
        "recall: no room for lost clients' records (socketio.recovery_bytes)"
    ]
    await one.close()


@pytest.mark.expects_log
@async_test
async def test_without_redis_nobody_is_known(prefix, caplog):
    """One line of warning, and the client starts anew; a fault in one answer is not the next one's."""
    with own_valkey() as valkey:
        one = Recall(store(valkey.url, prefix), 60_000)
        one.start()
        assert await taken(one, "a") is None

        def fails(found: bytes | None) -> None:
            raise RuntimeError

        one.take("a", fails)
        assert await taken(one, "a") is None
        valkey.stop()
        assert await taken(one, "a") is None
        await one.close()
    assert any("a client's return failed" in line.getMessage() for line in caplog.records)
