"""The short version of `make soak`: half a minute of everything at once; and a hub that leaks is found out."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .__main__ import failures, growths, planned, run, text_of
from .churn import LIVES
from .rig import MB, SHORT, Soak, SoakRig

TIMEOUT_S = 240.0
LEAK = 2_000_000
"""Bytes of each worker, about every second."""


async def soaked(soak: Soak, directory: Path, leak: int = 0) -> SoakRig:
    async with asyncio.timeout(TIMEOUT_S):
        return await run(soak, directory / "soak", leak=leak)


def test_nothing_grows_stays_or_gets_lost(tmp_path):
    """As far as half a minute can tell; all wires were there, everything went well, and the text says it."""
    soak = planned(0.5)
    rig = asyncio.run(soaked(soak, tmp_path))
    found = growths(rig)
    assert failures(rig, found) == [] and not rig.checker.total.failed
    assert {growth.name for growth in found} == {"supervisor", "worker 0", "worker 1", "Valkey"}
    assert all(1.0 < growth.first < 500.0 for growth in found)
    assert rig.lives.keys() == LIVES.keys() and all(rig.lives.values())
    assert rig.checker.total.delivered > 500 and rig.checker.total.disconnects
    text = text_of(
        soak,
        {"cpus": 2, "cpu": "X", "kernel": "6", "python": "3", "versions": {}, "commit": "c", "load_before": 0.0},
        rig,
        found,
    )
    assert "Nothing was found." in text and "| worker 1 " in text


def test_a_hub_that_leaks_is_found_out(tmp_path):
    """Bytes show as slopes of its workers, tasks as a level; Valkey is not blamed."""
    rig = asyncio.run(soaked(Soak(SHORT, 0.4, 24.0, 6.0, 4), tmp_path, leak=LEAK))
    found = {growth.name: growth for growth in growths(rig)}
    assert [name for name, growth in found.items() if growth.verdict == "grows"] == ["worker 0", "worker 1"]
    assert found["worker 0"].slope.per_hour > LEAK / MB * 3600 / 3
    assert any("tasks: " in text for text in rig.checker.findings)
    assert any(text.startswith("worker 0 grows by ") for text in failures(rig, list(found.values())))
