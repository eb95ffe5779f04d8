"""When a process is to be started anew, and when clients should be sent elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub.facts import Facts
from hub.health import LAG_S, SUPERVISOR_S, Health
from hub.lag import Lag
from tests.support import FakeClock


class Rig:
    """A worker that is well, until a test says otherwise."""

    def __init__(self, directory: Path, **over: Any) -> None:
        self.clock = FakeClock()
        self.facts = Facts(self.clock)
        self.facts.open(str(directory))
        self.lag = Lag(0.05, self.clock)
        self.ingest, self.registry = SimpleNamespace(connected=True), SimpleNamespace(reachable=True)
        self.headroom = SimpleNamespace(full=False)
        self.draining, self.workers = False, 2
        self.health = Health(
            SimpleNamespace(lag=self.lag, ingest=self.ingest, registry=self.registry, headroom=self.headroom),
            str(directory),
            draining=lambda: self.draining,
            living=lambda: self.workers,
            clock=self.clock,
            **{"workers": 2, "min_workers": 2, "needs_redis": True, **over},
        )

    def pass_by(self, seconds: float) -> None:
        """The supervisor turns, the loop does not."""
        self.clock.advance(seconds)
        self.facts.beat()


def test_a_hub_that_is_about_to_stop_takes_no_newcomers(tmp_path: Path) -> None:
    """In all workers, once the supervisor has been told; it lives on, and is not to be killed for it."""
    rig = Rig(tmp_path)
    rig.facts.note(stopping=1)
    assert list(rig.health.ready().reasons) == ["draining"]
    assert rig.health.live().good


def test_all_is_well(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.health.live().about() == rig.health.ready().about() == {"status": "ok"}


def test_a_loop_that_is_late_fails_both(tmp_path: Path) -> None:
    """Just below LAG_S it is slow, and lives."""
    rig = Rig(tmp_path)
    rig.pass_by(LAG_S)
    assert rig.health.live().good
    rig.pass_by(0.1)
    assert list(rig.health.live().reasons) == list(rig.health.ready().reasons) == ["event_loop_lag"]
    assert rig.health.live().about()["status"] == "unavailable"


def test_a_supervisor_that_hangs_fails_both(tmp_path: Path) -> None:
    """Nobody would replace a worker any more."""
    rig = Rig(tmp_path)
    for _ in range(round(SUPERVISOR_S / 0.05) + 1):
        rig.clock.advance(0.05)
        rig.lag.tick()
    assert list(rig.health.live().reasons) == list(rig.health.ready().reasons) == ["supervisor"]
    rig.facts.beat()
    assert rig.health.live().good


@pytest.mark.parametrize("room", ["ingest", "registry"])
def test_redis_away_is_no_reason_to_start_anew(tmp_path: Path, room: str) -> None:
    """Whether clients should be sent elsewhere is the operator's to say; either way it is told."""
    rig, tolerant = Rig(tmp_path), Rig(tmp_path, needs_redis=False)
    for one in (rig, tolerant):
        if room == "ingest":
            one.ingest.connected = False
        else:
            one.registry.reachable = False
        assert one.health.live().about() == {"status": "ok"}
    assert not rig.health.ready().good and list(rig.health.ready().reasons) == ["redis"]
    verdict = tolerant.health.ready()
    assert verdict.good and list(verdict.degraded) == ["redis"] and verdict.about()["status"] == "ok"


def test_who_drains_or_is_alone_gets_nobody(tmp_path: Path) -> None:
    """And lives."""
    rig = Rig(tmp_path)
    rig.draining, rig.workers = True, 1
    assert rig.health.live().good
    assert rig.health.ready().reasons == {
        "draining": "this process is about to end",
        "workers": "1 live; allowed: 2 or more",
    }


def test_a_worker_less_is_told_and_tolerated(tmp_path: Path) -> None:
    """As long as there are as many as there have to be."""
    verdict = Rig(tmp_path, workers=3).health.ready()
    assert verdict.good and verdict.degraded == {"workers": "2 of 3 live; newcomers wait in the others' listeners"}
    verdict = Rig(tmp_path, workers=3, min_workers=3).health.ready()
    assert list(verdict.reasons) == ["workers"] and not verdict.degraded


def test_without_the_supervisors_file_nothing_is_said_of_it(tmp_path: Path) -> None:
    """As where the disk was full at the start."""
    rig = Rig(tmp_path)
    (tmp_path / "beat").unlink()
    assert rig.health.live().good


def test_a_full_store_is_told_and_keeps_nobody_out(tmp_path: Path) -> None:
    """All that is not kept is delivered as ever."""
    rig = Rig(tmp_path)
    rig.headroom.full = True
    verdict = rig.health.ready()
    assert verdict.good and list(verdict.degraded) == ["store"]
