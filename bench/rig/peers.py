"""Peers: what a user would pick instead, each at its fastest reasonable setting, and the two limits in C.

Does: find the program, or the line that installs it; start it; say how its clients and publishers speak.
Does not: measure. The programs are in bench/peers/, where their settings are explained.
Called by: servers.
Never break: a peer gets its messages the cheapest way it offers, over one kept connection, and its clients ask for
neither compression nor anything else that costs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from .build import BENCH, program
from .population import Load
from .processes import BenchError, children, process
from .server import READY_TIMEOUT_S, Batch, Server, Topics, broadcaster, line_server, wire_text

PROGRAMS = BENCH / "peers"
NODE_MODULES = PROGRAMS / "node_modules"
INSTALL = "make bench-peers"
INSTALL_NODE = "apt-get install nodejs npm && make bench-peers"
INSTALL_NCHAN = "apt-get install nginx libnginx-mod-nchan"
Start = AbstractContextManager[Server]


def python_program(module: str) -> str:
    """What installs a PyPI package, '' if it is there."""
    return "" if importlib.util.find_spec(module) else INSTALL


def node_program(package: str) -> str:
    if not shutil.which("node"):
        return INSTALL_NODE
    return "" if (NODE_MODULES / package).is_dir() else INSTALL


def bun_program() -> str:
    return "" if _bun() else INSTALL_NODE


def nats_program() -> str:
    return "" if _nats() else INSTALL


def nchan_program() -> str:
    return "" if _nginx() and _nchan().exists() else INSTALL_NCHAN


# The limits


def c_loop(cpu: int | None) -> Start:
    """broadcast_loop.c"""
    return line_server([program("broadcast_loop")], cpu, broadcaster)


def c_topics(cpu: int | None) -> Start:
    """topics_loop.c"""
    return line_server([program("topics_loop")], cpu, _topic_lines)


def _topic_lines(ports: Mapping[str, int], pid: int) -> Server:
    """One that speaks as topics_loop.c and bun.js do."""
    topics = Topics(
        greet=lambda wanted: "+" + " ".join(wanted),
        ready_text="ok",
        write=_write_lines,
        post=lambda topic, body: f">{topic} {wire_text(body, 'rooms:' + topic).decode()}",
    )
    load = Load(
        f"127.0.0.1:{ports['port']}",
        sends=("+0",),
        ready_text="ok",
        publish=f"127.0.0.1:{ports['control']}",
    )
    return Server(load, (pid,), lambda body: b"0 " + wire_text(body) + b"\n\n", ticker=topics, chat=topics)


def _write_lines(batch: Batch) -> bytes:
    lines = [topic.encode() + b" " + wire_text(body, f"ticks:{topic}") for topic, body in batch]
    return b"\n".join(lines) + b"\n\n"


# Python


def _python(name: str, *words: str) -> Callable[[int | None], Start]:
    command = [sys.executable, str(PROGRAMS / name), *words]
    return lambda cpu: line_server(command, cpu, broadcaster)


tornado = _python("tornado_stock.py", "asyncio")
"""Stock Tornado, as it comes."""
tornado_uvloop = _python("tornado_stock.py", "uvloop")
"""The same on the hub's own event loop."""
websockets = _python("websockets_broadcast.py")


def python_socketio(cpu: int | None) -> Start:
    return line_server([sys.executable, str(PROGRAMS / "python_socketio.py")], cpu, _socket_io)


# Node and Bun


def ws(cpu: int | None) -> Start:
    return line_server(["node", str(PROGRAMS / "ws.js")], cpu, broadcaster)


def socket_io(cpu: int | None) -> Start:
    return line_server(["node", str(PROGRAMS / "socket_io.js")], cpu, _socket_io)


def _socket_io(ports: Mapping[str, int], pid: int) -> Server:
    """Engine.IO v4: "40" enters the namespace and is answered, "2" is a ping, "3" its answer; 42["m",{…}] a message."""
    load = Load(
        f"127.0.0.1:{ports['port']}",
        "/socket.io/?EIO=4&transport=websocket",
        sends=("40",),
        ready_text='40{"sid"',
        publish=f"127.0.0.1:{ports['control']}",
        ping="2",
        pong="3",
    )
    return Server(load, (pid,), lambda body: body + b"\n")


def bun(cpu: int | None) -> Start:
    return line_server([_bun(), str(PROGRAMS / "bun.js")], cpu, _topic_lines)


def _bun() -> str:
    # Where npm may run its script, that has moved the binary into the place of a small text; else it is still there.
    found = [*NODE_MODULES.glob("bun/bin/bun.exe"), *NODE_MODULES.glob("@oven/bun-linux-*/bin/bun")]
    return next((str(path) for path in found if path.stat().st_size > 1_000_000), "")


# Those with a configuration


@contextlib.contextmanager
def nchan(cpu: int | None) -> Iterator[Server]:
    """nginx's one worker is charged, its master stands apart. Published by POST over one kept connection."""
    port = _free_port()
    with _configured("nchan.conf", PORT=str(port), MODULE=str(_nchan())) as (directory, config):
        command = [_nginx(), "-p", str(directory), "-c", str(config), "-e", "stderr"]
        with process(command, cpu) as master:
            _wait_for(port)
            load = Load(f"127.0.0.1:{port}", "/sub", publish=f"127.0.0.1:{port}")
            yield Server(load, tuple(children(master.pid)), _post, {"master": master.pid})


def _post(body: bytes) -> bytes:
    text = wire_text(body)
    return b"POST /pub HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


@contextlib.contextmanager
def nats(cpu: int | None) -> Iterator[Server]:
    """NATS' own protocol in WebSocket frames, several messages in one where it likes."""
    port, publishers = _free_port(), _free_port()
    with (
        _configured("nats.conf", PORT=str(port), PUBLISHERS=str(publishers)) as (directory, config),
        process([_nats(), "-c", str(config), "-l", str(directory / "log")], cpu) as started,
    ):
        _wait_for(publishers)
        _wait_for(port)
        load = Load(
            f"127.0.0.1:{port}",
            sends=(_nats_greet(["0"]),),
            ready_text="PONG",
            publish=f"127.0.0.1:{publishers}",
            publish_hello=NATS_CONNECT,
            ping="PING\r\n",
            pong="PONG\r\n",
            each="MSG ",
        )
        topics = Topics(_nats_greet, "PONG", _nats_write, _nats_post, each="MSG ")
        yield Server(load, (started.pid,), lambda body: _nats_pub("0", body), ticker=topics, chat=topics)


NATS_CONNECT = 'CONNECT {"verbose":false,"pedantic":false,"lang":"c","version":"1"}\r\n'


def _nats_greet(topics: Sequence[str]) -> str:
    # The answer to the PING says that everything before it was taken.
    return NATS_CONNECT + "".join(f"SUB {topic} {i + 1}\r\n" for i, topic in enumerate(topics)) + "PING\r\n"


def _nats_pub(topic: str, body: bytes) -> bytes:
    return b"PUB %s %d\r\n%s\r\n" % (topic.encode(), len(body), body)


def _nats_write(batch: Batch) -> bytes:
    return b"".join(_nats_pub(topic, body) for topic, body in batch)


def _nats_post(topic: str, body: bytes) -> str:
    return _nats_pub(topic, body).decode()


def _nats() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else shutil.which("nats-server") or ""


def _nginx() -> str:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or ""


def _nchan() -> Path:
    # Debian's place, seen from the binary: /usr/sbin/nginx and /usr/lib/nginx/modules.
    return Path(_nginx()).parent.parent / "lib/nginx/modules/ngx_nchan_module.so"


@contextlib.contextmanager
def _configured(name: str, **words: str) -> Iterator[tuple[Path, Path]]:
    """A directory for the server, and in it its configuration with the words put in."""
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as directory:
        text = (PROGRAMS / name).read_text()
        for word, value in {**words, "DIRECTORY": directory}.items():
            text = text.replace(word, value)
        config = Path(directory) / name
        config.write_text(text)
        yield Path(directory), config


def _free_port() -> int:
    """These servers can't say which port the kernel chose, so it is chosen here, a moment before."""
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port: int = chosen.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchError(f"nothing listens on port {port}: {error}") from None
        time.sleep(0.02)  # it gives no other sign
