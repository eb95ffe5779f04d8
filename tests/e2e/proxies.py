"""Proxies: Debian's nginx and HAProxy with the files of config/, on this machine's loopback.

Does: put a test's addresses, ports and paths into the shipped file and nothing else, make a certificate, run the proxy
in a directory of its own, end it.
Called by: test_proxies.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from tests.stores import free_port

CONFIG = Path(__file__).parent.parent.parent / "config"
PATIENCE_S = 10.0
MOST_CLIENTS = "5000"
"""HAProxy's -n: the machine of a test may not allow as many descriptors as the file asks for."""
OPENSSL = pytest.mark.needs("openssl", "apt-get install openssl")


class Kind(NamedTuple):
    """file: in config/. binary: Debian's."""

    name: str
    file: str
    binary: str

    def command(self, config: Path) -> list[str]:
        """Runs it in the foreground."""
        if self.name == "nginx":
            return [self.binary, "-p", str(config.parent), "-c", str(config), "-g", "daemon off;"]
        return [self.binary, "-db", "-n", MOST_CLIENTS, "-f", str(config)]


NGINX = Kind("nginx", "nginx.conf", "/usr/sbin/nginx")
HAPROXY = Kind("haproxy", "haproxy.cfg", "/usr/sbin/haproxy")
KINDS = [
    pytest.param(kind, id=kind.name, marks=pytest.mark.needs(kind.binary, f"apt-get install {kind.name}"))
    for kind in (NGINX, HAPROXY)
]


def replacements(
    kind: Kind, directory: str, upstreams: tuple[str, str], tls: int, plain: int, log_port: int
) -> dict[str, str]:
    """What of the shipped file becomes what."""
    there = {"10.0.0.5:8000": upstreams[0], "10.0.0.6:8000": upstreams[1], "/etc/ssl/hub/": f"{directory}/"}
    if kind is NGINX:
        return there | {
            "listen 443 ": f"listen 127.0.0.1:{tls} ",
            "listen 80;": f"listen 127.0.0.1:{plain};",
            "/run/nginx.pid": f"{directory}/nginx.pid",
            "/var/lib/nginx/": f"{directory}/",
            "/var/log/nginx/": f"{directory}/",
        }
    if os.geteuid():  # who is not root can't become somebody else
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        there |= {"user haproxy": f"user {user}", "group haproxy": f"group {group}"}
    return there | {
        "bind :443 ": f"bind 127.0.0.1:{tls} ",
        "bind :80\n": f"bind 127.0.0.1:{plain}\n",
        "/dev/log": f"127.0.0.1:{log_port}",
    }


def adapt(text: str, changes: dict[str, str]) -> str:
    """The shipped file with a test's addresses; each of them must stand there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


ADDRESS = re.compile(r"(?:\d+\.){3}\d+:\d+;?|:?\d+;?|/[\w./-]+;?|haproxy")
"""All that may differ: an address, a port, a path, an account."""


def differences(shipped: str, adapted: str) -> list[str]:
    """Words of the shipped file that stand otherwise in the adapted one, although they are no address, port or path."""
    old, new = shipped.split(), adapted.split()
    assert len(old) == len(new)
    return [a for a, b in zip(old, new, strict=True) if a != b and not ADDRESS.fullmatch(a)]


class Front:
    """A running proxy. upstreams: the addresses of its two hubs, which may be the same."""

    def __init__(self, kind: Kind, *upstreams: str) -> None:
        self.kind = kind
        self.directory = Path(tempfile.mkdtemp(prefix="hub-p-"))
        self.directory.chmod(0o711)  # the proxy's processes are another user's, where a root runs it
        self.port, self.plain_port = free_port(), free_port()
        self.certificate = self.directory / "fullchain.pem"
        self._config = self.directory / kind.file
        # Not a Unix socket as /dev/log is: the kernel keeps ten datagrams of such a one, and the rest are lost.
        self._log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._log.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._log.bind(("127.0.0.1", 0))
        ports = self.port, self.plain_port, self._log.getsockname()[1]
        changes = replacements(kind, str(self.directory), (upstreams[0], upstreams[-1]), *ports)
        self.shipped = (CONFIG / kind.file).read_text()
        self.adapted = adapt(self.shipped, changes)
        self._config.write_text(self.adapted)
        self._logged = ""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def plain_url(self) -> str:
        return f"http://127.0.0.1:{self.plain_port}"

    def __enter__(self) -> Self:
        try:
            self._certify()
            with (self.directory / "stderr").open("wb") as stderr:
                command = self.kind.command(self._config)
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
                )
            try:
                self._wait()
            except BaseException:
                self._stop()
                raise
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        finally:
            self._remove()

    def _certify(self) -> None:
        """A certificate of this machine's own, as both proxies want it."""
        key = self.directory / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=hub.example.com", "-addext", "subjectAltName=DNS:hub.example.com,IP:127.0.0.1"]
        command += ["-days", "2", "-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        (self.directory / "both.pem").write_text(self.certificate.read_text() + key.read_text())

    def _wait(self) -> None:
        """Return once it listens."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, (self.directory / "stderr").read_text()
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1.0):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.directory / "stderr").read_text()
            time.sleep(0.02)  # it gives no other sign

    def _stop(self) -> None:
        # SIGTERM ends both at once. nginx's own processes follow their master, as HAProxy has none.
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def _remove(self) -> None:
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What it has logged of requests so far; a line may come a little later than its answer."""
        if self.kind is NGINX:
            return (self.directory / "hub.log").read_text()
        with contextlib.suppress(BlockingIOError):
            while True:
                self._logged += self._log.recv(65_536).decode() + "\n"
        return self._logged
