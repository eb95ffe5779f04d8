"""Loopback: a link that is silent and looks well is found, and a store that is another one."""

from __future__ import annotations

import asyncio

import pytest

from hub.errors import BrokerUnavailable
from hub.loopback import MISSES, PERIOD_S, Loopback
from tests.support import FakeClock, async_test


class Rig:
    def __init__(self) -> None:
        self.connected = True
        self.drops: list[str] = []
        self.generation = "1.a"
        self.moved = 0
        self.arrives = True
        self.away = False
        self.loopback = Loopback(self, self.probe, self._on_generation, "a1")

    def drop(self, reason: str) -> None:
        self.drops.append(reason)

    def _on_generation(self) -> None:
        self.moved += 1

    async def probe(self, token: str) -> str:
        if self.away:
            raise BrokerUnavailable("away")
        if self.arrives:
            self.loopback.heard(token.encode())
        return self.generation

    async def steps(self, count: int) -> None:
        for _ in range(count):
            await self.loopback._step()


def test_a_dead_link_is_found_within_six_seconds():
    """The token right before its death was heard; the fourth period behind that one drops it."""
    assert (MISSES + 1) * PERIOD_S <= 6.0


@async_test
async def test_a_link_on_which_nothing_arrives_is_dropped():
    """After three tokens, once; the next link gets its own three."""
    rig = Rig()
    await rig.steps(5)
    assert rig.drops == []
    rig.arrives = False
    await rig.steps(MISSES)
    assert rig.drops == []
    await rig.steps(1)
    assert len(rig.drops) == 1 == rig.loopback.missed
    await rig.steps(MISSES)
    assert len(rig.drops) == 1


@async_test
async def test_tokens_that_come_late_are_heard():
    """Two periods late, always: slow, but alive."""
    rig, late = Rig(), []
    rig.arrives = False
    for token in range(1, 20):
        await rig.steps(1)
        late.append(b"a1-%d" % token)
        if len(late) > 2:
            rig.loopback.heard(late.pop(0))
    assert rig.drops == []


@async_test
async def test_redis_away_is_no_fault_of_the_link():
    """Nothing was published, so nothing had to arrive."""
    rig = Rig()
    rig.away = True
    await rig.steps(10)
    rig.away, rig.connected, rig.arrives = False, False, False
    await rig.steps(10)
    assert rig.drops == []


@pytest.mark.expects_log
@async_test
async def test_another_generation_is_told_once():
    """The first one too, as positions may have been read before it, of another."""
    rig = Rig()
    await rig.steps(3)
    assert rig.moved == 1
    assert rig.loopback.generations == 0
    rig.generation = "2.b"
    await rig.steps(3)
    assert rig.moved == 2 and rig.loopback.generations == 1


@async_test
async def test_what_is_heard_says_how_long_it_took():
    """From the publication on; on_heard gets when that was, so that others can go on measuring."""
    rig, clock, heard = Rig(), FakeClock(), []

    async def probe(token: str) -> str:
        clock.advance(0.25)
        rig.loopback.heard(token.encode())
        return "1.a"

    rig.loopback = Loopback(rig, probe, rig._on_generation, "a1", on_heard=heard.append, clock=clock)
    await rig.steps(2)
    assert rig.loopback.lag_s == 0.25 and rig.loopback.lag.count == 2 and heard == [1000.0, 1000.25]


@async_test
async def test_what_is_no_token_of_ours_is_nothing():
    """Whoever reaches Redis can write there."""
    rig = Rig()
    rig.arrives = False
    await rig.steps(1)
    for payload in (b"", b"a1-", b"1", b"a2-1", b"x" * 100, b"a1-" + b"9" * 40, b"a1-2", "a1-²".encode()):
        rig.loopback.heard(payload)
    await rig.steps(MISSES)
    assert len(rig.drops) == 1


@pytest.mark.expects_log
@async_test
async def test_the_watch_goes_on_after_a_fault(caplog):
    """Logged; the next token is sent all the same."""
    rig = Rig()
    asked = []

    async def probe(token: str) -> str:
        asked.append(token)
        raise ZeroDivisionError

    loopback = Loopback(rig, probe, rig._on_generation, "a1", period_s=0.001)
    loopback.start()
    while len(asked) < 2:
        await asyncio.sleep(0)
    await loopback.close()
    assert "loopback: a step failed" in caplog.text
