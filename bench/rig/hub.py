"""Hub: `hub serve` with its embedded Valkey, as the benches start it.

Does: write its settings, start it, find its processes, say how its clients and publishers speak.
Called by: servers.
Never break: nothing is switched off that a deployment would have on; what differs from the defaults stands in SETTINGS,
and is a limit that the load of a bench would meet.

Published to Redis directly, so that the worker is charged for what each message costs it as a subscriber, which every
deployment pays, and not for a publisher that may be anywhere.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from hub.message import Publication, encode_body, pack
from hub.store import Keys

from .population import Load
from .processes import BenchError, children, process, read_line
from .server import CHANNEL, READY_TIMEOUT_S, Batch, Server, Topics

SECRET = "bench-secret-of-at-least-32-bytes-0"
KEYS = Keys("hub")
SOCKETIO_PATH = "/socket.io/?EIO=4&transport="
COMPLAINTS = 3
"""Of the hub's log, that are told with an error of the bench."""
LAST_ID = 1000
"""Of a client's last command, whatever their number."""
REFUSED = '"error":'
"""In every answer of no, to Socket.IO clients too."""
SETTINGS = f"""\
workers = %(workers)d
listen = ["%(tls)s127.0.0.1:0"]
internal = ["127.0.0.1:0"]
drain_window_s = 0.0
state_dir = "%(directory)s/state"
[auth]
hmac_secret = "{SECRET}"
[api]
key = "not-used-here-at-all"
[redis]
pending_publishes = 100_000
[worker]
handshakes_per_s = 0

[namespaces.bench]
subscribe = "anyone"
[namespaces.rooms]
subscribe = "anyone"
publish = "subscriber"
[namespaces.ticks]
mode = "latest"
subscribe = "anyone"
[namespaces.kept]
mode = "stream"
subscribe = "anyone"
"""


LIMITS = """\
[limits]
user_commands_per_s = 1_000_000
user_bytes_per_s = 1_000_000_000
ip_commands_per_s = 1_000_000
ip_bytes_per_s = 1_000_000_000
ip_handshakes_per_s = 100_000
ip_connections = 100_000
user_connections = 1_000
connections = 100_000
"""
"""Every limit on, none of which a bench meets."""


@contextlib.contextmanager
def hub(
    cpu: int | None, workers: int = 1, more: str = "", tls: bool = False, trusted: Sequence[str] | None = None
) -> Iterator[Server]:
    """Supervisor and Valkey share the workers' CPU and are counted apart. cpu: None for all CPUs.

    more: tables that SETTINGS have not, as TOML. tls: clients are to speak TLS; the certificate, for a P-256 key, is
    one that they can't trust. trusted: proxies; None: as by default, which are all addresses of a bench.
    """
    # Not under a long path: a Unix socket's has 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="hub-bench-"))
    try:
        text = SETTINGS % {"workers": workers, "directory": directory, "tls": "tls:" if tls else ""}
        if trusted is not None:
            text = f"trusted_proxies = {json.dumps(trusted)}\n{text}"
        (directory / "hub.toml").write_text(text + more + (_certificate(directory) if tls else ""))
        command = [sys.executable, "-m", "hub", "serve", "--config", str(directory / "hub.toml")]
        with (
            (directory / "log").open("wb") as log,
            process(command, cpu, stdout=subprocess.PIPE, stderr=log, bufsize=0) as started,
        ):
            server = _running(started, directory)
            started_with = (directory / "log").stat().st_size
            try:
                yield server
            except BenchError as error:
                raise BenchError("; ".join([str(error), *complaints(directory / "log", started_with)])) from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def hub_limits(cpu: int | None) -> AbstractContextManager[Server]:
    """The same hub with every limit on, and clients whose addresses count."""
    return hub(cpu, more=LIMITS, trusted=[])


@contextlib.contextmanager
def hub_socketio(cpu: int | None) -> Iterator[Server]:
    """The same hub, and the same messages to its Socket.IO clients on WebSockets."""
    with hub(cpu) as server:
        load = replace(
            server.load,
            path=SOCKETIO_PATH + "websocket",
            sends=("40", f'420["subscribe",{{"channel":"{CHANNEL}"}}]'),
            ready_text="430[{",
            ping="2",
            pong="3",
        )
        yield replace(server, load=load, ticker=None, chat=None)


def complaints(log: Path, since: int) -> list[str]:
    """The last lines of a hub's log that are no mere information, which its clients' ends bury.

    since: bytes of it that were there at its start, when a hub says what it would have otherwise.
    """
    lines = log.read_bytes()[since:].decode(errors="replace").splitlines()
    return [line for line in lines if re.match(r"\S+ \S+ (WARNING|ERROR|CRITICAL) ", line)][-COMPLAINTS:]


def _certificate(directory: Path) -> str:
    """Settings with a certificate that is made for them."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - day, now + 30 * day
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    with open(os.open(directory / "key.pem", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(secret)
    return '[tls]\ncertificates = [{ cert = "cert.pem", key = "key.pem" }]\n'


def _running(started: subprocess.Popen[bytes], directory: Path) -> Server:
    try:
        line = read_line(started.stdout, READY_TIMEOUT_S, "hub serve").decode()
    except BenchError as error:
        raise BenchError(f"{error}: {(directory / 'log').read_text()}") from None
    found = re.search(r"\bclients wss?://([\d.]+:\d+)(/\S+?)(?=[\s;])", line)
    internal = re.search(r"\bserver API (http://[\d.]+:\d+)/", line)
    sockets = list((directory / "state").rglob("*.sock"))
    if found is None or internal is None or len(sockets) != 1:
        raise BenchError(f"found not both addresses and Valkey in {line!r} and {sockets}")
    below = children(started.pid)
    valkey = next(pid for pid, name in below.items() if "valkey" in name)
    workers = tuple(pid for pid in below if pid != valkey)
    load = Load(
        found[1],
        found[2],
        sends=(greet([CHANNEL]),),
        ready_text=f'"id":{LAST_ID},',
        refused=REFUSED,
        publish=f"unix:{sockets[0]}",
    )
    apart = {"supervisor": started.pid, "valkey": valkey}
    return Server(
        load,
        workers,
        _publish_one,
        apart,
        ticker=_topics("ticks"),
        chat=_topics("rooms"),
        metrics=f"{internal[1]}/metrics",
    )


def greet(channels: Sequence[str], token: str = "") -> str:
    """Connect and subscribe, all commands in one message."""
    commands: list[dict[str, object]] = [{"id": 1, "connect": {"token": token} if token else {}}]
    commands += [{"id": i + 2, "subscribe": {"channel": channel}} for i, channel in enumerate(channels)]
    commands[-1]["id"] = LAST_ID
    return "\n".join(json.dumps(command, separators=(",", ":")) for command in commands)


def _topics(namespace: str) -> Topics:
    return Topics(
        greet=lambda topics: greet([f"{namespace}:{topic}" for topic in topics]),
        ready_text=f'"id":{LAST_ID},',
        write=lambda batch: redis_publish(KEYS.feed(namespace), publications(namespace, batch)),
        post=lambda topic, body: (
            f'{{"id":{LAST_ID},"publish":{{"channel":"{namespace}:{topic}","data":{body.decode()}}}}}'
        ),
        each='{"push":',
    )


def publications(namespace: str, batch: Batch) -> list[Publication]:
    """Bodies as a publisher of the hub's own would make them."""
    return [Publication(f"{namespace}:{topic}", encode_body(json.loads(body))) for topic, body in batch]


def redis_publish(redis_channel: str, batch: Sequence[Publication]) -> bytes:
    """PUBLISH as RESP: b'*3\\r\\n$7\\r\\nPUBLISH\\r\\n$18\\r\\nhub:pub:{bench:all}\\r\\n…'"""
    words = [b"PUBLISH", redis_channel.encode(), pack(batch)]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _publish_one(body: bytes) -> bytes:
    return redis_publish(KEYS.channel(CHANNEL), [Publication(CHANNEL, encode_body(json.loads(body)))])
