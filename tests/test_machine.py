"""Machine: facts of made-up trees of /proc and /sys, of what is missing in them, and of this machine."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from hub.machine import UNLIMITED, Machine, Nic, read

from .machines import GIB, LIMITS, TREE, write_tree


def machine_of(root: Path, changes: dict[str, str | None] | None = None, pid: int | None = None) -> Machine:
    tree = {name: text for name, text in {**TREE, **(changes or {})}.items() if text is not None}
    write_tree(root, tree)
    return read(root / "proc", root / "sys", pid)


def test_every_fact_is_read(tmp_path: Path) -> None:
    """From a whole tree."""
    assert machine_of(tmp_path) == Machine(
        release="6.1.0-18-amd64",
        nofile=524_288,
        files_open=2976,
        sysctls={"net.core.somaxconn": "4096", "net.ipv4.ip_local_port_range": "32768 60999"},
        cpus=5,
        cpu_quota=3.5,
        memory=65_536_000 * 1024,
        memory_available=60_000_000 * 1024,
        memory_limit=32 * GIB,
        memory_limit_used=GIB,
        swap=1024 * 1024,
        hugepages="always",
        clocksource="hpet",
        clocksources=("tsc", "hpet", "acpi_pm"),
        governors=frozenset({"powersave", "performance"}),
        nics=(
            Nic("ens5", 1, True, frozenset({0, 1})),
            Nic("eth0", 2, False, frozenset({2, 5})),
        ),
    )


@pytest.mark.parametrize("name", sorted(TREE))
@pytest.mark.parametrize("what", ["absent", "empty", "nonsense", "a directory"])
def test_nothing_that_is_missing_or_strange_is_an_error(name: str, what: str, tmp_path: Path) -> None:
    """Each file in turn: the other facts are still there."""
    texts = {"absent": None, "empty": "", "nonsense": "\x00 [ : 7-x,-,9- max \t\n:::", "a directory": None}
    changes: dict[str, str | None] = {name: texts[what]}
    if what == "a directory":
        (tmp_path / name).mkdir(parents=True)
    found = machine_of(tmp_path, changes)
    assert found.release == "6.1.0-18-amd64" or "osrelease" in name
    assert found.nofile == 524_288 or "limits" in name
    assert found.number("net.core.somaxconn") == 4096 or "somaxconn" in name


def test_a_machine_that_shows_nothing_has_no_facts(tmp_path: Path) -> None:
    """Such as a sandbox without /proc."""
    assert read(tmp_path / "proc", tmp_path / "sys") == Machine()
    assert Machine().room is None and Machine().number("fs.nr_open") is None and Machine().numbers("x") is None


def test_another_process_has_its_own_limits(tmp_path: Path) -> None:
    """Of a hub that runs."""
    other = {"proc/77/limits": LIMITS.format(nofile=4096), "proc/77/status": "Cpus_allowed_list:\t9\n"}
    found = machine_of(tmp_path, {**other, "proc/77/cgroup": "0::/"}, pid=77)
    assert (found.nofile, found.cpus, found.memory_limit, found.cpu_quota) == (4096, 1, None, None)


@pytest.mark.parametrize(("text", "expected"), [("unlimited", UNLIMITED), ("300", 300), ("?", None)])
def test_the_hard_limit_counts(text: str, expected: int | None, tmp_path: Path) -> None:
    assert machine_of(tmp_path, {"proc/self/limits": LIMITS.format(nofile=text)}).nofile == expected


@pytest.mark.parametrize(
    ("groups", "files", "limit", "used", "quota"),
    [
        ("0::/a/b", {"a/b/memory.max": "100", "a/memory.max": "max", "a/b/memory.current": "40"}, 100, 40, None),
        # The one that leaves the least, though its limit is the larger one.
        (
            "0::/a/b",
            {"a/b/memory.max": "100", "a/memory.max": "200", "a/memory.current": "150"},
            200,
            150,
            None,
        ),
        ("0::/../../x", {"memory.max": "50"}, 50, 0, None),  # a container's view from inside
        ("0::/gone", {}, None, 0, None),
        (
            "4:memory:/a\n2:cpu,cpuacct:/a\n0::/",
            {"memory/a/memory.limit_in_bytes": "70", "memory/a/memory.usage_in_bytes": "7"},
            70,
            7,
            None,
        ),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None, 0, None),
        ("2:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, None, 0, 0.5),
        ("2:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None, 0, None),
        ("0::/a", {"a/cpu.max": "max 100000", "cpu.max": "200000 100000"}, None, 0, 2.0),
    ],
)
def test_control_groups_of_both_versions(
    groups: str, files: dict[str, str], limit: int | None, used: int, quota: float | None, tmp_path: Path
) -> None:
    """The tightest of the group and all above it counts."""
    tree: dict[str, str | None] = {name: None for name in TREE if "cgroup" in name}
    tree["proc/self/cgroup"] = groups
    found = machine_of(tmp_path, {**tree, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}})
    assert (found.memory_limit, found.memory_limit_used, found.cpu_quota) == (limit, used, quota)


@pytest.mark.parametrize(
    ("available", "limit", "used", "room"),
    [(100, None, 0, 100), (100, 70, 20, 50), (100, 300, 20, 100), (None, 70, 90, 0), (None, None, 0, None)],
)
def test_room_is_what_is_left_of_both(available: int | None, limit: int | None, used: int, room: int | None) -> None:
    assert Machine(memory_available=available, memory_limit=limit, memory_limit_used=used).room == room


def test_this_machine_can_be_read() -> None:
    """And says what Python says."""
    found = read()
    assert found.nofile == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.release == os.uname().release
