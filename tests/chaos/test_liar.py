"""Clients and checker against hubs that lie: each lie is caught, by its name, and an honest hub is not accused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.checker import FAILING, Checker, Figures
from tests.chaos.events import Acked, Kept, Log, Published, Reader, Settled
from tests.chaos.liar import EPOCH, Liar
from tests.chaos.load import Clients, Sdks
from tests.support import async_test

CHANNELS = [f"s:{i}" for i in range(4)]
NAMES = ["ann", "bob", "eve"]
ROUNDS = 25
"""Messages of each channel, three times: before, while nobody is there, and after."""


class Publisher:
    """Publishes to every channel in turn, and writes it down."""

    def __init__(self, liar: Liar, log: Log) -> None:
        self._liar = liar
        self._log = log
        self._number = 0

    async def publish(self, rounds: int) -> None:
        for _ in range(rounds):
            for channel in CHANNELS:
                self._number += 1
                message = f"p-{self._number}"
                self._log.write(Published(0, channel, message))
                offset = await self._liar.publish(channel, message)
                self._log.write(Acked(0, channel, message, EPOCH, offset))
        self._log.flush()


async def figures(directory: Path, lie: str, role: type = Clients) -> Figures:
    """What the checker makes of one run: live messages, everybody away, recovery, live messages."""
    logs = [Log(directory / "0-publisher.jsonl"), Log(directory / "1-clients.jsonl")]
    reader, checker = Reader(directory), Checker()
    async with Liar(lie).serving() as liar:
        config = {"url": liar.url, "names": NAMES, "channels": [CHANNELS] * len(NAMES), "seed": 1}
        clients, publisher = role(config, logs[1]), Publisher(liar, logs[0])
        await clients.start()
        assert (await clients.obey({"do": "ready"}))["behind"] == 0
        await publisher.publish(ROUNDS)
        await clients.obey({"do": "settle", "tops": tops(liar), "timeout_s": 0.5})
        await liar.cut()
        if lie == "forgets":
            liar.forget()
        await publisher.publish(ROUNDS)
        assert (await clients.obey({"do": "ready"}))["behind"] == 0
        if lie == "deserts":
            await liar.desert()
        await publisher.publish(ROUNDS)
        await clients.obey({"do": "settle", "tops": tops(liar), "timeout_s": 5.0 if not lie else 0.5})
        kept = [Kept(0, channel, EPOCH, len(liar.kept(channel)), liar.kept(channel)) for channel in CHANNELS]
        logs[1].flush()
        checker.feed(reader.read())
        checker.feed([*kept, Settled(0)])
        await clients.stop()
    for one in (*logs, reader):
        one.close()
    return checker.total


def tops(liar: Liar) -> dict:
    return {channel: [EPOCH, len(liar.kept(channel))] for channel in CHANNELS}


@pytest.mark.parametrize("role", [Clients, Sdks])
@async_test
async def test_an_honest_hub_is_not_accused(tmp_path, role):
    """Light clients and stock SDKs receive everything, once, and recover what they missed."""
    found = await figures(tmp_path, "", role)
    assert not found.failed, found
    everything = ROUNDS * 3 * len(CHANNELS)
    assert (found.published, found.acked, found.delivered) == (everything, everything, everything * len(NAMES))
    assert (found.duplicate, found.unjudged, found.signalled_loss, found.lost_by_store) == (0, 0, 0, 0)
    assert found.disconnects == len(NAMES)


LIES = {
    "drops": "silent_loss",
    "hides": "silent_loss",
    "acks": "silent_loss",
    "forgets": "silent_loss",
    "alarms": "false_alarm",
    "swaps": "reorder",
    "repeats": "duplicate",
    "invents": "phantom",
    "strays": "phantom",
    "deserts": "stuck",
}


@pytest.mark.parametrize("lie", LIES)
@async_test
async def test_each_lie_is_caught(tmp_path, lie):
    """By the verdict that names it; all but duplicates make the run fail."""
    found = await figures(tmp_path, lie)
    assert getattr(found, LIES[lie]) > 0, found
    assert found.failed == (LIES[lie] in FAILING)
