"""The short version of `make wires`: every wire, a small load; a real hub that does something wrong is found out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e import nodejs
from tests.wires.checker import FAULTS
from tests.wires.engine import WIRES
from tests.wires.receivers import RECEIVERS
from tests.wires.rig import NAMES, Outcome, Size, run_wire

SHORT = Size(clients=40, npm=0, events=20, messages=20, receivers=2)
STOCK = SHORT._replace(clients=16, npm=16, receivers=0)
IMPATIENT = Size(clients=10, npm=0, events=10, messages=10, receivers=0, workers=2, patience_s=2.0)
"""What a lossy hub has lost does not come, however long one waits."""


def run(wire: str, size: Size, directory: Path, module: str = "hub") -> Outcome:
    return asyncio.run(run_wire(wire, size, directory, lambda text: None, module))


@pytest.mark.parametrize("wire", WIRES)
def test_nothing_is_lost_doubled_or_out_of_order(wire, tmp_path):
    """Nor is any session unknown, on four workers, with a connection for each request, to clients of all wires."""
    outcome = run(wire, SHORT, tmp_path)
    assert not outcome.findings
    assert not any(figures.failed for figures in outcome.groups.values())
    own = outcome.groups.pop(NAMES[wire])
    assert (own.clients, own.events, own.heard, len(own.ack_ms)) == (40, 800, 800, 800)
    assert {name: (one.clients, one.heard) for name, one in outcome.groups.items()} == {
        f"hears by {receiver}": (2, 40) for receiver in RECEIVERS
    }


@nodejs.NODE
@nodejs.PACKAGES
@pytest.mark.parametrize("wire", WIRES)
def test_nor_to_stock_clients(wire, tmp_path):
    """npm socket.io-client has the same to say, so that it is not only our own reading of the protocols."""
    outcome = run(wire, STOCK, tmp_path)
    assert not outcome.findings
    ((name, figures),) = outcome.groups.items()
    assert name == f"{NAMES[wire]}, npm"
    assert not figures.failed
    assert (figures.clients, figures.events, figures.heard, len(figures.ack_ms)) == (16, 320, 320, 320)


@nodejs.NODE
@nodejs.PACKAGES
def test_nor_to_those_who_emit_everything_at_once(tmp_path):
    """A stock client that polls sends all that it has in one body."""
    outcome = run("polling", STOCK._replace(clients=4, npm=4, events=100, window=100), tmp_path)
    assert not outcome.findings
    assert [(one.events, one.failed) for one in outcome.groups.values()] == [(400, False)]


LIES = {
    "drops": {"lost", "gone"},  # who waits for the message never says that it is done
    "repeats": {"doubled"},
    "forgets": {"unknown_sid", "lost", "gone"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_real_hub_that_does_wrong_is_found_out(lie, tmp_path, monkeypatch):
    """As that, and as what follows from it."""
    monkeypatch.setenv("LIE", lie)
    outcome = run("polling", IMPATIENT, tmp_path, "tests.wires.lossy_hub")
    assert faults(outcome) == LIES[lie]


@nodejs.NODE
@nodejs.PACKAGES
@pytest.mark.parametrize("lie", LIES)
def test_also_by_stock_clients(lie, tmp_path, monkeypatch):
    """What their library passes over in silence is noticed too."""
    monkeypatch.setenv("LIE", lie)
    outcome = run("polling", IMPATIENT._replace(npm=IMPATIENT.clients), tmp_path, "tests.wires.lossy_hub")
    assert faults(outcome) == LIES[lie]


def faults(outcome: Outcome) -> set[str]:
    return {name for name in FAULTS for one in outcome.groups.values() if getattr(one, name)}
