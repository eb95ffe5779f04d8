"""The benches: the population counts what happened, and every bench runs from start to end on small figures."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from bench.rig import report
from bench.rig.hub import LIMITS
from bench.rig.population import LINE, STAMP, Load, population
from bench.rig.processes import BenchError, cpu_s
from bench.rig.servers import BROADCAST
from hub.sections import LimitSettings

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 10.0
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)

pytestmark = pytest.mark.needs("cc", "apt-get install gcc libc6-dev")
two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a bench needs two CPUs")


class Server:
    """A listener whose clients the test serves by hand."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(TIMEOUT_S)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        peer, _ = self.listener.accept()
        peer.settimeout(TIMEOUT_S)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.accepted.append(peer)
        return peer

    def accept_client(self, answer: bytes = ANSWER) -> socket.socket:
        """Take a client through its handshake."""
        peer = self.accept()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += peer.recv(1)
        peer.sendall(answer)
        return peer

    def close(self) -> None:
        for peer in (self.listener, *self.accepted):
            peer.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as found:
        yield found


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A frame as a server sends it."""
    size = len(payload)
    head = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    return bytes([first]) + head + payload


def read_frame(peer: socket.socket) -> tuple[int, bytes]:
    """One short masked frame of a client: its first byte and its payload."""
    first, length = read_exactly(peer, 2)
    assert length & 0x80, "a client masks its frames"
    mask, payload = read_exactly(peer, 4), read_exactly(peer, length & 0x7F)
    return first, bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def read_exactly(peer: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        chunk = peer.recv(size - len(found))
        assert chunk, "the population closed the connection"
        found += chunk
    return found


def read_line(peer: socket.socket) -> bytes:
    """One line that was published, without its end."""
    found = b""
    while not found.endswith(b"\n"):
        found += read_exactly(peer, 1)
    return found[:-1]


def processed(peer: socket.socket) -> None:
    """Return once the population has read everything sent to `peer` so far: it answers a ping behind it."""
    peer.sendall(frame(b"", 0x89))
    assert read_frame(peer) == (0x8A, b"")


def test_messages_are_counted_however_the_reads_cut_them(server: Server):
    """Three clients get the same seven messages: joined in one write, byte by byte, one by one; all count seven."""
    messages = [b"a", b"b" * 125, b"c" * 126, b"d" * 5000, b"", b"e" * 200, b"f"]
    wire = b"".join(map(frame, messages))
    with population(Load(server.address), 3) as clients:
        joined, split, single = (server.accept_client() for _ in range(3))
        clients.wait_ready(TIMEOUT_S)
        joined.sendall(wire)
        for i in range(len(wire)):
            split.sendall(wire[i : i + 1])
        for message in messages:
            single.sendall(frame(message))
        for peer in (joined, split, single):
            processed(peer)
        counts = clients.stats()
    assert (counts.messages, counts.least, counts.most) == (21, 7, 7)
    assert counts.payload_bytes == 3 * sum(map(len, messages))


def test_the_least_and_the_most_differ_when_somebody_missed_a_message(server: Server):
    """One of two clients gets nothing: the sum alone would not show it, least and most do; a reset forgets both."""
    with population(Load(server.address), 2) as clients:
        lucky, unlucky = server.accept_client(), server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        lucky.sendall(frame(b"1") + frame(b"2"))
        processed(lucky)
        processed(unlucky)
        counts = clients.stats()
        clients.reset()
        assert (counts.messages, counts.least, counts.most) == (2, 0, 2)
        assert clients.stats().messages == 0


def test_a_message_in_fragments_counts_once(server: Server):
    """Three frames of one message, a ping between them, are one message."""
    with population(Load(server.address), 1) as clients:
        peer = server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        peer.sendall(frame(b"a", 0x01) + frame(b"p", 0x89) + frame(b"b", 0x00) + frame(b"c", 0x80))
        assert read_frame(peer) == (0x8A, b"p")
        processed(peer)
        assert clients.stats().messages == 1


def test_clients_greet_wait_for_their_answer_and_answer_pings(server: Server):
    """Each client sends its texts, is ready at the wanted reply only, and answers both kinds of ping, uncounted."""
    load = Load(server.address, sends=("one", "two"), ready_text='"subscribe"')
    with population(load, 1) as clients:
        # Frames right behind the handshake's answer, in the same segment, must not be lost.
        peer = server.accept_client(ANSWER + frame(b'{"id":1,"connect":{}}'))
        assert [read_frame(peer), read_frame(peer)] == [(0x81, b"one"), (0x81, b"two")]
        processed(peer)
        assert clients.stats().ready == 0
        peer.sendall(frame(b'{"id":2,"subscribe":{}}'))
        clients.wait_ready(TIMEOUT_S)
        peer.sendall(frame(b"{}"))
        assert read_frame(peer) == (0x81, b"{}")
        counts = clients.stats()
    assert (counts.messages, counts.ready) == (0, 1)


def test_the_closed_loop_publishes_no_more_than_may_be_in_flight(server: Server):
    """With 2 in flight the third message is published when EVERY client has the first, and each carries its time."""
    with (
        contextlib.closing(Server()) as control,
        ThreadPoolExecutor(1) as pool,
        population(Load(server.address, publish=control.address), 2) as clients,
    ):
        publisher = control.accept()
        one, other = server.accept_client(), server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        clients.template(b"{" + STAMP + b"}\n")
        outcome = pool.submit(clients.run, 3, 2, 1, TIMEOUT_S)
        messages = [frame(read_line(publisher)) for _ in range(2)]
        one.sendall(messages[0])
        processed(one)
        publisher.setblocking(False)
        with pytest.raises(BlockingIOError):
            publisher.recv(1)
        publisher.settimeout(TIMEOUT_S)
        other.sendall(messages[0])
        messages.append(frame(read_line(publisher)))
        one.sendall(b"".join(messages[1:]))
        other.sendall(b"".join(messages[1:]))
        counts = outcome.result(TIMEOUT_S)
    assert counts.messages == counts.latencies == 6
    assert 0 < counts.p50_us <= counts.max_us < TIMEOUT_S * 1e6


def test_a_message_too_many_fails_the_run(server: Server):
    """A server that sends what nobody published does not pass for a fast one."""
    with (
        contextlib.closing(Server()) as control,
        ThreadPoolExecutor(1) as pool,
        population(Load(server.address, publish=control.address), 2) as clients,
    ):
        publisher = control.accept()
        one, other = server.accept_client(), server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        clients.template(b"message\n")
        outcome = pool.submit(clients.run, 1, 1, 1, TIMEOUT_S)
        read_line(publisher)
        one.sendall(frame(b"message") * 2)
        processed(one)
        other.sendall(frame(b"message"))
        with pytest.raises(BenchError, match=r"received from 1 to 2.*excess=1"):
            outcome.result(TIMEOUT_S)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (lambda server: server.accept_client(b"HTTP/1.1 503 Busy\r\n\r\n"), "answered HTTP/1.1 503 Busy"),
        (lambda server: server.accept_client(ANSWER.replace(b"s3p", b"xxx")), "wrong Sec-WebSocket-Accept"),
        (
            lambda server: server.accept_client().sendall(frame(b"\x0b\xc0", 0x88)),
            "closed by the server with code 3008",
        ),
        (lambda server: server.accept_client().close(), "closed by the server"),
        (lambda server: server.accept_client().sendall(b"\x81\x81mask1"), "a masked frame"),
        (
            lambda server: server.accept_client().sendall(frame(b'{"id":2,"error":{"message":"away\n"}}')),
            re.escape('connection 0: refused: {"id":2,"error":{"message":"away\n"}}'),
        ),
    ],
)
def test_a_client_that_is_lost_ends_the_measurement(server: Server, behaviour, reason: str):
    """Refused, closed, cut, or sent what no server may send: an error with the reason, and no figure.

    The answer that it waits for may be the one that refuses it.
    """
    load = Load(server.address, ready_text='"id":2', refused='"error":')
    with population(load, 1) as clients:
        behaviour(server)
        with pytest.raises(BenchError, match=reason):
            clients.wait_ready(TIMEOUT_S)


def test_cpu_time_of_another_process_is_that_of_its_own_clock():
    """The kernel's clock of a process by pid tells what the process itself reads, to a few milliseconds."""
    sum(range(2_000_000))
    assert cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)
    with pytest.raises(OSError):
        cpu_s(2**22 + 1)  # beyond the kernel's largest pid


def test_ratios_are_paired_round_by_round():
    """Machine twice as slow in the second round: the ratio of medians would hide that the servers never differed."""
    assert report.paired([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]) == (2.0, 2.0, 2.0)
    assert report.spread([3.0, 1.0, 2.0]).text(1) == "2.0 (1.0–3.0)"


def bench(name: str, *arguments: str) -> str:
    """Run one bench to its end; its standard output."""
    command = [sys.executable, str(ROOT / "bench" / name), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@two_cpus
def test_the_fanout_bench_prints_its_table():
    """Every server that is here delivers everything; each has its row, or a line that says how to install it."""
    text = bench("fanout.py", "--subscribers", "20", "--messages", "50", "--rounds", "1")
    for name in BROADCAST:
        assert text.count(f"| {name} ") == 2 or f"Not measured: {name} (to install it: " in text, text
    for name in ("hub", "tornado", "tornado-uvloop", "c-loop"):
        assert text.count(f"| {name} ") == 2, text
    assert "× c-loop" in text and "1 in flight" in text and "2 in flight" in text
    assert "valkey" in text


def test_clients_send_their_own_line(server: Server):
    """Each client's line stands in its texts where LINE is; a line may have newlines in it."""
    load = Load(server.address, sends=(f"<{LINE}|{LINE}>", "same"), lines=("a\nb", ""))
    with population(load, 2) as clients:
        found = [[read_frame(peer)[1] for _ in range(2)] for peer in (server.accept_client(), server.accept_client())]
        clients.wait_ready(TIMEOUT_S)
    assert found == [[b"<a\nb|a\nb>", b"same"], [b"<|>", b"same"]]


@pytest.mark.parametrize("second", [b'{"id":2,"is":"b"}', b'{"id":2,"is":"a"}'])
def test_a_client_is_ready_at_its_own_answer_only(server: Server, second: bytes):
    """Each client's answer is compared with its own line: one that is told another's ends the measurement."""
    load = Load(server.address, ready_text='"id":2', answers=('"is":"a"', '"is":"b"'))
    with population(load, 2) as clients:
        peers = [server.accept_client(), server.accept_client()]
        peers[0].sendall(frame(b'{"id":1,"is":"b"}') + frame(b'{"id":2,"is":"a"}'))
        processed(peers[0])
        peers[1].sendall(frame(second))
        if b'"b"' in second:
            assert clients.wait_ready(TIMEOUT_S).ready == 2
        else:
            with pytest.raises(BenchError, match="connection 1: another answer than its own"):
                clients.wait_ready(TIMEOUT_S)


def test_a_frame_holds_as_many_messages_as_it_holds_the_mark(server: Server):
    """With `each`, three in one frame are three, a reply without the mark is none."""
    with population(Load(server.address, each="MSG "), 1) as clients:
        peer = server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        peer.sendall(frame(b"MSG 1\r\nMSG 2\r\nMSG 3\r\n") + frame(b"+OK\r\n"))
        processed(peer)
        assert clients.stats().messages == 3


def test_a_batch_is_complete_when_every_client_has_its_part(server: Server):
    """Two messages of each batch for everybody: the next batch goes out behind the second, not behind the first."""
    with (
        contextlib.closing(Server()) as control,
        ThreadPoolExecutor(1) as pool,
        population(Load(server.address, publish=control.address, publish_hello="HELLO\n"), 1) as clients,
    ):
        publisher = control.accept()
        peer = server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        clients.template(b"batch\n")
        outcome = pool.submit(clients.run, 2, 1, 2, TIMEOUT_S)
        assert [read_line(publisher), read_line(publisher)] == [b"HELLO", b"batch"]
        peer.sendall(frame(b"one"))
        processed(peer)
        publisher.setblocking(False)
        with pytest.raises(BlockingIOError):
            publisher.recv(1)
        publisher.settimeout(TIMEOUT_S)
        peer.sendall(frame(b"two"))
        assert read_line(publisher) == b"batch"
        peer.sendall(frame(b"three") + frame(b"four"))
        assert outcome.result(TIMEOUT_S).messages == 4


def test_the_open_loop_waits_for_nobody_and_counts_from_when_a_message_was_due(server: Server):
    """Three messages leave though none has arrived; held back for 0.2 s, the first counts as at least so late."""
    with (
        contextlib.closing(Server()) as control,
        ThreadPoolExecutor(1) as pool,
        population(Load(server.address, publish=control.address), 1) as clients,
    ):
        publisher = control.accept()
        peer = server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        clients.template(b"{" + STAMP + b"}\n")
        outcome = pool.submit(clients.pace, 3, 10.0, TIMEOUT_S)
        messages = [read_line(publisher) for _ in range(3)]
        peer.sendall(b"".join(map(frame, messages)))
        counts = outcome.result(TIMEOUT_S)
    due = [int(message[6:25]) for message in messages]
    assert [later - sooner for sooner, later in itertools.pairwise(due)] == [100_000_000, 100_000_000]
    assert counts.messages == 3 and counts.max_us >= 200_000


def test_clients_post_again_when_they_have_what_their_room_posted(server: Server):
    """A room of two, two posts each: the second post comes behind the two messages of the first turn."""
    load = Load(server.address, post="{" + STAMP.decode() + ',"from":"' + LINE + '"}', lines=("a", "b"))
    with ThreadPoolExecutor(1) as pool, population(load, 2) as clients:
        room = [server.accept_client() for _ in range(2)]
        clients.wait_ready(TIMEOUT_S)
        outcome = pool.submit(clients.post, 2, 2, TIMEOUT_S)
        for _ in range(2):
            posts = [read_frame(peer)[1] for peer in room]
            assert [json.loads(post)["from"] for post in posts] == ["a", "b"]
            for peer in room:
                peer.sendall(frame(posts[0]) + frame(posts[1]))
        counts = outcome.result(TIMEOUT_S)
    assert counts.messages == counts.latencies == 8


def test_the_stalled_are_not_waited_for(server: Server):
    """One of two stalls: a run ends with the other one, and the least counts it alone."""
    with (
        contextlib.closing(Server()) as control,
        ThreadPoolExecutor(1) as pool,
        population(Load(server.address, publish=control.address), 2) as clients,
    ):
        publisher = control.accept()
        _, reader = server.accept_client(), server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        clients.stall(1)
        clients.template(b"message\n")
        outcome = pool.submit(clients.run, 1, 1, 1, TIMEOUT_S)
        read_line(publisher)
        reader.sendall(frame(b"message"))
        counts = outcome.result(TIMEOUT_S)
    assert (counts.messages, counts.least, counts.most) == (1, 1, 1)


@two_cpus
@pytest.mark.parametrize(
    "words",
    [
        "pace.py --subscribers 20 --rate 1000 --seconds 0.2 --servers hub c-loop",
        "ticker.py --work zipf --symbols 30 --subscribers 10 --batches 3 --servers hub c-topics",
        "chat.py --rooms 4 --members 3 --posts 2 --servers hub c-topics",
        "slow.py --subscribers 20 --stalled 1 --rate 2000 --seconds 0.2",
        "ingest.py --messages 100 --batch 50 --turns 2",
        "history.py --messages 100 --channels 7 --turns 2",
        "workers.py --workers 1 2 --subscribers 20 --messages 5",
        "recovery.py --connections 30 --workers 2 --channels 3 --missed 2",
        "wires.py --subscribers 20 --messages 5",
        "tokens.py --tokens 5",
    ],
)
def test_every_work_runs_from_start_to_end(words: str):
    """Small figures, one round: a table with a row for everybody who takes part."""
    text = bench(*words.split(), "--rounds", "1")
    for name in words.partition("--servers ")[2].split():
        assert f"| {name} " in text, text
    assert "| ---" in text


@two_cpus
def test_many_counts_all_connections_of_all_workers_and_what_has_reached_them():
    """From one process of clients; those of the workers are all of them together."""
    text = bench(*["many.py", "--connections", "60", "--workers", "2", "--watch", "0.1", "--messages", "2"])
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    rows = {row[1]: row[2] for row in cells}
    assert rows["connections, each subscribed"] == "60"
    workers, emptiest, fullest = re.split(r"[;,] ", rows["workers; connections of the emptiest, of the fullest"])
    assert workers == "2" and int(emptiest) + int(fullest) == 60
    assert float(rows["the last one has it in"].split()[0]) >= float(
        rows["one message to all, of 2: half have it in"].split()[0]
    )


@pytest.fixture
def many(monkeypatch) -> ModuleType:
    """The bench as a module; it has no patience."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    module = importlib.import_module("many")
    monkeypatch.setattr(module, "ARRIVAL_TIMEOUT_S", 0.0)
    return module


class Group:
    """A population of three, as far as `many` knows it: so many of them have the message, `most` times."""

    def __init__(self, many: ModuleType, reached: int, most: int = 1) -> None:
        zeros = dict.fromkeys(many.Counts._fields, 0)
        known = {"event": "stats", "connections": 3, "messages": reached, "least": int(reached >= 3), "most": most}
        self.seen = many.Counts(**zeros | known)
        self.silence = many.BenchSilence("the population said nothing")

    def run(self, batches: int, in_flight: int, timeout_s: float) -> NamedTuple:
        if not self.seen.least:
            raise self.silence
        return self.seen

    def stats(self) -> NamedTuple:
        return self.seen

    def reset(self) -> None: ...


@pytest.mark.parametrize(
    ("reached", "words"),
    [
        ((3, 1, 3, 0), "5 clients after 0 s: 2 of group 1, 3 of group 3"),
        ((2, 3, 3, 3), "1 clients after 0 s: 1 of group 0"),
    ],
)
def test_many_says_how_many_of_which_clients_a_message_has_not_reached(many, reached, words):
    """Of all groups, not of the first one alone, and of the publisher's own too."""
    with pytest.raises(many.BenchError, match=f"^a message has not reached {words}$"):
        many._tell_once([Group(many, each) for each in reached])
    assert len(many._tell_once([Group(many, 3), Group(many, 3)])) == 2
    with pytest.raises(many.BenchError, match="twice"):
        many._tell_once([Group(many, 3), Group(many, 4, 2)])


def test_what_the_hub_has_counted_stands_behind_an_error_of_the_bench(many, monkeypatch):
    """What has grown of the counters that explain a loss, over all workers; or that the hub can't be asked any more."""
    text = (
        'hub_dropped_total{cause="slow",worker="0"} %d\nhub_dropped_total{cause="slow",worker="1"} 2.0\n'
        "hub_deliveries_total %d\nhub_gaps_total 7.0\n"
    )
    answers = [text % (1, 1), text % (4, 9)]
    monkeypatch.setattr(many.counters.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(answers.pop(0).encode()))
    explained = many._explained(SimpleNamespace(metrics="http://hub/metrics"))
    with pytest.raises(many.BenchError, match=r'^missed; hub_dropped_total\{cause="slow"\} \+3$'), explained:
        raise many.BenchError("missed")


def test_the_summary_makes_its_table_and_its_picture(tmp_path, monkeypatch):
    """Of two outcomes of one work the newer counts; what was never run is left out; the picture is XML."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    summary = importlib.import_module("summary")
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    for day, us in (("2020-01-01", 9.0), ("2020-01-02", 4.0)):
        slots = {name: [{"server_us": us}, {"server_us": us}] for name in ("hub", "c-loop", "bun")}
        outcome = {"in_flight": {"1": slots}, "machine": {"cpus": 2, "cpu": "a <CPU>", "kernel": "6"}}
        (tmp_path / f"{day}-broadcast-1000.json").write_text(json.dumps(outcome))
    assert [line.split("|")[2].strip() for line in summary.summary_table().splitlines()[2:]] == ["4.00"] * 3
    goals = " ".join(summary.must_reach().split())
    assert "≤ 1.25 × c-loop | 1.00 (1.00–1.00) | yes" in goals and "Redis" not in goals
    assert ElementTree.fromstring(summary.picture()).tag.endswith("svg")


def test_socket_io_is_compared_with_the_hubs_own_protocol_and_with_its_peers(tmp_path, monkeypatch):
    """Ratios of one round each; the hub is not asked to beat itself."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    summary = importlib.import_module("summary")
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    us = {"hub": [4.0, 8.0], "hub-socketio": [5.0, 10.0], "socket.io": [10.0, 18.0], "python-socketio": [30.0, 60.0]}
    slots = {name: [{"server_us": one} for one in found] for name, found in us.items()}
    outcome = {"in_flight": {"1": slots}, "machine": {"cpus": 2, "cpu": "a CPU", "kernel": "6"}}
    (tmp_path / "2020-01-01-broadcast-1000.json").write_text(json.dumps(outcome))
    cells = [[cell.strip() for cell in line.split("|")] for line in summary.must_reach().splitlines()[2:]]
    assert [row[2:5] for row in cells if "Socket.IO" in row[1]] == [
        ["≤ 1.3 × hub's own protocol", "1.25 (1.25–1.25)", "yes"],
        ["≥ 2 times less than socket.io", "1.90 (1.80–2.00)", "**no**"],
        ["≥ 8 times less than python-socketio", "6.00 (6.00–6.00)", "**no**"],
    ]
    assert not any("× hub-socketio" in row[2] for row in cells)


@pytest.mark.parametrize(("lost", "findings", "cell"), [(0, [], "yes"), (2, [], "**no**"), (0, ["error"], "**no**")])
def test_a_single_lost_event_misses_the_goal(tmp_path, monkeypatch, lost, findings, cell):
    """So does an error in the hub's log."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    summary = importlib.import_module("summary")
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    groups = {"polling": {"lost": 0, "gone": 0}, "polling, npm": {"lost": lost, "gone": 0}}
    arguments = {"clients": 1000, "events": 100, "workers": 4}
    wires = {"polling": {"groups": groups, "findings": findings}}
    outcome = {"arguments": arguments, "machine": {}, "faults": ["lost", "gone"], "wires": wires}
    (tmp_path / "2020-01-01-sessions.json").write_text(json.dumps(outcome))
    (row,) = [[cell.strip() for cell in line.split("|")] for line in summary.must_reach().splitlines()[2:]]
    assert row[1] == "1,000 Socket.IO clients × 100 events, 4 workers, polling"
    assert (row[4], row[6]) == (cell, "`make wires`")


def test_one_storm_that_asks_for_each_client_misses_the_goal(tmp_path, monkeypatch):
    """Of the recovery's counts the highest decides, and a CPU ratio is formed inside a round."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    summary = importlib.import_module("summary")
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    plain = [{"worker_us": 50.0}, {"worker_us": 100.0}, {"worker_us": 50.0}]
    storms = {
        "plain": plain,
        "back": [{"worker_us": storm["worker_us"] * 1.25, "most_reads": 0, "subscribes": 0.0} for storm in plain],
        "respawned": [{"worker_us": 70.0, "most_reads": reads, "subscribes": 1.0} for reads in (1, 1, 150)],
    }
    outcome = {"arguments": {"connections": 15000}, "works": {"1 worker, 100 channels": storms}}
    (tmp_path / "2020-01-01-recovery.json").write_text(json.dumps(outcome))
    cells = [[cell.strip() for cell in line.split("|")] for line in summary.must_reach().splitlines()[2:]]
    assert [(row[3], row[4]) for row in cells] == [
        ("0.00 (0.00–0.00)", "yes"),
        ("0.00 (0.00–0.00)", "yes"),
        ("1.25 (1.25–1.25)", "yes"),
        ("1.00 (1.00–150.00)", "**no**"),
        ("2.00 (2.00–151.00)", "**no**"),
        ("1.40 (0.70–1.40)", "**no**"),
    ]


def test_a_connection_must_be_small_with_every_limit_on_too(tmp_path, monkeypatch):
    """The row is there where it was measured."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    summary = importlib.import_module("summary")
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    own = {
        name: {"connections": 9, "cpu_ms_per_s": 20.0, "pss_bytes": kb * 1024}
        for name, kb in (("hub", 1), ("hub-limits", 3))
    }
    for day, names in (("2020-01-01", ["hub"]), ("2020-01-02", ["hub", "hub-limits"])):
        outcome = {"servers": {name: own[name] for name in names}, "machine": {}}
        (tmp_path / f"{day}-idle-heartbeats.json").write_text(json.dumps(outcome))
        cells = [[cell.strip() for cell in line.split("|")] for line in summary.must_reach().splitlines()[2:]]
        found = [(row[1], row[4]) for row in cells]
        plain = [("idle, 9 connections", "yes"), ("idle, 9 connections, heartbeats", "yes")]
        assert found == plain + [("idle, 9 connections, every limit on", "**no**")] * (len(names) - 1)


def test_every_limit_of_the_bench_is_on():
    """None is forgotten that comes later: those that the settings have off, and those of the bench, are all of them."""
    tables = tomllib.loads(LIMITS)["limits"]
    off = {name for name, field in LimitSettings.model_fields.items() if not field.default}
    assert off <= tables.keys() and all(tables.values())


def test_tokens_must_cost_little(tmp_path, monkeypatch):
    """Signatures of two kinds, and all that are remembered together."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    summary = importlib.import_module("summary")
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    works = {
        name: [{"first_us": us, "again_us": us / 20}] for name, us in (("HS256", 10), ("RS256", 61), ("EdDSA", 90))
    }
    (tmp_path / "2020-01-01-tokens.json").write_text(json.dumps({"works": works, "machine": {}}))
    cells = [[cell.strip() for cell in line.split("|")] for line in summary.must_reach().splitlines()[2:]]
    assert [row[2:5] for row in cells] == [
        ["≤ 60 µs of CPU", "10.00 (10.00–10.00)", "yes"],
        ["≤ 60 µs of CPU", "61.00 (61.00–61.00)", "**no**"],
        ["≤ 3 µs of CPU", "3.05 (0.50–4.50)", "**no**"],
    ]


@two_cpus
def test_the_other_benches_run_on_the_hub():
    """Storm and idle print figures of a hub with every client subscribed."""
    kinds = ["hub", "hub-token", "hub-limits"]
    storm = json.loads(bench("storm.py", "--connections", "50", "--rounds", "1", "--servers", *kinds, "--json"))
    assert all(storm["servers"][kind][0]["per_cpu_s"] > 0 for kind in kinds)
    # So many that their memory stands out from pages that the worker happens to share or not.
    idle = json.loads(bench("idle.py", "--connections", "2000", "--watch", "0.1", "--servers", "hub", "--json"))
    assert idle["servers"]["hub"]["pss_bytes"] > 0


def test_an_impossible_message_is_one_line():
    """Data too small for its time stamp: status 1 and the allowed size, no trace."""
    command = [sys.executable, str(ROOT / "bench/fanout.py"), "--bytes", "5"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert finished.returncode == 1
    assert finished.stderr.startswith("bench: found a message of 5 bytes; allowed: 3")
