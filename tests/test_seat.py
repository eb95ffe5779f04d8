"""Seat: what is true in a forked worker, told by the worker itself in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import faulthandler, gc, json, logging, os, signal, socket, sys
from hub.config import Settings
from hub.errors import BootError
from hub.heartbeat import open_pipe
from hub.listeners import Slot
from hub.relay import Home
from hub.seat import Seat, fork_worker

logging.basicConfig()
behaviour = sys.argv[1]
settings = Settings(pin=True)
pulse, heartbeat = open_pipe(0.0)
seat = Seat(Slot(1, (), ()), 2, 7, False, "redis://x", heartbeat, Home("", ""))

def work(settings, seat):
    if behaviour == "raise":
        raise ZeroDivisionError
    if behaviour == "boot error":
        raise BootError("redis.url: away")
    if behaviour == "exit":
        sys.exit(5)
    if behaviour == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    print(json.dumps({
        "seat": [seat.slot.index, seat.workers, seat.generation, seat.respawned, seat.redis_url],
        "gc": gc.isenabled() and gc.get_threshold(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "ignored": all(
            signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
        ),
        "term": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "wakeup": signal.set_wakeup_fd(-1),
        "left": left,
    }))
    return 0

left = []
import atexit
atexit.register(lambda: os.write(1, b"atexit\\n"))
reader, writer = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGTERM, lambda *_: None)
gc.disable()
sys.stdout.write("buffered\\n")
pid = fork_worker(settings, seat, work, lambda: left.append("left"), sorted(os.sched_getaffinity(0)))
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
pulse.read(1.0)
parent_blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
print(json.dumps({"code": code, "failure": pulse.failure, "left": left, "blocked": parent_blocked}), flush=True)
"""


def run(behaviour: str) -> tuple[list[str], str]:
    """Lines of standard output, and standard error."""
    command = [sys.executable, "-c", PROGRAM, behaviour]
    # Buffered, as under systemd: what is written twice must be seen here.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env=environ)
    return done.stdout.splitlines(), done.stderr


def test_a_child_starts_clean_and_the_parent_is_untouched() -> None:
    """Default signals but for SIGINT, collection on, pinned, its seat complete; nothing buffered is written twice."""
    lines, _ = run("work")
    assert [line for line in lines if not line.startswith("{")] == ["buffered", "atexit"]
    child, parent = (json.loads(line) for line in lines if line.startswith("{"))
    cpus = sorted(os.sched_getaffinity(0))
    assert child == {
        "seat": [1, 2, 7, False, "redis://x"],
        "gc": [10_000, 10, 10],
        "cpus": [cpus[1 % len(cpus)]],
        "ignored": True,
        "term": True,
        "blocked": [],
        "wakeup": -1,
        "left": ["left"],
    }
    assert parent == {"code": 0, "failure": "", "left": [], "blocked": []}


@pytest.mark.parametrize(
    ("behaviour", "code", "failure", "error"),
    [
        ("raise", 1, "", "ZeroDivisionError"),
        ("boot error", 3, "redis.url: away", ""),
        ("exit", 5, "", ""),
        ("abort", -6, "", "Fatal Python error: Aborted"),
    ],
)
def test_each_way_to_end_has_its_status(behaviour: str, code: int, failure: str, error: str) -> None:
    """An exception is logged and is 1; a BootError is 3 with its text; SIGABRT writes the stack."""
    lines, stderr = run(behaviour)
    parent = json.loads(lines[-2])
    assert (parent["code"], parent["failure"]) == (code, failure)
    assert error in stderr and lines[-1] == "atexit"
