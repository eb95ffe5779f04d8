"""Operating: `hub connections`, `hub channels` and `hub disconnect` as they are typed, against a real hub."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from hub import cli, client, operating, orders
from hub.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from hub.operating import Choice, age
from hub.transports import http_stream, socketio, sse, websocket

from .hubs import KEY, HubProcess, clean_environment
from .support import async_test

ODD = "ann\x1b[2J[bold]\n"
"""A user who would clear a terminal, be bold in it and look like two."""


@pytest.fixture(scope="module")
def running() -> Iterator[HubProcess]:
    """One hub of two workers; each test disconnects whom it has connected."""
    with HubProcess({"workers": 2}) as hub:
        yield hub


class People:
    """Clients of one test, each one user's WebSocket with its channels."""

    def __init__(self, hub: HubProcess, stack: contextlib.ExitStack) -> None:
        self.hub = hub
        self._stack = stack
        self.sockets: dict[str, ClientConnection] = {}

    def join(self, user: str, *channels: str) -> str:
        """Returns the client id."""
        socket = self._stack.enter_context(connect(self.hub.ws_url))
        token = self.hub.token(user) if user else ""
        socket.send(json.dumps({"id": 1, "connect": {"token": token}}))
        name = json.loads(socket.recv(10))["connect"]["client"]
        for number, channel in enumerate(channels, 2):
            socket.send(json.dumps({"id": number, "subscribe": {"channel": channel}}))
            assert "subscribe" in json.loads(socket.recv(10))
        self.sockets[name] = socket
        return name


@pytest.fixture
def people(running: HubProcess) -> Iterator[People]:
    """Nobody yet, and nobody of the last test either."""
    with contextlib.ExitStack() as stack:
        yield People(running, stack)
    records = [None]
    while records:  # a closed socket is a client until the hub has read its end
        records = run(running, "connections", "--json")[1]


def run(hub: HubProcess, *arguments: str) -> tuple[int, list[dict], str]:
    """Exit status, the JSON records of the lines, and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run([*arguments, "--url", hub.api_url, "--key", KEY])
    return status, [json.loads(line) for line in out.getvalue().splitlines() if "--json" in arguments], err.getvalue()


def names(hub: HubProcess, *arguments: str) -> set[str]:
    """Of the connections that are listed."""
    status, records, err = run(hub, "connections", "--json", *arguments)
    assert (status, err) == (EXIT_OK, "")
    return {record["client"] for record in records}


# Connections


def test_connections_are_listed_as_they_are_chosen(people: People):
    """By user, client, channel, address, network and wire; all that are given must hold."""
    hub = people.hub
    ann, other, nobody = people.join("ann", "chat:a", "chat:b"), people.join("ann"), people.join("", "chat:a")
    assert names(hub) == {ann, other, nobody}
    assert names(hub, "--user", "ann") == {ann, other}
    assert names(hub, "--client", nobody) == {nobody}
    assert names(hub, "--channel", "chat:a") == {ann, nobody}
    assert names(hub, "--channel", "chat:a", "--user", "ann") == {ann}
    assert names(hub, "--address", "127.0.0.1") == names(hub, "--address", "127.9.9.9/8") == {ann, other, nobody}
    assert names(hub, "--address", "10.0.0.0/8") == names(hub, "--address", "::1") == set()
    assert names(hub, "--wire", "websocket", "--user", "ann") == {ann, other}
    assert names(hub, "--wire", "sse") == set()
    _, [record], _ = run(hub, "connections", "--json", "--client", ann)
    assert (record["user"], record["transport"], record["num_channels"]) == ("ann", "websocket", 2)
    assert set(record["channels"]) == {"chat:a", "chat:b"}


def test_a_list_goes_on_where_it_was_cut(people: People):
    """--limit says behind whom; --after takes that up, and each comes once."""
    everybody = {people.join("") for _ in range(5)}
    found: list[str] = []
    after: list[str] = []
    while True:
        status, records, err = run(people.hub, "connections", "--json", "--limit", "2", *after)
        assert status == EXIT_OK
        found += [record["client"] for record in records]
        if not err:
            break
        assert err == f"hub: there may be more; go on with --after {found[-1]}\n"
        after = ["--after", found[-1]]
    assert len(found) == len(everybody) and set(found) == everybody


@async_test
async def test_pages_are_asked_for_until_there_is_enough():
    """What the API can't choose is chosen of whole pages; without a choice no more is asked than is wanted."""
    pages = {
        "": {"connections": {"a": {"transport": "sse"}, "b": {"transport": "websocket"}}, "next": "b"},
        "b": {"connections": {"c": {"transport": "sse"}, "d": {"transport": "sse"}}, "silent_nodes": ["w"]},
    }
    asked: list[dict] = []

    async def ask(method: str, params: dict) -> dict:
        asked.append(params)
        return pages[params["after"]]

    async def listed(wire: str, most: float) -> list[tuple[str, str, frozenset]]:
        asked.clear()
        parts = [part async for part in operating._connection_parts(ask, {}, Choice(None, wire), "", most)]
        return [("".join(record["client"] for record in part.records), part.more, part.silent) for part in parts]

    silent = frozenset(["w"])
    assert await listed("sse", 2) == [("a", "", frozenset()), ("c", "there may be more; go on with --after c", silent)]
    assert [params["limit"] for params in asked] == [1000, 1000]
    assert await listed("sse", 3) == [("a", "", frozenset()), ("cd", "", silent)]
    assert await listed("", 2) == [("ab", "there may be more; go on with --after b", frozenset())]
    assert [params["limit"] for params in asked] == [2]
    assert await listed("", float("inf")) == [("ab", "", frozenset()), ("cd", "", silent)]


def test_a_table_is_for_terminals_and_tabs_are_for_pipes(
    people: People, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """In both nothing that a client chose moves the cursor, is markup or looks like another line."""
    people.join(ODD, *(f"chat:{i}" for i in range(5)))
    arguments = ["connections", "--url", people.hub.api_url, "--key", KEY]
    assert cli.run(arguments) == EXIT_OK
    [line] = capsys.readouterr().out.splitlines()
    cells = line.split("\t")
    assert cells[1:4] == [r"ann\x1b[2J[bold]\n", "127.0.0.1", "websocket"]
    assert cells[5].endswith(" and 2 more") and cells[5].count("chat:") == 3
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(arguments) == EXIT_OK
    shown = capsys.readouterr().out
    assert r"ann\x1b[2J[bold]\n" in shown and "\x1b[2J" not in shown
    assert [word for word in operating.CONNECTION_HEAD if word in shown] == list(operating.CONNECTION_HEAD)


def test_watching_goes_on_until_ctrl_c(people: People):
    """Records come again and again; 130 is the end."""
    name = people.join("ann")
    command = [sys.executable, "-m", "hub", "connections", "--json", "--watch", "0.2", "--url", people.hub.api_url]
    environment = clean_environment() | {"HUB_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as watching:
        for _ in range(3):
            assert json.loads(watching.stdout.readline())["client"] == name
        watching.send_signal(signal.SIGINT)
        assert (watching.wait(30), watching.stderr.read()) == (130, b"")


def test_the_wires_are_those_that_connections_name():
    """A wire more in the hub is a value more here."""
    kinds = {*http_stream.KINDS.values(), sse.EventStreamConnection.kind, websocket.WebSocketConnection.kind}
    assert {*kinds, socketio.SocketIOConnection.kind} == set(operating.WIRES)
    assert operating.MAX_REASON_BYTES == orders.MAX_REASON_BYTES


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.9, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (93_784, "1d 2h")]
)
def test_an_age_has_two_units(seconds: float, text: str):
    assert age(seconds) == text


# Channels


def test_channels_are_listed_by_their_subscribers(people: People):
    """Those with the most first, over both workers; a pattern chooses, a limit cuts and says so."""
    hub = people.hub
    for channels in (("chat:a", "chat:b"), ("chat:b",), ("chat:b", "ticker:X"), ("chat:a",)):
        people.join("", *channels)
    status, records, err = run(hub, "channels", "--json")
    assert (status, err) == (EXIT_OK, "")
    assert [(record["channel"], record["num_clients"]) for record in records] == [
        ("chat:b", 3),
        ("chat:a", 2),
        ("ticker:X", 1),
    ]
    assert [record["channel"] for record in run(hub, "channels", "t*", "--json")[1]] == ["ticker:X"]
    status, records, err = run(hub, "channels", "--json", "--limit", "1")
    assert ([record["channel"] for record in records], err) == (["chat:b"], "hub: 3 channels; --limit shows more\n")


def test_a_bad_pattern_is_refused_with_the_apis_code(running: HubProcess):
    status, _, err = run(running, "channels", "a b")
    assert status == EXIT_FAILED and err.startswith("hub: error 107: ")


# Disconnect


def test_one_connection_is_ended_without_a_question(people: People, capsys: pytest.CaptureFixture[str]):
    """With the code and reason that were given; it says how many on how many workers."""
    name, other = people.join("ann"), people.join("ann")
    arguments = ["disconnect", "--client", name, "--code", "4001", "--reason", "bye"]
    assert cli.run([*arguments, "--url", people.hub.api_url, "--key", KEY]) == EXIT_OK
    assert capsys.readouterr() == ("1 connection on 1 worker\n", "")
    with pytest.raises(ConnectionClosed) as closed:
        people.sockets[name].recv(10)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "bye")
    assert names(people.hub) == {other}


def test_many_are_ended_only_when_somebody_says_yes(people: People, monkeypatch: pytest.MonkeyPatch):
    """On a terminal it asks; elsewhere --yes is needed. Whoever is excepted stays, and does not count."""
    hub, ours = people.hub, [people.join("ann") for _ in range(3)]
    status, _, err = run(hub, "disconnect", "--user", "ann")
    assert status == EXIT_USAGE and "this ends 3 connections; give --yes" in err
    answers = io.StringIO("n\ny\n")
    answers.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", answers)
    status, _, err = run(hub, "disconnect", "--user", "ann", "--except", ours[0])
    assert status == EXIT_FAILED and "End 2 connections? [y/N]: " in err and "hub: nobody was disconnected" in err
    assert names(hub) == set(ours)
    assert run(hub, "disconnect", "--user", "ann", "--except", ours[0])[0] == EXIT_OK
    assert names(hub) == {ours[0]}
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    people.join("ann")
    status, records, _ = run(hub, "disconnect", "--user", "ann", "--yes", "--json")
    assert (status, records[0]["num_clients"]) == (EXIT_OK, 2) and records[0]["num_nodes"] in (1, 2)
    assert names(hub) == set()


def test_nobody_to_disconnect_is_a_failure(running: HubProcess):
    status, [record], _ = run(running, "disconnect", "--user", "ghost", "--json")
    assert (status, record) == (EXIT_FAILED, {"num_clients": 0, "num_nodes": 0})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["disconnect"], "give --user, --client or --session"),
        (["disconnect", "--user", "a", "--code", "1000"], "1000 is not in the range 3000<=x<=4999"),
        (["disconnect", "--user", "a", "--reason", "ü" * 61], "found 122 bytes; allowed: 120"),
        (["connections", "--address", "10.0.0"], "found '10.0.0'; allowed: an address, or a network such as"),
        (["connections", "--channel", "a b"], "found 'a b'; allowed: 1 to 255 of"),
        (["connections", "--wire", "smoke"], "'smoke' is not one of 'websocket', "),
        (["connections", "--watch", "0"], "0 is not in the range x>=0.2"),
        (["channels", "--limit", "0"], "0 is not in the range x>=1"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run([*arguments, "--url", "http://127.0.0.1:1/api", "--key", "k"]) == EXIT_USAGE
    assert text in capsys.readouterr().err.replace("\n", " ")


# A hub that does not answer wholly


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (["connections", "--json"], {"connections": {}}),
        (["channels", "--json"], {"channels": {}}),
        (["disconnect", "--client", "c", "--json"], {"num_clients": 1, "num_nodes": 1}),
    ],
)
def test_workers_that_did_not_answer_are_told_and_fail(
    command: list[str], result: dict, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """What is incomplete must not look complete."""

    async def ask(*_: object) -> dict:
        return {"result": {**result, "silent_nodes": ["w2", "w1"]}}

    monkeypatch.setattr(client, "ask", ask)
    assert cli.run([*command, "--url", "http://127.0.0.1:1/api", "--key", "k"]) == EXIT_FAILED
    assert capsys.readouterr().err == "hub: 2 workers did not answer within a second: w1, w2\n"


@pytest.mark.parametrize("command", [["connections"], ["channels"], ["disconnect", "--user", "a"]])
def test_a_hub_that_is_not_there_exits_with_1(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.run([*command, "--url", "unix:/nowhere/api.sock", "--key", "k"]) == EXIT_FAILED
    assert capsys.readouterr().err == "hub: cannot reach the hub at unix:/nowhere/api.sock: No such file or directory\n"
