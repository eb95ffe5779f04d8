"""The unit's system call filter and the hub's real calls: a hub that does everything, under it, and written down."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import sandbox
from tests.hubs import HubProcess, run_hub
from tests.speakers import WIRES

systemd = pytest.mark.needs("systemd-analyze", "apt-get install systemd")
gcc = pytest.mark.needs("gcc", "apt-get install gcc libc6-dev")
strace = pytest.mark.needs("strace", "apt-get install strace")

SETTINGS = {
    "workers": 2,
    "pin": True,
    "listen": ["127.0.0.1:0"],
    "client": {"deflate": True},
    "ticker": {"source": "simulate"},
    "namespaces": {"chat": {"mode": "stream", "presence": "anyone"}},
}
REFUSED = {
    "io_uring_setup": "libuv does without",
    "io_uring_enter": "without the other one there is nothing to enter",
}
"""Calls that the hub makes and the unit refuses, with what makes that harmless."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)  # processes give no other sign


def exercise(hub: HubProcess) -> None:
    """All wires, the server API, a worker's death and its heir, and a deploy."""
    for speak in WIRES.values():
        speak(hub, hub.token("ann"), "hello")
    options = ("--url", hub.api_url)
    env = {**os.environ, "HUB_API_KEY": hub.key}
    done = run_hub("publish", *options, "chat:a", '"x"', env=env)
    assert done.returncode == 0, done.stderr
    before = hub.worker_pids()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(hub.worker_pids()) == 2 and before[0] not in hub.worker_pids(), hub.stderr)
    wait_until(lambda: hub.stderr.count("is ready") == 3, hub.stderr)
    done = run_hub("deploy", "--config", str(hub.config_path), timeout_s=90)
    assert done.returncode == 0, done.stderr + hub.stderr
    wait_until(lambda: "the last worker of the old generation has gone" in hub.stderr, hub.stderr)
    for speak in WIRES.values():
        speak(hub, hub.token("ann"), "hello again")


@systemd
@gcc
def test_the_hub_does_everything_under_the_units_filter(tmp_path: Path) -> None:
    """Served over every wire, pinned, a worker replaced, ended with 0: and nothing in its log was refused."""
    settings = {**SETTINGS, "listen": ["127.0.0.1:0", f"unix:{tmp_path}/s"], "log_level": "debug"}
    with HubProcess(settings, module="tests.sandbox") as hub:
        status = Path(f"/proc/{hub.pid}/status").read_text()
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE), status
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE) or os.geteuid()
        # In a namespace of its own, where it could have one.
        mounts = Path(f"/proc/{hub.pid}/mountinfo").read_text()
        assert os.readlink(f"/proc/{hub.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt") or " / / ro" in mounts
        exercise(hub)
        pinned = [sorted(os.sched_getaffinity(pid)) for pid in hub.worker_pids()]
        assert [len(cpus) for cpus in pinned] == [1, 1]
        assert len({cpus[0] for cpus in pinned}) == min(2, len(os.sched_getaffinity(0)))
        assert hub.stop() == 0
        assert "Operation not permitted" not in hub.stderr
        assert "Traceback" not in hub.stderr


@systemd
@gcc
@strace
def test_every_call_that_the_hub_makes_is_allowed(tmp_path: Path) -> None:
    """What strace has seen of the hub, its workers and its Valkey is in the filter, but for REFUSED."""
    path = tmp_path / "calls"
    with HubProcess({**SETTINGS, "log_level": "debug"}, module="tests.sandbox", env={sandbox.TRACE: str(path)}) as hub:
        exercise(hub)
        assert hub.stop() == 0
    wait_until(lambda: path.exists() and "total" in path.read_text(), "no summary of strace")
    calls = set(re.findall(r" (\w+)$", path.read_text(), re.MULTILINE)) - {"total", "syscall"}
    # Of the supervisor, a worker, Valkey: all of them were seen.
    assert {"wait4", "accept4", "sched_setaffinity", "fdatasync", "memfd_create"} <= calls
    assert sorted(calls - sandbox.allowed() - REFUSED.keys()) == []


PROBES = {
    "mount": "ctypes.CDLL(None, use_errno=True).mount(b'x', b'/', b'x', 0, None)",
    "setpriority": "os.setpriority(os.PRIO_PROCESS, 0, 1)",
    "chroot": "os.chroot('/')",
    "write and execute": "mmap.mmap(-1, 4096, prot=7)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "ptrace": "ctypes.CDLL(None, use_errno=True).ptrace(0, 0, 0, 0)",
}


@systemd
@gcc
@pytest.mark.parametrize("name", PROBES)
def test_the_sandbox_refuses(name: str) -> None:
    """The run above proves something only if the filter is one: each of these fails under it."""
    text = (
        "import ctypes, mmap, os, socket\nfrom tests import sandbox\nsandbox.enter(sandbox.program())\n"
        f"try:\n    found = {PROBES[name]}\nexcept OSError as error:\n    print(error.errno)\n"
        "else:\n    print(ctypes.get_errno() if found == -1 else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert int(done.stdout) == (errno.EAFNOSUPPORT if name == "netlink" else errno.EPERM)
