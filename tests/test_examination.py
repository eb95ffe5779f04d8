"""Examination: what is collected besides the machine, and the report of made-up machines from files to the verdict."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from hub import examination
from hub.config import load
from hub.diagnosis import Severity, diagnose, holds
from hub.values import parse_address

from .hubs import clean_environment
from .machines import LIMITS, TREE, case_of, write_tree


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from this machine."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:0", ""), ("unix:/nowhere/x.sock", ""), ("192.0.2.1:9000", "this machine has no such address")],
)
def test_why_a_port_cannot_be_bound(address: str, expected: str) -> None:
    assert examination._port_problem(parse_address(address)) == expected


def test_a_service_has_its_state_where_systemd_says(tmp_path: Path) -> None:
    """Whoever looks has another home; where the environment may not be read, our own has to do."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "environ").write_bytes(b"HOME=/\0STATE_DIRECTORY=/var/lib/hub\0X=a=b\0")
    assert examination._environ(tmp_path, 7) == {"HOME": "/", "STATE_DIRECTORY": "/var/lib/hub", "X": "a=b"}
    assert examination._environ(tmp_path, 8) is os.environ and examination._environ(tmp_path, None) is os.environ


def test_the_ports_of_a_hub_that_is_looked_at_are_rightly_taken(tmp_path: Path) -> None:
    """The process is here; without one, they should be free."""
    settings = load(None).model_copy(update={"listen": ["127.0.0.1:0"], "internal": [], "state_dir": str(tmp_path)})
    assert examination.examine(settings, 1, "websocket", os.getpid()).running is True
    assert examination.examine(settings, 1, "websocket").running is False


# Made-up machines


@pytest.mark.parametrize(
    ("changes", "connections", "ceiling", "first", "breaks"),
    [
        # Two workers with 300 files each: the first of them is full.
        ({"proc/self/limits": LIMITS.format(nofile=300)}, 1000, 383, "open files", {"open files"}),
        # 512 MiB, of which two workers take 64: the rest at 1,710 and three sockets of 4,096 each.
        (
            {"proc/meminfo": "MemAvailable: 524288 kB\n", "proc/self/cgroup": "0::/\n"},
            100_000,
            33_559,
            "memory",
            {"memory"},
        ),
        # Both are too little; the lower one is first.
        (
            {
                "proc/self/limits": LIMITS.format(nofile=3000),
                "sys/fs/cgroup/system.slice/hub.service/memory.max": str(80 * 2**20),
            },
            100_000,
            1_198,
            "memory",
            {"memory", "open files"},
        ),
        ({}, 1000, 522_899, "fs.nr_open", set()),
    ],
)
def test_a_made_up_machine_breaks_where_it_must(
    changes: dict[str, str], connections: int, ceiling: int, first: str, breaks: set[str], tmp_path: Path
) -> None:
    """From files to the verdict."""
    write_tree(tmp_path / "machine", {**TREE, "proc/sys/fs/nr_open": "262144", **changes})
    settings = load(None).model_copy(update={"workers": 2, "listen": ["0.0.0.0:0"], "state_dir": str(tmp_path)})
    if first == "memory":
        settings = settings.model_copy(update={"listen": ["unix:/nowhere/x.sock"]})
    case = examination.examine(
        settings, connections, "websocket", proc=tmp_path / "machine/proc", sys=tmp_path / "machine/sys"
    )
    findings = diagnose(case, examination.RULES)
    assert {one.rule for one in findings if one.severity is Severity.BREAKS} == breaks
    found = holds(findings)
    assert found is not None and (found.ceiling, found.rule) == (ceiling, first)


def test_a_machine_that_shows_nothing_is_examined(tmp_path: Path) -> None:
    """Every rule says that it could not look, or says nothing; the verdict rests on what is known."""
    settings = load(None).model_copy(update={"workers": 2, "listen": ["0.0.0.0:0"], "state_dir": str(tmp_path)})
    case = examination.examine(settings, 1000, "websocket", proc=tmp_path / "none", sys=tmp_path / "none")
    findings = diagnose(case, examination.RULES)
    assert {one.severity for one in findings} == {Severity.UNKNOWN, Severity.FINE}
    shown = click.unstyle(examination.text(case, findings, everything=True))
    assert "UNKNOWN open files: not readable\n" in shown and "of an unknown version" in shown


def test_the_report_says_what_to_change() -> None:
    """Worst first, each with what was found, needed, what happens and the lines to copy; what is fine is counted."""
    case = case_of(connections=50_000, machine={"nofile": 1024, "hugepages": "always"}, sysctls={"fs.nr_open": None})
    findings = diagnose(case, examination.RULES)
    lines = examination.text(case, findings, everything=False).splitlines()
    plain = [click.unstyle(line) for line in lines]
    assert plain[0] == "50000 connections (websocket) on 8 workers; Linux 6.1.0, 8 CPUs, 64.0 GiB"
    assert plain[1] == "This machine holds about 6974; first limit: open files."
    heads = [line.partition(":")[0] for line in plain if line and not line.startswith(" ")][2:-1]
    assert heads == ["BREAKS  open files", "ADVICE  huge pages", "UNKNOWN fs.nr_open"]
    assert "BREAKS  open files: 1024 for each worker, at about 6974 connections" in plain
    assert "        needed: 6504" in plain and "            LimitNOFILE=1048576" in plain
    assert plain[-1].endswith("more are fine; --all shows them.")


def test_the_report_for_programs_has_every_finding() -> None:
    case = case_of(connections=50_000, machine={"nofile": 1024})
    findings = diagnose(case, examination.RULES)
    said = examination.as_object(case, findings)
    assert (said["ok"], said["holds"], said["first_limit"]) == (False, 6974, "open files")
    assert len(said["findings"]) == len(findings)
    assert said["findings"][0]["severity"] == "breaks" and said["findings"][0]["fix"][1] == "LimitNOFILE=1048576"
