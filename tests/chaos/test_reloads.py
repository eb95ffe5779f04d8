"""The short version of `make reloads`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.reloads import measure
from tests.chaos.rig import SHORT


def test_reloads_under_load_disconnect_and_lose_nobody(tmp_path: Path) -> None:
    """Good ones and broken ones; a small load, and newcomers all the time."""

    async def run() -> dict[str, object]:
        async with asyncio.timeout(150.0):
            return await measure(SHORT, 6, 6, 30.0, tmp_path / "run")

    found = asyncio.run(run())
    assert not found["wrong"], found
    assert (found["reloads"], found["refused reloads"]) == (6, 6)
    assert found["newcomers"] and found["delivered"]
