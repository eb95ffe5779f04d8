"""Tune: the drop-ins under config/ are the code's, and the report says truly what a machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub.tune import (
    MEASURE,
    MILLION,
    OPEN_FILES,
    PORTS,
    RAISE,
    RECOMMENDED,
    SAFE,
    assignments,
    fitted_dropin,
    limits_dropin,
    report,
    sysctl_dropin,
    systemd_dropin,
)

CONFIG = Path(__file__).parent.parent / "config"


@pytest.fixture
def machine(tmp_path: Path):
    """A /proc/sys with the given values: machine({"vm.overcommit_memory": "0"})."""

    def build(values: dict[str, str]) -> Path:
        for key, value in values.items():
            path = tmp_path / key.replace(".", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value + "\n")
        return tmp_path

    return build


def entry(text: str, key: str) -> tuple[str, bool]:
    """What the report says of `key`: its mark, and whether its line stands uncommented."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{key} = "))
    return lines[at - 1].removeprefix("# now: "), not lines[at].startswith("#")


def settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_files_are_the_codes() -> None:
    """The installed drop-ins equal the text of `hub tune`'s table, byte for byte."""
    assert (CONFIG / "sysctl" / "60-hub.conf").read_bytes() == sysctl_dropin().encode()
    assert (CONFIG / "limits" / "60-hub.conf").read_bytes() == limits_dropin().encode()
    assert (CONFIG / "systemd" / "60-tune.conf").read_bytes() == systemd_dropin().encode()


def test_only_the_safe_set_stands_uncommented() -> None:
    """A drop-in installed without reading changes nothing that needs a decision; yet every line is there."""
    assert settings(sysctl_dropin()) == [line.setting for line in SAFE]
    for line in (*RAISE, *MILLION, *PORTS, *MEASURE):
        assert f"\n# {line.setting}\n" in sysctl_dropin()
    assert settings(limits_dropin()) == [f"hub - nofile {OPEN_FILES}"]


def test_every_line_is_written_once_with_its_reason() -> None:
    """No key stands twice, and none without a sentence."""
    lines = [line for group in RECOMMENDED.values() for line in group]
    assert len({line.key for line in lines}) == len(lines)
    assert all(line.key and line.value and line.reason.endswith(".") for line in lines)


@pytest.mark.parametrize(
    ("key", "current", "mark", "stands"),
    [
        ("net.core.somaxconn", "4096", "4096 → 65535", True),
        ("net.core.somaxconn", "65535", "already so", True),
        ("net.core.somaxconn", "131072", "already so: 131072, which this line would lower", False),
        ("net.ipv4.tcp_migrate_req", "0", "0 → 1", True),
        ("net.ipv4.ip_local_port_range", "32768\t60999", "32768 60999 → 10240 65535", True),
        ("net.ipv4.ip_local_port_range", "1024\t65535", "already so: 1024 65535, which this line would lower", False),
        ("vm.overcommit_memory", "2", "2 → 1", True),
        ("fs.nr_open", "1048576", "1048576 → 2097152", True),
        ("fs.nr_open", "1073741816", "already so: 1073741816, which this line would lower", False),
        ("fs.file-max", "9223372036854775807", "already so: 9223372036854775807, which this line would lower", False),
        ("net.ipv4.ip_unprivileged_port_start", "1024", "1024 → 80", False),
        ("net.ipv4.ip_unprivileged_port_start", "0", "already so: 0, which this line would raise", False),
        ("net.ipv4.tcp_mem", "287901\t383868\t575802", "287901 383868 575802 → 1048576 1572864 2097152", False),
        ("net.ipv4.tcp_wmem", "4096\t16384\t4194304", "already so", False),
        ("net.ipv4.tcp_wmem", "4096\t16384\t9999999", "4096 16384 9999999 → 4096 16384 4194304", False),
    ],
)
def test_the_report_compares_with_the_machine(key: str, current: str, mark: str, stands: bool, machine) -> None:
    """What differs, is already so, or would be lowered; only safe lines and too low ceilings stand."""
    assert entry(report(machine({key: current})), key) == (mark, stands)


def test_what_the_kernel_lacks_is_said(machine) -> None:
    """Where nothing can be read every line is commented out and marked."""
    text = report(machine({"kernel.osrelease": "4.4.0"}), nofile=OPEN_FILES)
    assert text.startswith("# Linux 4.4.0. Nothing was changed.\n")
    assert text.count("# now: not on this kernel\n") == sum(map(len, RECOMMENDED.values()))
    assert settings(text) == [f"hub - nofile {OPEN_FILES}"]


def test_the_fitted_file_is_the_reports_without_what_holds_now(machine) -> None:
    """The same lines stand, and they still do once it is installed: what is raised is not lowered or dropped again."""
    root = machine(
        {
            "net.core.somaxconn": "131072",
            "fs.nr_open": "1048576",
            "vm.overcommit_memory": "0",
            "net.ipv4.tcp_mem": "1 1 1",
        }
    )
    fitted = fitted_dropin(root)
    assert assignments(fitted) == {"vm.overcommit_memory": "1", "fs.nr_open": "2097152"}
    assert settings(fitted) == settings(report(root))[:-1]
    assert "# now: " not in fitted and fitted.count(" = ") >= sysctl_dropin().count(" = ")
    machine(assignments(fitted))
    assert fitted_dropin(root) == fitted


def test_the_units_dropin_names_the_cpus_only_where_they_are_given() -> None:
    """An example stands in their place as a comment."""
    assert settings(systemd_dropin()) == ["[Service]", f"LimitNOFILE={OPEN_FILES}"]
    assert "# CPUAffinity=2-7\n# Environment=HUB_PIN=true\n" in systemd_dropin()


def test_the_limit_is_compared(machine) -> None:
    """The hard limit of open files is shown when it is too low, and not when it is infinite."""
    root = machine({})
    assert f"# now: 1024 → {OPEN_FILES}, for this login\n" in report(root, nofile=1024)
    assert "# now: already so for this login\n" in report(root, nofile=OPEN_FILES)
    assert "# now: already so for this login\n" in report(root, nofile=-1)  # RLIM_INFINITY


def test_this_machine_can_be_reported() -> None:
    """The real /proc/sys gives a mark for each line, and every reason of the drop-in is there."""
    text = report()
    assert text.count("# now: ") == sum(map(len, RECOMMENDED.values())) + 1
    missing = [line for line in (sysctl_dropin() + limits_dropin()).splitlines() if line.removeprefix("# ") not in text]
    assert missing == []
