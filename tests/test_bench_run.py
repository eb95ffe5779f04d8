"""Bench run: what is held against a hub, by load processes that are made up."""

from __future__ import annotations

import asyncio

import pytest

from hub.bench_figures import Crew
from hub.bench_publish import Wanted
from hub.bench_run import Run, machine_cpu
from hub.errors import HubError

from .support import async_test
from .test_bench_crew import plan


class MadeUp:
    """A load process whose report is given."""

    def __init__(self, found: Crew) -> None:
        self.state = {"ready": found.ready, "failed": 0, "closed": 0, "received": found.received}
        self.sent: list[dict] = []
        self.ended = False
        self.final: asyncio.Future[Crew] = asyncio.get_running_loop().create_future()
        self.final.set_result(found)

    def send(self, command: dict) -> None:
        self.sent.append(command)


async def collected(lost: int, sequences: list[int], acknowledged: int, interrupted: bool = False) -> tuple[int, dict]:
    """What is called lost, and the command that ended the process."""
    run = Run(Wanted([plan(per_client=1)], 10.0, 1.0, 1, False), None, machine_cpu)
    process = MadeUp(Crew(ready=6, lost=lost))
    run._processes.append(process)
    run._sequences = sequences
    run._outcome.published, run._outcome.interrupted = acknowledged, interrupted
    await run._collect(None)
    return run._outcome.crew.lost, process.sent[-1]


@async_test
async def test_only_what_was_acknowledged_can_be_lost():
    """Two messages without an answer to three channels of two subscribers each may account for four."""
    assert await collected(7, [5, 5, 5], 15) == (7, {"stop": True, "sequences": [5, 5, 5]})
    assert (await collected(7, [5, 5, 5], 13))[0] == 3
    assert (await collected(3, [5, 5, 5], 13))[0] == 0


@async_test
async def test_after_ctrl_c_what_is_under_way_is_not_lost():
    """The process is told of no message that it should have."""
    assert await collected(2, [5, 5, 5], 15, interrupted=True) == (2, {"stop": True, "sequences": [0, 0, 0]})


@async_test
async def test_a_load_process_that_ends_ends_the_run():
    """Without figures: they would be of the others."""
    run = Run(Wanted([plan()], 10.0, 1.0, 1, False), None, machine_cpu)
    process = MadeUp(Crew())
    process.ended = True
    run._processes.append(process)
    with pytest.raises(HubError, match="a load process has ended"):
        run._sum("ready")
