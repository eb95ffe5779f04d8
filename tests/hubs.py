"""Hubs: a real `hub serve` as a process of its own, for tests that look at a hub from outside.

    with HubProcess({"workers": 4, "ticker": {"source": "simulate"}}) as hub:
        hub.ws_url, hub.api_url, hub.page_url, hub.key, hub.token("ann"), hub.worker_pids(), hub.stderr

Settings are merged over BASE: free ports, loopback, a private Valkey, short drain, everything open to everybody.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from hub import auth, reloading

SECRET = "a secret for tests, 32 bytes or more"
KEY = "a-key-for-the-tests"
BASE: dict[str, Any] = {
    "workers": 2,
    "listen": ["127.0.0.1:0"],
    "internal": ["127.0.0.1:0"],
    "drain_window_s": 0.2,
    "auth": {"hmac_secret": SECRET},
    "api": {"key": KEY},
    "namespaces": {
        "ticker": {"mode": "latest", "subscribe": "anyone"},
        "chat": {"subscribe": "anyone", "publish": "anyone"},
        "members": {"subscribe": "user", "publish": "user"},
    },
}
READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 15.0
RELOAD_TIMEOUT_S = 40.0
LOG_TIMEOUT_S = 10.0


class HubFailed(Exception):
    """The hub did not get ready. status: its exit status, None if it was still running; text: its standard error."""

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(f"exit status {status}: {text}")
        self.status = status
        self.text = text


class HubProcess:
    """One running hub; a context manager that ends it and removes what it stored.

    settings: merged over BASE, tables key by key. env: more environment variables. base: False takes `settings` alone.
    module: what is run with the command line of `hub`, such as one that changes it first. program: instead of that,
    what stands for `hub` itself.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        base: bool = True,
        module: str = "hub",
        program: Sequence[str] = (),
    ) -> None:
        # Not tmp_path: its names outgrow the 107 bytes that a Unix socket path may have.
        self.directory = Path(tempfile.mkdtemp(prefix="hub-t-"))
        self.settings = {"state_dir": str(self.directory / "state"), **merged(BASE if base else {}, settings or {})}
        self.config_path = self.directory / "hub.toml"
        self.config_path.write_text(to_toml(self.settings))
        self._stderr_path = self.directory / "stderr"
        self._program = list(program) or [sys.executable, "-m", module]
        self._env = {**clean_environment(), **(env or {})}
        self.ready_line = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._remove()

    def start(self) -> None:
        """Start it, or start it again after `stop`; returns when it is ready. Raises HubFailed."""
        with self._stderr_path.open("ab") as stderr:
            command = [*self._program, "serve", "--config", str(self.config_path)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=self._env
            )
        try:
            self.ready_line = self._read_line(READY_TIMEOUT_S)
            if not self.ready_line:
                raise HubFailed(self.process.wait(STOP_TIMEOUT_S), self.stderr)
        except BaseException:
            self._kill()
            raise

    def _read_line(self, timeout_s: float) -> str:
        """The first line of standard output; '' when it was closed before."""
        assert self.process.stdout is not None
        fd, found, deadline = self.process.stdout.fileno(), b"", time.monotonic() + timeout_s
        while not found.endswith(b"\n"):
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise HubFailed(None, f"no ready line within {timeout_s:g} s: {found!r}; {self.stderr}")
            if not (chunk := os.read(fd, 4096)):
                return ""
            found += chunk
        return found.decode().rstrip("\n")

    # Where it is

    @property
    def ws_url(self) -> str:
        return self._url("clients")

    @property
    def api_url(self) -> str:
        return self._url("server API")

    @property
    def page_url(self) -> str:
        """With demo = true only."""
        return self._url("page")

    def _url(self, name: str) -> str:
        match = re.search(rf"\b{name} ([^\s;]+)", self.ready_line)
        assert match, f"no {name} in {self.ready_line!r}"
        return match[1]

    @property
    def key(self) -> str:
        return str(self.settings["api"]["key"])

    def token(self, user: str, ttl_s: float = 60.0) -> str:
        """A connection token that this hub takes."""
        return auth.make(user, self.settings["auth"]["hmac_secret"], ttl_s, time.time())

    # What it does

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far, its log."""
        return self._stderr_path.read_text(errors="replace")

    def logged(self, *words: str, since: int = 0) -> str:
        """The log from the character `since` on, once each of these is in it.

        A line may come after whoever it tells of has been answered. Raises AssertionError after some seconds.
        """
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while True:
            text = self.stderr[since:]
            missing = [one for one in words if one not in text]
            if not missing:
                return text
            assert time.monotonic() < deadline, f"not in the log: {missing}; {text}"
            time.sleep(0.01)  # nothing tells when a process has written a line

    def worker_pids(self) -> list[int]:
        """The workers that live now, in the order of their start."""
        return [pid for pid in _children(self.pid) if _command_of(pid) not in ("", "valkey-server")]

    def still_has(self, workers: Sequence[int]) -> bool:
        """Whether these still serve, and nobody in place of one; the process that has read settings may be ending."""
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while self.worker_pids() != list(workers):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)  # nothing tells when a process of the supervisor's has been reaped
        return True

    def reload(self, settings: Mapping[str, Any] | None = None, *, text: str | None = None) -> dict[str, Any]:
        """Write other settings, merged over those of the start, and have them read; what became of it.

        text: instead of them. {"ok": True, "errors": […], "changed": […], …}
        """
        now = merged(self.settings, settings or {})
        self.config_path.write_text(to_toml(now) if text is None else text)
        return reloading.outcome(self.pid, RELOAD_TIMEOUT_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit status. One that takes too long is killed, and TimeoutExpired fails the test."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(number)
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            self._kill()

    def _kill(self) -> None:
        # Workers and Valkey follow a killed supervisor by PDEATHSIG.
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def run_hub(*arguments: str, timeout_s: float = 20.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one `hub` command to its end; options are those of subprocess.run."""
    options.setdefault("env", clean_environment())
    return subprocess.run(
        [sys.executable, "-m", "hub", *arguments], capture_output=True, text=True, timeout=timeout_s, **options
    )


def clean_environment() -> dict[str, str]:
    """The environment without settings for a hub that may run on this machine."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("HUB_")}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`; tables are merged in depth."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def to_toml(values: Mapping[str, Any], table: str = "") -> str:
    """TOML of nested dicts. JSON's texts, numbers and lists of them are TOML's too, but for DEL, which nobody uses."""
    own = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if not isinstance(value, Mapping)]
    tables = [
        f"[{table}{key}]\n{to_toml(value, f'{table}{key}.')}"
        for key, value in values.items()
        if isinstance(value, Mapping)
    ]
    return "".join(own + tables)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _command_of(pid: int) -> str:
    """The name of a living process; '' for one that has ended, reaped or not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    name, _, rest = text.partition("(")[2].rpartition(")")
    return "" if rest.split()[0] in ("Z", "X") else name
