"""Remote: `hub tail` and `hub publish` as they are typed, against a real hub."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import pytest

from hub import cli, options
from hub.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from hub.remote import EXIT_INTERRUPTED

from .hubs import KEY, HubProcess, clean_environment, run_hub


@pytest.fixture(scope="module")
def running() -> Iterator[HubProcess]:
    """One hub of two workers, for all tests that only talk to it."""
    with HubProcess({"workers": 2}) as hub:
        yield hub


def start_tail(*arguments: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[str]:
    """A `hub tail` of its own process; use it as a context manager, which waits for its end."""
    command = [sys.executable, "-m", "hub", "tail", *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=clean_environment())


def publish(hub: HubProcess, channel: str, data: str, *arguments: str) -> int:
    """The command in this process, which is quicker; returns its exit status."""
    return cli.run(["publish", channel, data, "--url", hub.api_url, "--key", KEY, *arguments])


def publish_until(hub: HubProcess, channel: str, *tails: subprocess.Popen[str]) -> None:
    """Publish 0, 1, 2, ... until each tail has ended: that it is subscribed shows in nothing but what it prints."""
    deadline, number = time.monotonic() + 15, 0
    while any(tail.poll() is None for tail in tails):
        if time.monotonic() > deadline:
            for tail in tails:
                tail.kill()
            pytest.fail("a tail did not end")
        assert publish(hub, channel, str(number)) == EXIT_OK
        number += 1
        time.sleep(0.02)  # leaves the machine to the tails


def read_some(stream: IO[str] | None, timeout_s: float) -> str:
    """What comes on a pipe within the time; '' for nothing."""
    assert stream is not None
    return os.read(stream.fileno(), 65_536).decode() if select.select([stream], [], [], timeout_s)[0] else ""


def publish_until_printed(hub: HubProcess, channel: str, tail: subprocess.Popen[str]) -> str:
    """Publish until the tail prints; returns what it printed."""
    deadline = time.monotonic() + 15
    while not (found := read_some(tail.stdout, 0.05)):
        if time.monotonic() > deadline:
            tail.kill()
            pytest.fail("the tail printed nothing")
        assert publish(hub, channel, "1") == EXIT_OK
    return found


# Tail


def test_what_is_published_is_printed_by_every_tail(running: HubProcess) -> None:
    """One line for each message with time, channel and data; in order, to all, whichever worker serves them."""
    both = [start_tail("chat:a", "chat:b", "--url", running.ws_url, "--count", "3") for _ in range(2)]
    with both[0], both[1]:
        publish_until(running, "chat:b", *both)
        for tail in both:
            out, err = tail.communicate(timeout=10)
            rows = [line.split(" ") for line in out.splitlines()]
            assert (tail.returncode, err) == (EXIT_OK, "")
            assert [row[1] for row in rows] == ["chat:b"] * 3
            first = int(rows[0][2])
            assert [int(row[2]) for row in rows] == [first, first + 1, first + 2]
            assert all(time.strptime(row[0].partition(".")[0], "%H:%M:%S") for row in rows)


def test_a_user_of_the_settings_and_a_token_reach_a_members_channel(running: HubProcess) -> None:
    """--user takes the secret from the settings; --json prints the publication with its channel."""
    once = ["--url", running.ws_url, "--count", "1", "--json"]
    by_user = start_tail("members:a", "--user", "ann", "--config", str(running.config_path), *once)
    by_token = start_tail("members:a", "--token", running.token("bob"), *once)
    with by_user, by_token:
        publish_until(running, "members:a", by_user, by_token)
        for tail in (by_user, by_token):
            found = json.loads(tail.communicate(timeout=10)[0])
            assert found["channel"] == "members:a" and isinstance(found["data"], int)


@pytest.mark.parametrize(
    ("channel", "arguments", "line"),
    [
        ("members:a", [], "hub: error 103: subscribe to members:a: permission denied\n"),
        ("nowhere:a", [], "hub: error 102: subscribe to nowhere:a: unknown channel\n"),
        ("chat:a", ["--token", "x.y.z"], "hub: closed with 3500: invalid token\n"),
    ],
)
def test_a_refused_tail_exits_with_1_and_the_codes_text(
    running: HubProcess, channel: str, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed subscription and a final close code; nobody tries again."""
    assert cli.run(["tail", channel, "--url", running.ws_url, *arguments]) == EXIT_FAILED
    assert capsys.readouterr() == ("", line)


def test_a_timeout_ends_a_tail(running: HubProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Quietly with 0; with 1 and a line where --count messages were wanted."""
    arguments = ["tail", "chat:quiet", "--url", running.ws_url, "--timeout", "0.2"]
    assert cli.run(arguments) == EXIT_OK
    assert capsys.readouterr() == ("", "")
    assert cli.run([*arguments, "--count", "2"]) == EXIT_FAILED
    assert capsys.readouterr() == ("", "hub: 0 of 2 messages came within 0.2 s\n")


def test_a_tail_whose_output_is_full_ends_with_one_line(running: HubProcess) -> None:
    """It is no break of the connection, after which it would try again."""
    with open("/dev/full", "wb") as full:
        tail = start_tail("chat:full", "--url", running.ws_url, "--json", stdout=full)
        with tail:
            publish_until(running, "chat:full", tail)
            assert tail.stderr is not None
            said = tail.stderr.read()
    assert (tail.returncode, said) == (EXIT_FAILED, "hub: standard output: No space left on device\n")


def test_ctrl_c_ends_a_tail_quietly_with_130(running: HubProcess) -> None:
    """SIGINT after the first message, as a person would."""
    with start_tail("chat:c", "--url", running.ws_url) as tail:
        publish_until_printed(running, "chat:c", tail)
        tail.send_signal(signal.SIGINT)
        _, err = tail.communicate(timeout=10)
        assert (tail.returncode, err) == (EXIT_INTERRUPTED, "")


def test_a_tail_goes_on_after_a_worker_was_killed() -> None:
    """It says that it lost the hub, comes back to the next worker and prints what is published then."""
    with HubProcess({"workers": 1}) as hub, start_tail("chat:k", "--url", hub.ws_url) as tail:
        publish_until_printed(hub, "chat:k", tail)
        os.kill(hub.worker_pids()[0], signal.SIGKILL)
        lost = read_some(tail.stderr, 10)
        while read_some(tail.stdout, 0):
            pass  # what came before the kill
        assert lost.startswith("hub: closed with 1006: connection lost; trying again in ")
        wait_until_served(hub)
        publish_until_printed(hub, "chat:k", tail)
        tail.send_signal(signal.SIGINT)
        tail.communicate(timeout=10)
        assert tail.returncode == EXIT_INTERRUPTED


def wait_until_served(hub: HubProcess) -> None:
    """Return once a worker answers the server API again."""
    deadline = time.monotonic() + 10
    while publish(hub, "chat:other", "0") != EXIT_OK:
        assert time.monotonic() < deadline, "no worker came back"
        time.sleep(0.05)  # its slot is being forked


# Publish


def test_publish_says_nothing_or_the_reply(running: HubProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """A negative number is data, not an option."""
    assert publish(running, "chat:p", "-5") == EXIT_OK
    assert capsys.readouterr() == ("", "")
    assert publish(running, "chat:p", "[1]", "--json") == EXIT_OK
    assert json.loads(capsys.readouterr().out) == {"result": {}}


def test_publish_reads_standard_input(running: HubProcess) -> None:
    """The key comes from the settings file; what is no JSON is a wrong argument."""
    arguments = ["publish", "chat:p", "-", "--config", str(running.config_path), "--url", running.api_url]
    assert run_hub(*arguments, input='{"from": "stdin"}').returncode == EXIT_OK
    assert run_hub(*arguments, input="{").returncode == EXIT_USAGE


def test_publish_takes_url_and_key_from_the_environment(
    running: HubProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """HUB_API_URL and HUB_API_KEY; an option goes before them."""
    monkeypatch.setenv("HUB_API_URL", running.api_url)
    monkeypatch.setenv("HUB_API_KEY", KEY)
    assert cli.run(["publish", "chat:p", "1"]) == EXIT_OK
    assert cli.run(["publish", "chat:p", "1", "--key", "wrong"]) == EXIT_FAILED
    line = f"hub: {running.api_url} refuses the key (HTTP 401); it must be the api.key of that hub\n"
    assert capsys.readouterr().err == line


def test_a_refused_publish_exits_with_1_and_the_code(running: HubProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """A namespace that the hub does not know; and a hub that is not there."""
    assert publish(running, "nowhere:a", "1") == EXIT_FAILED
    assert capsys.readouterr() == ("", "hub: error 102: unknown channel\n")
    assert publish(running, "nowhere:a", "1", "--json") == EXIT_FAILED
    assert json.loads(capsys.readouterr().out) == {"ok": False, "errors": ["error 102: unknown channel"], "code": 102}
    assert cli.run(["publish", "chat:a", "1", "--key", "k", "--url", "unix:/nowhere/api.sock"]) == EXIT_FAILED
    line = "hub: cannot reach the hub at unix:/nowhere/api.sock: No such file or directory\n"
    assert capsys.readouterr() == ("", line)


# Both


def test_one_settings_file_serves_hub_and_commands_over_unix_sockets() -> None:
    """Where the hub listens, its commands find it; no URL is typed."""
    with tempfile.TemporaryDirectory(prefix="hub-t-") as directory:
        addresses = {"listen": [f"unix:{directory}/hub.sock"], "internal": [f"unix:{directory}/api.sock"]}
        with HubProcess({"workers": 1, **addresses}) as hub:
            with start_tail("chat:u", "--count", "1", "--config", str(hub.config_path)) as tail:
                publish_until(hub, "chat:u", tail)
                assert tail.returncode == EXIT_OK
            assert cli.run(["publish", "chat:u", "1", "--config", str(hub.config_path)]) == EXIT_OK


def test_a_message_cannot_command_the_terminal() -> None:
    """DEL and the C1 controls, which JSON leaves bare, are written as escapes; the JSON stays the same."""
    text = options.write_json({"x": "a\x9b31m\x7fü"})
    assert text == '{"x":"a\\u009b31m\\u007fü"}'
    assert json.loads(text) == {"x": "a\x9b31m\x7fü"}
