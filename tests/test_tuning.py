"""Tuning: `hub tune` as it is typed, on the root of an image and on a machine that is a namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub import cli, tuning
from hub.changes import RECORD, Changes
from hub.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from hub.tune import LIMITS_PATH, RECOMMENDED, SYSCTL_PATH, limits_dropin, sysctl_dropin, systemd_dropin, systemd_path

from .hubs import clean_environment

CONFIG = Path(__file__).parent.parent / "config"


def run(*arguments: object) -> int:
    return cli.run(["tune", *map(str, arguments)])


def names(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]


def test_an_image_gets_the_files_of_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What --apply writes below --root is what stands in config/ for configuration management; --undo takes it away."""
    assert run("--apply", "--root", tmp_path, "--systemd") == EXIT_OK
    assert capsys.readouterr().out.startswith(f"--- /dev/null\n+++ {SYSCTL_PATH}\n")
    for path, origin in (
        (SYSCTL_PATH, "sysctl/60-hub.conf"),
        (LIMITS_PATH, "limits/60-hub.conf"),
        (systemd_path(), "systemd/60-tune.conf"),
    ):
        assert (tmp_path / path[1:]).read_bytes() == (CONFIG / origin).read_bytes()
    assert run("--apply", "--root", tmp_path, "--systemd") == EXIT_OK
    assert capsys.readouterr().out == "Nothing to change.\n"
    assert run("--undo", "--root", tmp_path) == EXIT_OK
    assert list(tmp_path.iterdir()) == []


def test_programs_read_what_differs_and_what_is_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object of each call; of the machine alone, a record for each kernel setting."""

    def said(*arguments: object) -> dict:
        assert run(*arguments, "--json") == EXIT_OK
        return json.loads(capsys.readouterr().out)

    image = ("--root", tmp_path)
    dry = said("--apply", *image, "--dry-run")
    assert (dry["ok"], dry["changed"], dry["next"], names(tmp_path)) == (True, False, [], [])
    done = said("--apply", *image, "--systemd")
    assert done["changed"] and done["difference"].startswith(dry["difference"]) and done["refused"] == []
    assert done["next"] == ["sysctl --system", "systemctl daemon-reload && systemctl restart hub.service"]
    assert said("--apply", *image, "--systemd") == {**dry, "difference": ""}
    assert said("--undo", *image)["changed"] and names(tmp_path) == []
    assert said("--undo", *image) == {**dry, "difference": ""}
    settings = {one["key"]: one for one in said()["settings"]}
    assert set(settings) == {line.key for lines in RECOMMENDED.values() for line in lines}
    now = settings["vm.overcommit_memory"]
    assert now["now"] == Path("/proc/sys/vm/overcommit_memory").read_text().strip() and now["recommended"] == "1"
    assert now["suffices"] is (now["now"] == "1") and now["installed"] and now["group"] == "safe" and now["reason"]
    assert settings["net.ipv4.tcp_mem"]["installed"] is False


def test_a_refusal_is_in_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Changes, "_set", lambda *_: ["vm.swappiness = 1: Read-only file system"])
    assert run("--apply", "--root", tmp_path, "--json") == EXIT_FAILED
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["refused"]) == (False, ["vm.swappiness = 1: Read-only file system"])


@pytest.mark.parametrize("arguments", [["--apply"], ["--undo"]])
def test_a_dry_run_changes_nothing(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says the same as the real one."""
    if arguments == ["--undo"]:
        run("--apply", "--root", tmp_path)
    before = names(tmp_path)
    capsys.readouterr()
    assert run(*arguments, "--dry-run", "--root", tmp_path) == EXIT_OK
    said = capsys.readouterr().out
    assert names(tmp_path) == before and SYSCTL_PATH in said
    assert run(*arguments, "--root", tmp_path) == EXIT_OK
    assert capsys.readouterr().out.startswith(said) and names(tmp_path) != before


def test_the_units_dropin_has_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CPU pinning, open files and the unit's name; the limits file has the same figure."""
    assert run("--apply", "--root", tmp_path, "--cpus", "2-7", "--nofile", 300_000, "--unit", "hub@.service") == EXIT_OK
    assert "systemctl daemon-reload && systemctl restart hub@.service" in capsys.readouterr().out
    text = (tmp_path / "etc/systemd/system/hub@.service.d/60-tune.conf").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["[Service]", "LimitNOFILE=300000", "CPUAffinity=2-7", "Environment=HUB_PIN=true"]
    assert text == systemd_dropin(300_000, "2-7", "hub@.service")
    assert (tmp_path / LIMITS_PATH[1:]).read_text() == limits_dropin(300_000)


@pytest.mark.needs("systemd-analyze", "apt-get install systemd")
def test_systemd_accepts_the_dropin(tmp_path: Path) -> None:
    """Beside the unit; and it is read, as a misspelt line of it is noticed."""
    text = (CONFIG.parent / "systemd" / "hub.service").read_text()
    (tmp_path / "hub.service").write_text(text.replace("/opt/hub/bin/hub ", "/bin/true "))
    dropin = tmp_path / "hub.service.d" / "60-tune.conf"
    dropin.parent.mkdir()
    command = ["systemd-analyze", "verify", "--recursive-errors=yes", str(tmp_path / "hub.service")]
    for replaced, good in (("", True), ("CPUAffinity", False)):
        content = systemd_dropin(300_000, "0,2-3")
        dropin.write_text(content.replace(replaced, "CPUInfinity") if replaced else content)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert ((ended.returncode, ended.stderr) == (0, "")) is good, ended.stderr


def test_without_being_asked_the_unit_is_let_alone(tmp_path: Path) -> None:
    assert run("--apply", "--root", tmp_path) == EXIT_OK
    assert names(tmp_path) == ["etc/security/limits.d/60-hub.conf", "etc/sysctl.d/60-hub.conf", names(tmp_path)[-1]]


def test_only_root_changes_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Anybody else reads one clear line, and nothing was touched; a dry run is for everybody."""
    monkeypatch.setattr(tuning.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Changes, "apply", lambda *_, **__: pytest.fail("applied"))
    monkeypatch.setattr(Changes, "undo", lambda *_, **__: pytest.fail("undone"))
    for act, root in (("--apply", "/"), ("--undo", "/"), ("--apply", "//"), ("--undo", "/etc/..")):
        assert run(act, "--root", root) == EXIT_FAILED
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err == "hub: tune: needs root, as it writes below /etc; --dry-run shows what it would do\n"
        assert run(act, "--dry-run") == EXIT_OK
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--apply", "--undo"], "--apply and --undo: give one of the two"),
        (["--dry-run"], "the other options need --apply or --undo"),
        (["--now"], "the other options need --apply or --undo"),
        (["--unit", "hub.service"], "the other options need --apply or --undo"),
        (["--cpus", "2"], "the other options need --apply or --undo"),
        (["--apply", "--cpus", "all"], "found 'all'; allowed: numbers and ranges"),
        (["--apply", "--cpus", "1\nUser=root"], "allowed: numbers and ranges"),
        (["--apply", "--cpus", "3-2"], "found '3-2'; allowed: numbers and ranges"),
        (["--apply", "--cpus", "0,9000-9999"], "--cpus: found 9000,9001,9002,9003,9004,9005,9006,9007,…; allowed on"),
        (["--apply", "--unit", "../../x.service"], "allowed: a service"),
        (["--apply", "--unit", "hub.timer"], "allowed: a service"),
        (["--apply", "--nofile", "10"], "10 is not in the range"),
        (["--apply", "--root", "/nowhere"], "does not exist"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written."""
    assert run(*arguments, "--dry-run" if "--apply" in arguments else "--force") == EXIT_USAGE
    assert text in capsys.readouterr().err


def test_a_machine_without_sys_takes_any_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nobody can tell; where it shows them, those that it has are taken."""
    monkeypatch.setattr(tuning, "CPUS_PRESENT", tmp_path / "present")
    assert run("--apply", "--dry-run", "--cpus", "9999") == EXIT_OK
    (tmp_path / "present").write_text("0-3,8\n")
    assert run("--apply", "--dry-run", "--cpus", "1-3,8") == EXIT_OK
    assert run("--apply", "--dry-run", "--cpus", "4") == EXIT_USAGE


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_record_that_is_damaged_is_told_also_where_nothing_is_to_change(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it is needed."""
    assert run("--apply", "--root", tmp_path) == EXIT_OK
    record = tmp_path / RECORD[1:]
    record.write_bytes(record.read_bytes()[:-100])
    assert run("--apply", "--root", tmp_path, *arguments) == EXIT_FAILED
    assert f"hub: {record}: is no record of this hub's" in (said := capsys.readouterr().err)
    assert "so --undo is lost" in said
    record.unlink()
    assert run("--apply", "--root", tmp_path, *arguments) == EXIT_OK


def test_an_image_has_no_running_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--apply", "--now", "--root", tmp_path) == EXIT_USAGE
    assert "an image has no running kernel" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_running_kernel_gets_the_lines_that_stand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --now; what was refused, or left by --undo, is a line each and exit status 1."""
    proc_sys = tmp_path / "sys"
    keys = ("net/core/somaxconn", "vm/overcommit_memory", "net/ipv4/tcp_mem")
    for key in keys:
        (proc_sys / key).parent.mkdir(parents=True, exist_ok=True)
        (proc_sys / key).write_text("0\n")
    (tmp_path / "root").mkdir()
    changes = Changes(tmp_path / "root", proc_sys)
    files = tuning._files(tmp_path, 1024, "", "")
    assert files[0].content == sysctl_dropin().encode()
    assert tuning._apply(changes, files, now=True, dry_run=False, force=False) == EXIT_OK
    said = capsys.readouterr().out
    assert "net.core.somaxconn = 0 → 65535\n" in said and "next boot" not in said
    values = [
        (proc_sys / key).read_text() for key in ("net/core/somaxconn", "vm/overcommit_memory", "net/ipv4/tcp_mem")
    ]
    assert values == ["65535\n", "1\n", "0\n"]

    assert tuning._undo(changes, now=False, dry_run=False, force=False) == EXIT_OK
    assert "hub tune --undo --now" in capsys.readouterr().out
    (proc_sys / "vm/overcommit_memory").write_text("2\n")
    assert tuning._undo(changes, now=True, dry_run=False, force=False) == EXIT_FAILED
    assert capsys.readouterr().err == (
        "hub: tune: not brought back: vm.overcommit_memory = 2: was changed since, and is left so\n"
    )
    assert (proc_sys / "net/core/somaxconn").read_text() == "0\n" and os.listdir(tmp_path / "root") == []


def test_a_value_that_the_kernel_refuses_is_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container, whose /proc/sys may not be written."""
    monkeypatch.setattr(Changes, "_set", lambda *_: ["vm.swappiness = 1: Read-only file system"])
    files = tuning._files(tmp_path, 1024, "", "")
    assert tuning._apply(Changes(tmp_path), files, now=False, dry_run=False, force=False) == EXIT_FAILED
    text = "hub: tune: refused by the kernel: vm.swappiness = 1: Read-only file system\n"
    assert capsys.readouterr().err == text


NAMESPACE = """\
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir -p "$1/etc/sysctl.d"
echo 'mine = 1' > "$1/etc/sysctl.d/60-hub.conf"
chmod 604 "$1/etc/sysctl.d/60-hub.conf"
for file in vm/overcommit_memory fs/nr_open fs/file-max; do
    mkdir -p "$1/$(dirname $file)"
    cat /proc/sys/$file > "$1/$file"
    mount --bind "$1/$file" /proc/sys/$file
done
mount --bind "$1/etc" /etc
mount -t tmpfs none /var/lib
state() {
    find /etc /var/lib -exec stat -c '%n %a %u %g %F' {} + | sort
    cat /etc/sysctl.d/60-hub.conf
    cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_local_port_range /proc/sys/vm/overcommit_memory
}
state
echo ----
"$2" -m hub tune --apply --now --cpus 0 > /dev/null
"$2" -m hub tune --apply --now --cpus 0
state
echo ----
"$2" -m hub tune --undo --now > /dev/null
state
"""
"""Runs in a mount and a network namespace: /etc, /var/lib, and the kernel's values that are not of the network
namespace, are copies, so that nothing of the machine that runs the tests is touched."""


def test_a_real_machine_comes_back_to_the_byte(tmp_path: Path) -> None:
    """The real kernel's values, /etc and /var/lib of a machine of its own: applied twice, undone once."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-mn", "true"], capture_output=True).returncode:
        pytest.skip("only root may have a machine of its own (unshare)")
    command = ["unshare", "-mn", "sh", "-c", NAMESPACE, "sh", str(tmp_path), sys.executable]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert (ended.returncode, ended.stderr) == (0, "")
    before, applied, after = ended.stdout.split("----\n")
    assert after == before and "mine = 1\n" in before
    assert applied.startswith("Nothing to change.\n")
    assert "\n65535\n10240\t65535\n1\n" in applied
    assert "/etc/systemd/system/hub.service.d/60-tune.conf 644 0 0 regular file\n" in applied
