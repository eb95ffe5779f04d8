"""Deploying: which hub is meant, what is said of an outcome, and how long one waits for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import cli
from hub.errors import EXIT_FAILED, EXIT_OK
from hub.relay import Home
from hub.whereabouts import STOPS, Standing, write

HUB = """
import json, os, signal, sys
from hub.relay import Home
from hub.whereabouts import Standing, write
base, config, outcomes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
home = Home.make({"RUNTIME_DIRECTORY": base})
said = Standing(pid=os.getpid(), version="1", config=config)
write(home.directory, said)
def on_signal(*_):
    if outcomes:
        write(home.directory, said.model_copy(update=outcomes))
    elif outcomes == []:
        home.remove()
        os._exit(0)
signal.signal(signal.SIGUSR2, on_signal)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where hubs have their directories; short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="hub-test-", dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        yield Path(directory)


@pytest.fixture
def hub(base: Path) -> Iterator[object]:
    """Start something that says what a hub says, with these outcomes of SIGUSR2."""
    running: list[subprocess.Popen[str]] = []

    def start(outcomes: str) -> int:
        command = [sys.executable, "-c", HUB, str(base), str(base / "hub.toml"), outcomes]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout and running[-1].stdout.readline() == "ready\n"
        return running[-1].pid

    yield start
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()


def run(base: Path, *options: str) -> int:
    return cli.run(["deploy", "--config", str(base / "hub.toml"), *options])


def test_a_good_outcome_is_told(base, hub, capsys) -> None:
    """From which version to which; the pid is the same."""
    pid = hub('{"done": 1, "version": "2"}')
    assert run(base) == EXIT_OK
    assert capsys.readouterr().out == f"version 2 serves in place of 1, pid {pid}\n"


def test_a_bad_outcome_is_told_and_is_the_exit_status(base, hub, capsys) -> None:
    """Each line of the reason; as JSON too."""
    hub('{"failed": 1, "outcome": "limits: found 1\\nauth: found 2"}')
    assert run(base, "--json") == EXIT_FAILED
    told = capsys.readouterr()
    assert told.err == "hub: limits: found 1\nhub: auth: found 2\nhub: version 1 goes on\n"
    assert told.out == '{"ok":false,"version":"1","errors":["limits: found 1","auth: found 2"]}\n'


def test_a_hub_that_stops_does_not_go_on(base, hub, capsys) -> None:
    """It says that it stops, and nothing more."""
    hub(f'{{"failed": 1, "outcome": "{STOPS}"}}')
    assert run(base) == EXIT_FAILED
    assert capsys.readouterr().err == "hub: the hub stops\n"


def test_no_hub_several_hubs_and_the_one_that_is_meant(base, hub, capsys) -> None:
    """None, or one that is not there: an error. Two with the same file: their pids, one of which is chosen."""
    assert run(base) == EXIT_FAILED
    assert re.search(r"^hub: no hub runs with the settings of .*hub\.toml", capsys.readouterr().err)
    pids = [hub('{"done": 1}'), hub('{"done": 1}')]
    assert run(base) == EXIT_FAILED
    err = capsys.readouterr().err
    assert "choose one by --pid" in err and all(str(pid) in err for pid in pids)
    assert run(base, "--pid", str(pids[1])) == EXIT_OK
    assert f"pid {pids[1]}" in capsys.readouterr().out
    assert run(base, "--pid", "1") == EXIT_FAILED
    assert "and pid 1" in capsys.readouterr().err


def test_without_an_outcome_it_gives_up(base, hub, capsys) -> None:
    """In the time that was asked for; the deploy may go on."""
    hub("{}")
    assert run(base, "--timeout", "0.2") == EXIT_FAILED
    assert "no outcome within 0.2 s" in capsys.readouterr().err


def test_a_hub_that_ends_meanwhile_is_told(base, hub, capsys) -> None:
    """Its directory is nobody's any more."""
    hub("[]")
    assert run(base) == EXIT_FAILED
    assert "has ended meanwhile" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can make another user's process")
def test_a_hub_of_another_user_is_not_signalled_for_it(base, capsys) -> None:
    """The directory is ours, the process is not: nobody has one signal the other."""
    home = Home.make({"RUNTIME_DIRECTORY": str(base)})
    process = subprocess.Popen(["sleep", "60"], user=12345)
    try:
        write(home.directory, Standing(pid=process.pid, version="1", config=str(base / "hub.toml")))
        assert run(base) == EXIT_FAILED
        assert "no hub runs" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        home.remove()
