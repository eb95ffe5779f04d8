"""Saving: `hub backup` and `hub restore` as they are typed: where the data is, the file, lines and exit statuses."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from hub import cli, saving
from hub.config import Settings
from hub.embedded import Embedded, running_url
from hub.errors import EXIT_BOOT, EXIT_FAILED, EXIT_OK, EXIT_USAGE
from hub.state import lock_state_dir

from .hubs import clean_environment, run_hub, to_toml


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from this machine."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A short name: a socket's path has 107 bytes, and tmp_path carries the test's name.
    return tmp_path_factory.mktemp("s")


@pytest.fixture
def config(directory: Path, valkey_url: str, prefix: str) -> str:
    """Settings of a hub with a Redis of its own."""
    return write_config(directory, redis={"url": valkey_url, "prefix": prefix})


@pytest.fixture
def store(valkey_url: str, prefix: str) -> Iterator[redis.Redis]:
    """That Redis, with one channel of two publications."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        fill(client, prefix)
        yield client


def write_config(directory: Path, **values: object) -> str:
    path = directory / "hub.toml"
    path.write_text(to_toml(values))
    return str(path)


def fill(client: redis.Redis, prefix: str = "hub") -> None:
    for offset in (1, 2):
        client.xadd(f"{prefix}:stream:{{chat:a}}", {"b": "{}"}, id=f"{offset}-0")
    client.hset(f"{prefix}:meta:{{chat:a}}", mapping={"o": 2, "e": "1.a", "g": "1.b"})


def clear(client: redis.Redis, prefix: str) -> None:
    for name in client.scan_iter(f"{prefix}:*"):
        client.delete(name)


def run(*arguments: object) -> int:
    return cli.run([str(each) for each in arguments])


# There and back


@pytest.mark.parametrize("name", ["hub.jsonl", "hub.jsonl.gz"])
def test_a_backup_is_restored(directory, config, store, prefix, capsys, name):
    """One line for each, on standard output; the file is its owner's alone, and nothing lies beside it."""
    file = directory / name
    file.write_bytes(b"an older backup")
    assert run("backup", file, "--config", config) == EXIT_OK
    out, err = capsys.readouterr()
    assert out.startswith(f"{file}: 1 channel, 2 publications, 0 mailbox keys; made 20")
    assert out.endswith(f"Z of prefix {prefix}\n") and not err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(each.name for each in directory.iterdir()) == sorted(["hub.toml", name])
    assert (file.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    clear(store, prefix)
    assert run("restore", file, "--config", config) == EXIT_OK
    assert capsys.readouterr() == (out, "")
    assert store.xlen(f"{prefix}:stream:{{chat:a}}") == 2


def test_standard_input_and_output_carry_a_backup(config, store, prefix):
    """Its summary then goes to standard error; compressed by somebody else, it is read as well."""
    command = [sys.executable, "-m", "hub"]
    options = {"capture_output": True, "env": clean_environment(), "timeout": 20}
    done = subprocess.run([*command, "backup", "-", "--config", config, "--json"], **options)
    assert done.returncode == EXIT_OK
    summary = json.loads(done.stderr)
    assert (summary["prefix"], summary["publications"], summary["contents"]) == (prefix, 2, "all")
    assert json.loads(done.stdout.splitlines()[-1])["sha256"] == summary["sha256"]
    clear(store, prefix)
    back = subprocess.run(
        [*command, "restore", "-", "--config", config, "--json"], input=gzip.compress(done.stdout), **options
    )
    assert (back.returncode, json.loads(back.stdout)) == (EXIT_OK, summary)
    assert store.xlen(f"{prefix}:stream:{{chat:a}}") == 2


def test_mailboxes_alone_are_announced(directory, config, store, capsys):
    """In the file, and so to whoever restores it."""
    assert run("backup", directory / "m", "--mailboxes-only", "--config", config, "--json") == EXIT_OK
    assert json.loads(capsys.readouterr().out)["contents"] == "mailboxes"
    assert run("restore", directory / "m", "--check", "--json") == EXIT_OK
    summary = json.loads(capsys.readouterr().out)
    assert (summary["contents"], summary["channels"]) == ("mailboxes", 0)


def test_what_is_there_is_replaced_only_if_asked_for(directory, config, store, prefix, capsys):
    """Else it is refused as an argument, in one line."""
    assert run("backup", directory / "b", "--config", config) == EXIT_OK
    store.xadd(f"{prefix}:stream:{{chat:a}}", {"b": "{}"}, id="3-0")
    capsys.readouterr()
    assert run("restore", directory / "b", "--config", config) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert not out and err.startswith("hub: restore: found ") and err.endswith("nothing was changed\n")
    assert store.xlen(f"{prefix}:stream:{{chat:a}}") == 3
    assert run("restore", directory / "b", "--config", config, "--replace") == EXIT_OK
    assert store.xlen(f"{prefix}:stream:{{chat:a}}") == 2


# Files


@pytest.mark.parametrize("check", [True, False], ids=["check", "restore"])
def test_a_file_that_is_not_whole_restores_nothing(directory, config, store, prefix, capsys, check):
    """Not even its first channel, and --replace deletes nothing."""
    file = directory / "b.gz"
    assert run("backup", file, "--config", config) == EXIT_OK
    file.write_bytes(file.read_bytes()[:-9])
    capsys.readouterr()
    options = ["--check"] if check else ["--replace", "--config", config]
    before = store.xinfo_stream(f"{prefix}:stream:{{chat:a}}")
    assert run("restore", file, *options) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"hub: {file}: line ") and err.endswith("; nothing was changed\n")
    assert err.count("\n") == 1
    assert store.xinfo_stream(f"{prefix}:stream:{{chat:a}}") == before


def test_a_check_needs_no_settings(directory, config, store, capsys):
    """Nor does it write anything."""
    assert run("backup", directory / "b", "--config", config) == EXIT_OK
    made = capsys.readouterr().out
    assert run("restore", directory / "b", "--check", "--config", "/nowhere") == EXIT_OK
    assert capsys.readouterr().out == made


def test_a_backup_that_fails_leaves_the_older_one(directory, config, store, prefix, capsys):
    """And nothing else."""
    file = directory / "b"
    file.write_bytes(b"older")
    store.set(f"{prefix}:dead", "no stream")
    assert run("backup", file, "--config", config) == EXIT_FAILED
    assert (
        capsys.readouterr().err == f"hub: key {prefix}:dead: found a string; allowed: a stream; is it another hub's?\n"
    )
    assert file.read_bytes() == b"older"
    assert sorted(each.name for each in directory.iterdir()) == ["b", "hub.toml"]


def test_a_link_stays_one_and_a_device_is_no_place_for_a_file(directory, config, store):
    """What FILE leads to is replaced; what is no regular file is written to."""
    (directory / "link").symlink_to("real")
    assert run("backup", directory / "link", "--config", config) == EXIT_OK
    assert (directory / "link").is_symlink() and (directory / "real").is_file()
    assert run("backup", "/dev/null", "--config", config) == EXIT_OK
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["backup"], EXIT_USAGE, "Missing argument 'FILE'"),
        (["backup", "/nowhere/b", "--config", "/nowhere/c"], EXIT_USAGE, "hub: /nowhere/c: found No such file"),
        (["restore", "/nowhere/b", "--check"], EXIT_FAILED, "hub: /nowhere/b: No such file or directory\n"),
        (["restore", "/etc/passwd", "--check"], EXIT_USAGE, "hub: /etc/passwd: line 1: not JSON"),
        (["restore", "/dev/null", "--check"], EXIT_USAGE, "hub: /dev/null: line 1: cut off"),
        (["restore", "/", "--check"], EXIT_USAGE, "is a directory"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(arguments, status, text, capsys):
    """With the exit status that all commands have for it."""
    assert run(*arguments) == status
    assert text in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(config, store, capsys):
    """Before Redis is read."""
    assert run("backup", "/nowhere/b", "--config", config) == EXIT_FAILED
    assert capsys.readouterr().err == "hub: /nowhere/b: No such file or directory\n"


def test_sigterm_leaves_nothing_behind(directory, config, store, monkeypatch):
    """As Ctrl-C does; the exit status is that of both."""

    async def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("hub.backup.save", killed)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert run("backup", directory / "b", "--config", config) == 130
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [each.name for each in directory.iterdir()] == ["hub.toml"]


# Where the data is


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_redis_that_is_away_is_told_as_at_a_start(directory, config, store, command, capsys):
    """One line and exit status 3; no file is made."""
    assert run("backup", directory / "b", "--config", config) == EXIT_OK
    away = write_config(directory, redis={"url": f"unix://{directory}/nobody"})
    capsys.readouterr()
    assert run(command, directory / ("new" if command == "backup" else "b"), "--config", away) == EXIT_BOOT
    err = capsys.readouterr().err
    assert err.startswith(f"hub: Redis at unix:{directory}/nobody: ") and err.count("\n") == 1
    assert not (directory / "new").exists()


@pytest.mark.parametrize("deep", [False, True], ids=["", "long-path"])
def test_the_private_valkey_is_used_where_it_runs_and_else_started(directory, deep, capfd):
    """By its socket, wherever that is; started for the command alone, it keeps what was restored."""
    state = directory / ("d" * 100 if deep else "state")
    config = write_config(directory, state_dir=str(state))
    running = Embedded(Settings(), state)
    try:
        running.wait_ready(10.0)
        with redis.Redis.from_url(running.url) as client:
            fill(client)
            assert run("backup", directory / "b", "--config", config) == EXIT_OK
            assert run("restore", directory / "b", "--replace", "--config", config) == EXIT_OK
            assert client.hget("hub:generation", "number") == b"0"
            client.flushall()
            fill(client)
    finally:
        running.stop()
    assert run("backup", directory / "b", "--config", config) == EXIT_OK
    assert running_url(state) == ""  # ended again
    other = write_config(directory, state_dir=str(directory / "other"))
    assert run("restore", directory / "b", "--config", other) == EXIT_OK
    assert run("backup", directory / "c", "--config", other) == EXIT_OK
    assert "1 channel, 2 publications" in capfd.readouterr().out.splitlines()[-1]


def test_a_hub_that_never_ran_has_nothing_to_back_up(directory, capsys):
    """A backup makes no state directory: it would be in the way of the hub's own user."""
    config = write_config(directory, state_dir=str(directory / "state"))
    assert run("backup", directory / "b", "--config", config) == EXIT_BOOT
    assert "no private Valkey was here; set state_dir or redis.url as the hub has" in capsys.readouterr().err
    assert not (directory / "state").exists() and not (directory / "b").exists()


def test_a_hub_that_starts_is_waited_for(directory, capsys):
    """It holds the directory, and its Valkey does not listen: for as long as a start may take."""
    config = write_config(directory, state_dir=str(directory / "state"), redis={"start_timeout_s": 0.2})
    (directory / "state" / "valkey").mkdir(parents=True)
    with lock_state_dir(directory / "state"):
        assert run("backup", directory / "b", "--config", config) == EXIT_BOOT
    assert "is in use by another hub" in capsys.readouterr().err


def test_another_user_starts_no_valkey_on_the_hubs_data(directory, monkeypatch, capsys):
    """What root writes there the hub could not read; it is told as whom to run the command."""
    config = write_config(directory, state_dir=str(directory / "state"))
    (directory / "state" / "valkey").mkdir(parents=True)
    monkeypatch.setattr(saving.os, "geteuid", lambda: 12345)
    assert run("backup", directory / "b", "--config", config) == EXIT_BOOT
    name = saving.pwd.getpwuid(os.getuid()).pw_name
    assert f"belongs to {name}; run this as {name}" in capsys.readouterr().err
    assert [each.name for each in (directory / "state").iterdir()] == ["valkey"]
    assert not any((directory / "state" / "valkey").iterdir())


# What people see


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_how_far_it_is(directory, config, store, monkeypatch, capsys, terminal):
    """On standard error, for both commands; elsewhere there is nothing."""
    shown = []
    monkeypatch.setattr("rich.status.Status.update", lambda self, text: shown.append(text))
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
        assert run("backup", directory / "b", "--config", config) == EXIT_OK
        assert run("restore", directory / "b", "--replace", "--config", config) == EXIT_OK
    for verb in ("backup", "restore"):
        assert (f"{verb}: 1 channel, 2 publications, 0 mailbox keys" in shown) == terminal
    if not terminal:
        assert not capsys.readouterr().err


def test_files_are_completed_by_the_shell():
    """The argument is a file to the shell."""
    env = clean_environment() | {"_HUB_COMPLETE": "bash_complete", "COMP_WORDS": "hub restore x", "COMP_CWORD": "2"}
    assert run_hub(env=env).stdout.startswith("file,")
