"""What the supervisor tells the workers, by files."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from hub.facts import BEAT_PERIOD_S, MAX_BYTES, Facts, beat_age_s, read
from tests.support import FakeClock


def test_what_is_counted_and_noted_is_read(tmp_path: Path) -> None:
    """Also what was counted before there was a directory."""
    facts = Facts(wall_clock=lambda: 5.0)
    facts.count("worker_restarts", "SIGKILL")
    facts.open(str(tmp_path))
    facts.count("worker_restarts", "SIGKILL")
    facts.count("worker_restarts", "silent", 3)
    facts.note(reload_ok=0)
    facts.close()
    assert read(str(tmp_path)) == {
        "pid": os.getpid(),
        "began_at": 5.0,
        "reload_ok": 0,
        "counts": {"worker_restarts": {"SIGKILL": 2, "silent": 3}},
    }
    assert {path.name for path in tmp_path.iterdir()} == {"facts.json", "beat"}


def test_a_supervisor_that_was_started_anew_in_place_goes_on(tmp_path: Path) -> None:
    """Its counts never fall; what it says of itself is new."""
    old = Facts(wall_clock=lambda: 1.0)
    old.open(str(tmp_path))
    old.count("reloads", "ok", 2)
    old.note(version="0.1")
    old.close()
    new = Facts(wall_clock=lambda: 2.0)
    new.count("reloads", "ok")
    new.open(str(tmp_path))
    found = read(str(tmp_path))
    assert (found["counts"], found["began_at"], found["version"]) == ({"reloads": {"ok": 3}}, 2.0, "0.1")
    new.close()


def test_the_beat_says_when_the_loop_last_turned(tmp_path: Path) -> None:
    """Not more often than it is worth a write."""
    clock = FakeClock()
    facts = Facts(clock)
    assert beat_age_s(str(tmp_path), clock.now) is None
    facts.open(str(tmp_path))
    clock.advance(BEAT_PERIOD_S / 2)
    facts.beat()
    assert beat_age_s(str(tmp_path), clock.now) == BEAT_PERIOD_S / 2
    clock.advance(BEAT_PERIOD_S)
    facts.beat()
    assert beat_age_s(str(tmp_path), clock.now) == 0.0
    facts.close()
    facts.beat()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * MAX_BYTES])
def test_what_is_no_file_of_ours_is_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "facts.json").write_bytes(content)
    (tmp_path / "beat").write_bytes(content[:3])
    assert read(str(tmp_path)) == {} and beat_age_s(str(tmp_path), 1.0) is None


@pytest.mark.expects_log
def test_a_full_disk_costs_the_supervisor_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files may not grow here, as where there is no room: what was told before stays, and nothing is raised."""
    facts = Facts()
    facts.open(str(tmp_path))
    facts.count("reloads", "ok")
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, old[1]))
        facts.count("reloads", "ok")
        facts.beat()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(str(tmp_path))["counts"] == {"reloads": {"ok": 1}}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "metrics don't learn of the supervisor"
    ]
    facts.count("reloads", "ok")
    assert read(str(tmp_path))["counts"] == {"reloads": {"ok": 3}}
    facts.close()
