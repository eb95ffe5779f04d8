"""The short version of `make chaos`: each fault once, a small load; a real hub that loses something is found out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.__main__ import run_fault
from tests.chaos.checker import FAILING, Figures
from tests.chaos.faults import FAULTS
from tests.chaos.rig import SHORT, Rig

TIMEOUT_S = 150.0
LOSSY = "tests.chaos.lossy_hub"
IMPATIENT = SHORT._replace(settle_s=2.0)
"""What a lossy hub has lost does not come, however long one waits."""


async def run(kind: str, directory: Path) -> Rig:
    """Every fault of one topology that the short version has."""
    async with asyncio.timeout(TIMEOUT_S), Rig(kind, SHORT, directory) as rig:
        for fault in FAULTS:
            if fault.kind == kind and fault.short:
                await run_fault(rig, fault)
        return rig


@pytest.mark.parametrize("kind", ["plain", "pair", "sentinel"])
def test_nothing_is_lost_silently(kind, tmp_path):
    """No silent loss, false alarm, reorder, phantom, leak or stuck subscription; and the faults took place."""
    rig = asyncio.run(run(kind, tmp_path))
    total = rig.checker.total
    assert not total.failed, "\n".join([*rig.checker.findings, *rig.late])
    assert total.duplicate == 0, "\n".join(rig.checker.findings)
    assert total.delivered > 10 * total.rounds * SHORT.channels_each
    for name, figures in rig.checker.faults.items():
        check_that_it_happened(name, figures)


def check_that_it_happened(name: str, figures: Figures) -> None:
    """A fault that does nothing would show nothing."""
    if name == "worker kill":
        assert figures.disconnects and not figures.strangers
        assert max(figures.back_s) < 5.0
    elif name in ("store restart", "store kill", "lagging promoted", "split", "fail-back", "sentinel, killed"):
        assert figures.resubscribes and not figures.strangers
    if name in ("store loses 1 s", "lagging promoted", "split", "fail-back", "flush"):
        assert figures.lost_by_store and figures.signalled_loss


async def run_lossy(directory: Path) -> Figures:
    async with asyncio.timeout(TIMEOUT_S), Rig("plain", IMPATIENT, directory, module=LOSSY) as rig:
        await rig.round("nothing", True, FAULTS[0].inject, 1.0)
        return rig.checker.total


def test_a_real_hub_that_loses_something_is_found_out(tmp_path):
    """One publication in fifty, for all subscribers of its channel in one worker; nothing else is wrong with it."""
    total = asyncio.run(run_lossy(tmp_path))
    assert [name for name in FAILING if getattr(total, name)] == ["silent_loss"]
