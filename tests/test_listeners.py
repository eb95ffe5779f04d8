"""Listeners: real sockets on free ports of the loopback."""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.config import Settings
from hub.errors import BootError
from hub.listeners import Listeners
from hub.values import Address


def settings(listen: list[str] | None = None, internal: list[str] | None = None, **tcp: int) -> Settings:
    listen = listen or ["127.0.0.1:0"]
    tls = {"certificates": [{"cert": "a", "key": "b"}]} if any(text.startswith("tls:") for text in listen) else {}
    return Settings(listen=listen, internal=["127.0.0.1:0"] if internal is None else internal, tcp=tcp, tls=tls)


@pytest.fixture
def two() -> Iterator[Listeners]:
    """Two slots on free ports."""
    listeners = Listeners.open(settings(), 2)
    yield listeners
    listeners.close()


@pytest.fixture
def unix_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("u") / "hub.sock"


def connect(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), timeout=5.0)


def accept(listener: socket.socket) -> socket.socket:
    assert select.select([listener], [], [], 5.0)[0], "nothing to accept"
    return listener.accept()[0]


def test_every_slot_listens_on_the_port_that_the_first_was_given(two: Listeners) -> None:
    """Port 0 is resolved once; the slots share the address, not the socket."""
    ports = [slot.public[0].getsockname()[1] for slot in two.slots]
    assert ports == [two.public[0].port] * 2 and ports[0] != 0
    assert two.slots[0].public[0] is not two.slots[1].public[0]
    assert two.public[0] != two.internal[0] and two.combined == ()


def test_a_slot_knows_where_a_proxy_line_is_due() -> None:
    """Of several addresses the named one, in each slot."""
    with socket.create_server(("127.0.0.1", 0)) as finder:
        free = f"127.0.0.1:{finder.getsockname()[1]}"
    listeners = Listeners.open(Settings(listen=["127.0.0.1:0", free], internal=[], proxy_protocol=[free]), 2)
    try:
        assert [slot.proxied for slot in listeners.slots] == [(slot.public[1],) for slot in listeners.slots]
    finally:
        listeners.close()


def test_connections_are_spread_over_the_slots(two: Listeners) -> None:
    """Of 64 connections each slot gets some (all in one: 2 in 2^64)."""
    clients = [connect(two.public[0]) for _ in range(64)]
    for slot in two.slots:
        accept(slot.public[0]).close()
    for client in clients:
        client.close()


def test_an_accepted_socket_inherits_each_option() -> None:
    """What is set on the listener holds for the client's socket without another system call."""
    listeners = Listeners.open(
        settings(
            keepalive_idle_s=61,
            keepalive_interval_s=16,
            keepalive_count=4,
            user_timeout_s=59,
            send_buffer_bytes=65_536,
            receive_buffer_bytes=20_000,
            notsent_lowat_bytes=12_345,
        ),
        1,
    )
    expected = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 61),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 16),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 59_000),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, 131_072),  # the kernel doubles both buffers
        (socket.SOL_SOCKET, socket.SO_RCVBUF, 40_000),
        (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 12_345),
    ]
    try:
        with connect(listeners.public[0]), accept(listeners.slots[0].public[0]) as accepted:
            assert [(level, option, accepted.getsockopt(level, option)) for level, option, _ in expected] == expected
    finally:
        listeners.close()


def test_listeners_do_not_block_and_are_not_inherited_by_exec(two: Listeners) -> None:
    """accept() on an empty queue returns at once, and no program that is started later holds a listener."""
    listener = two.slots[0].public[0]
    assert not listener.getblocking() and not listener.get_inheritable()
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_killed_process_leaves_the_queue_to_the_holder() -> None:
    """A connection that waits in the accept queue survives the kill -9 of another process with the same listener."""
    listeners = Listeners.open(settings(), 1)
    listener = listeners.slots[0].public[0]
    try:
        worker = subprocess.Popen(["sleep", "60"], pass_fds=[listener.fileno()])
        with connect(listeners.public[0]) as client:
            worker.kill()
            worker.wait()
            with accept(listener) as accepted:
                accepted.sendall(b"still here")
            assert client.recv(100) == b"still here"
    finally:
        listeners.close()


def test_keep_only_closes_the_other_slots(two: Listeners) -> None:
    """What a worker does after the fork: its own listeners stay, the others' copies go."""
    two.keep_only(1)
    assert [slot.public[0].fileno() == -1 for slot in two.slots] == [True, False]
    assert [slot.internal[0].fileno() == -1 for slot in two.slots] == [True, False]


def test_a_port_in_use_is_one_line(two: Listeners) -> None:
    """A second hub of the same user is refused, though SO_REUSEPORT would let it in; nothing stays open."""
    address = two.public[0]
    with pytest.raises(BootError) as caught:
        Listeners.open(settings([str(address)]), 2)
    assert str(caught.value) == f"cannot listen on {address}: the address is in use by another process"


def test_a_failed_open_leaves_nothing_listening(two: Listeners) -> None:
    """The address that was opened before the one that failed is free again."""
    with socket.create_server(("127.0.0.1", 0)) as finder:
        free = finder.getsockname()[1]
    with pytest.raises(BootError):
        Listeners.open(settings([f"127.0.0.1:{free}"], [str(two.public[0])]), 2)
    Listeners.open(settings([f"127.0.0.1:{free}"]), 2).close()


def test_a_foreign_address_is_one_line() -> None:
    """192.0.2.1 (RFC 5737) belongs to no machine."""
    with pytest.raises(BootError, match=r"^cannot listen on 192\.0\.2\.1:8000: this machine has no such address$"):
        Listeners.open(settings(["192.0.2.1:8000"]), 1)


def test_connections_of_an_earlier_hub_are_no_obstacle() -> None:
    """A port with connections in TIME_WAIT can be listened on again at once."""
    first = Listeners.open(settings(), 1)
    address = first.public[0]
    with connect(address) as client:
        accept(first.slots[0].public[0]).close()
        assert client.recv(1) == b""
    first.close()
    Listeners.open(settings([str(address)]), 1).close()


def test_the_same_address_for_both_is_one_listener() -> None:
    """It is in `public` alone, and the slot says which of its sockets serve everything."""
    with socket.create_server(("127.0.0.1", 0)) as finder:
        text = f"127.0.0.1:{finder.getsockname()[1]}"
    listeners = Listeners.open(settings(["127.0.0.1:0", text], [text, text]), 2)
    try:
        slot = listeners.slots[1]
        assert listeners.internal == () and slot.internal == ()
        assert [str(address) for address in listeners.combined] == [text]
        assert slot.combined == (slot.public[1],)
    finally:
        listeners.close()


def test_an_ipv6_listener_leaves_ipv4_alone() -> None:
    """IPV6_V6ONLY: the same port on both families is two listeners."""
    try:
        listeners = Listeners.open(settings(["[::1]:0"]), 2)
    except BootError:
        pytest.skip("this machine has no IPv6")
    try:
        address = listeners.public[0]
        assert str(address) == f"[::1]:{address.port}"
        only = listeners.slots[0].public[0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        connect(address).close()
        assert only == 1
    finally:
        listeners.close()


def test_a_capped_backlog_and_buffer_are_warnings(tmp_path: Path) -> None:
    """The kernel cuts both down in silence; the lines name the setting, the cap and the sysctl."""
    (tmp_path / "somaxconn").write_text("128\n")
    wanted = settings(backlog=500, send_buffer_bytes=16_777_216)
    listeners = Listeners.open(wanted, 1, somaxconn=tmp_path / "somaxconn")
    listeners.close()
    assert listeners.warnings[0] == "tcp.backlog: 500 is capped at 128 by net.core.somaxconn"
    assert listeners.warnings[1].startswith("tcp.send_buffer_bytes: 16777216 is capped at ")


def test_without_a_cap_there_is_no_warning(tmp_path: Path) -> None:
    """A backlog that fits, and a sandbox that hides /proc/sys, say nothing."""
    listeners = Listeners.open(settings(backlog=100), 1, somaxconn=tmp_path / "hidden")
    listeners.close()
    assert listeners.warnings == []


def test_a_unix_listener_is_one_socket_for_all_slots(unix_path: Path) -> None:
    """The same object in every slot, for owner and group, kept by keep_only and removed by close."""
    listeners = Listeners.open(settings([f"unix:{unix_path}"]), 3)
    assert len({id(slot.public[0]) for slot in listeners.slots}) == 1
    assert stat.S_IMODE(unix_path.stat().st_mode) == 0o660
    listeners.keep_only(2)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(unix_path))
    listeners.close()
    assert not unix_path.exists()
    listeners.close()


def test_an_heir_has_the_same_sockets_and_its_own_options(unix_path: Path) -> None:
    """What waits in a queue is accepted by the heir; options and backlog are those of its settings."""
    first = Listeners.open(settings(["127.0.0.1:0", f"unix:{unix_path}"]), 2)
    public, internal = first.records()
    port = first.public[0].port
    assert (len(public[0].sockets), len(public[1].sockets)) == (2, 1)
    copies = {number: os.dup(number) for record in (*public, *internal) for number in record.sockets}
    public, internal = (
        [one.model_copy(update={"sockets": [copies[number] for number in one.sockets]}) for one in records]
        for records in (public, internal)
    )
    with socket.create_connection(("127.0.0.1", port)) as waiting, socket.socket(socket.AF_UNIX) as local:
        local.connect(str(unix_path))
        for slot in first.slots:
            for sock in (*slot.public, *slot.internal):
                sock.close()
        changed = settings(["127.0.0.1:0", f"unix:{unix_path}"], keepalive_idle_s=17, backlog=33)
        heir = Listeners.inherit(changed, 2, public, internal)
        try:
            assert heir.public == first.public and heir.internal == first.internal
            assert heir.slots[0].public[1] is heir.slots[1].public[1]
            ready, _, _ = select.select([slot.public[0] for slot in heir.slots], [], [], 5)
            accepted, _ = ready[0].accept()
            assert accepted.getpeername() == waiting.getsockname()
            accepted.close()
            with socket.create_connection(("127.0.0.1", port)):
                ready, _, _ = select.select([slot.public[0] for slot in heir.slots], [], [], 5)
                accepted, _ = ready[0].accept()
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 17
                accepted.close()
            assert not any(sock.getblocking() for sock in heir.slots[0].public)
            found, _ = heir.slots[1].public[1].accept()
            found.close()
            assert [backlog_of(slot.public[0]) for slot in heir.slots] == [33, 33]
        finally:
            heir.close()
        assert not unix_path.exists()


def backlog_of(listener: socket.socket) -> int:
    """As the kernel has it: of a listener, tcpi_sacked is the length of its accept queue (net/ipv4/tcp.c)."""
    (found,) = struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)
    return int(found)


def test_a_stale_socket_file_is_replaced(unix_path: Path) -> None:
    """What a killed hub left behind is no obstacle."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(unix_path))
        killed.listen()
    assert unix_path.exists()
    Listeners.open(settings([f"unix:{unix_path}"]), 1).close()


def test_a_live_unix_listener_is_one_line(unix_path: Path) -> None:
    """Another hub's socket is not taken away from it."""
    first = Listeners.open(settings([f"unix:{unix_path}"]), 1)
    with pytest.raises(BootError, match=rf"^cannot listen on unix:{unix_path}: the address is in use"):
        Listeners.open(settings([f"unix:{unix_path}"]), 1)
    assert unix_path.exists()
    first.close()


def test_close_leaves_a_successors_socket_file(unix_path: Path) -> None:
    """A file that another process has put there since is not ours to remove."""
    listeners = Listeners.open(settings([f"unix:{unix_path}"]), 1)
    os.unlink(unix_path)
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(unix_path))
        listeners.close()
        assert unix_path.exists()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("file", "a file that is no socket stands there"),
        ("missing/hub.sock", "the directory does not exist"),
    ],
)
def test_a_bad_unix_path_is_one_line(tmp_path_factory: pytest.TempPathFactory, name: str, cause: str) -> None:
    """A file is never overwritten, and each cause has its words."""
    directory = tmp_path_factory.mktemp("u")
    (directory / "file").write_text("precious")
    with pytest.raises(BootError, match=cause):
        Listeners.open(settings([f"unix:{directory / name}"]), 1)
    assert (directory / "file").read_text() == "precious"


# What systemd hands over


def handed(*ports: int, family: int = socket.AF_INET, listens: bool = True) -> list[socket.socket]:
    found = []
    for port in ports:
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port or (found[0].getsockname()[1] if found else 0)))
        if listens:
            sock.listen()
        found.append(sock)
    return found


def test_each_slot_gets_one_of_those_that_systemd_has_made() -> None:
    """With our options; its address is the sockets' own, and TLS is spoken where the setting says so."""
    sockets = handed(0, 0)
    port = sockets[0].getsockname()[1]
    listeners = Listeners.open(
        settings(["tls:systemd:https"], ["tls:systemd:https"], keepalive_idle_s=61), 2, handed={"https": sockets}
    )
    assert listeners.public == (Address("127.0.0.1", port, tls=True),) == listeners.combined
    assert [slot.public[0] for slot in listeners.slots] == sockets
    for slot in listeners.slots:
        assert slot.secure == {slot.public[0]} and slot.combined == slot.public and not slot.internal
        assert slot.public[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 61
        assert not slot.public[0].getblocking()
    listeners.keep_only(1)
    assert sockets[0].fileno() < 0 <= sockets[1].fileno()
    listeners.close()


def test_a_unix_socket_of_systemd_is_shared_and_its_file_stays(unix_path: Path) -> None:
    """The file is systemd's, which goes on listening on it."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(unix_path))
    sock.listen()
    listeners = Listeners.open(settings(["systemd:local"], []), 3, handed={"local": [sock]})
    assert [slot.public for slot in listeners.slots] == [(sock,)] * 3
    assert listeners.public == (Address("", 0, str(unix_path)),)
    listeners.keep_only(0)
    assert sock.fileno() >= 0
    listeners.close()
    assert unix_path.exists()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (dict, "systemd has handed over none at all; FileDescriptorName= names them"),
        (lambda: {"http": handed(0, 0)}, "systemd has handed over http; FileDescriptorName= names them"),
        (lambda: {"x": handed(0)}, "found 1 socket for 2 workers; allowed: one for each, with ReusePort=yes"),
        (lambda: {"x": handed(0, 0, 0)}, "found 3 sockets for 2 workers; allowed: one for each, with ReusePort=yes"),
        (
            lambda: {"x": handed(0) + handed(0)},
            "found sockets of several addresses; allowed: one address for each name",
        ),
        (
            lambda: {"x": handed(0, 0, listens=False)},
            "a socket does not listen for streams; allowed: ListenStream= with Accept=no",
        ),
    ],
)
def test_what_systemd_hands_over_has_to_fit(make, line: str) -> None:
    """One line names the setting and what is wrong, and nothing stays open."""
    found = make()
    with pytest.raises(BootError) as caught:
        Listeners.open(settings(["systemd:x"], []), 2, handed=found)
    assert str(caught.value) == f"cannot listen on systemd:x: {line}"
    assert all(sock.fileno() < 0 for sockets in found.values() for sock in sockets)


def test_what_nobody_asks_for_is_closed_and_told() -> None:
    """Clients would wait there for ever."""
    sockets = handed(0)
    listeners = Listeners.open(settings(), 1, handed={"other": sockets})
    assert "systemd:other: a socket that no address asks for is closed" in listeners.warnings
    assert sockets[0].fileno() < 0
    listeners.close()
