"""Runner: an application's handlers at work, each for one client and within its time.

Does: call a handler through the middlewares, plain functions in threads; bound its time; turn what it raises into the
error that its client gets, and a line in the log; run background tasks.
Does not: know sessions (app_gate) or what a handler is called for.
Called by: app_gate, app_testing.
Never break: `run` ends within `timeout_s` of a handler that yields; whatever a handler raises is a CommandError of its
one client.

A thread can't be ended. One that hangs keeps its place, and when all do, every plain handler fails by its timeout,
while coroutine handlers and all of the hub go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from math import inf
from typing import Any, TypeVar

from . import errors
from .app import App, Call, Client, Handler, Reject, describe
from .errors import CommandError, HubError, Reply
from .log import Brake

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Rejected(CommandError):
    """What a Reject becomes. data: as it has it."""

    def __init__(self, reject: Reject) -> None:
        text = str(reject) or errors.PERMISSION_DENIED.text
        super().__init__(Reply(reject.code, text), text)
        self.data = reject.data


class Unavailable(CommandError):
    """A handler failed for what will pass, and by no fault of the application's: Redis is away, or too much waits."""

    def __init__(self) -> None:
        super().__init__(errors.INTERNAL, "Redis is away, or too much waits; try again")


class Runner:
    """The handlers of one worker. Build it with a running loop."""

    def __init__(self, app: App, timeout_s: float = 5.0, threads: int = 8, pending: int = 10_000) -> None:
        """threads: of plain handlers. pending: calls at a time; the next one is refused as temporary."""
        self.app = app
        self.timeout_s = timeout_s
        self.failed = 0
        """Handlers that raised something else than Reject, since the start."""
        self.timed_out = 0
        self._told = (0, 0)
        """The same when they were reported last."""
        self._pending = pending
        self._pool = ThreadPoolExecutor(threads, "app")
        self._free = asyncio.Semaphore(threads)
        """Threads without work: nothing is handed to a pool of which all are busy, so its queue stays empty."""
        self._calls: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._brakes: dict[Handler | None, Brake] = {}
        """One for each handler: what often fails must not hide what fails for another reason."""

    def start(self) -> None:
        """Begin the background tasks."""
        for function in self.app.tasks:
            task = asyncio.get_running_loop().create_task(self._live(function.__name__, function()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _live(self, name: str, running: Coroutine[Any, Any, None]) -> None:
        try:
            await running
        except Exception as error:
            # The border of the application: the hub serves on without that task.
            logger.error("the background task %s of the application failed: %s", name, describe(error))

    async def close(self) -> None:
        """End: background tasks at once, calls by their timeout."""
        for task in self._tasks:
            task.cancel()
        for tasks, timeout_s in ((set(self._tasks), 1.0), (set(self._calls), self.timeout_s)):
            if tasks:
                await asyncio.wait(tasks, timeout=timeout_s)
        for task in self._calls:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def report(self) -> str:
        """A line for the log about calls that came to nothing, '' where there was none since the last one."""
        now = (self.failed, self.timed_out)
        if now == self._told:
            return ""
        self._told = now
        return f"application: {self.failed} calls failed, {self.timed_out} took too long"

    def begin(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Have it run, in the order of the calls. Raises CommandError 111 when too much runs."""
        if len(self._calls) >= self._pending:
            work.close()
            raise CommandError(errors.TOO_MANY_REQUESTS, "too many calls of the application are under way")
        task = asyncio.get_running_loop().create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def run(self, handler: Handler | None, client: Client, call: Call, until: float = inf) -> Any:
        """What the handler, or the nearest middleware, returns. None: the middlewares alone are asked.

        until: when it is given up at the latest, by the loop's clock, where several calls share one `timeout_s`.

        Raises CommandError: with the words of a Reject, or 100 for a failure of the application's own.
        """
        proceed = partial(self._invoke, handler, client, call)
        for middleware in reversed(self.app.middlewares):
            proceed = partial(middleware, client, call, proceed)
        limit = asyncio.timeout_at(min(asyncio.get_running_loop().time() + self.timeout_s, until))
        try:
            async with limit:
                return await proceed()
        except Reject as reject:
            raise Rejected(reject) from None
        except Exception as error:
            # The border of one call: its client is told, the operator reads the cause, everybody else goes on.
            if isinstance(error, HubError) and errors.is_temporary(error):
                raise Unavailable from None
            if limit.expired():
                self.timed_out += 1
                text = f"no end after {self.timeout_s:g} s (app.timeout_s)"
            else:
                self.failed += 1
                text = describe(error)
            brake = self._brakes.setdefault(handler, Brake())
            brake.warning(logger, "the application's %s %r, client %s: %s", call.kind, call.name, client.id, text)
            raise CommandError(errors.INTERNAL, "the application failed") from None

    async def _invoke(self, handler: Handler | None, client: Client, call: Call) -> Any:
        if handler is None:
            return None
        if iscoroutinefunction(handler):
            return await handler(client, *call.args)
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        try:
            working: Future[Any] = self._pool.submit(handler, client, *call.args)
        except BaseException:
            self._free.release()
            raise
        # Not when the waiting ends but when the thread is free again.
        working.add_done_callback(lambda _: _soon(loop, self._free))
        result = await asyncio.wrap_future(working)
        return await result if isawaitable(result) else result


def _soon(loop: asyncio.AbstractEventLoop, free: asyncio.Semaphore) -> None:
    if not loop.is_closed():  # a thread that hung may outlive the worker's loop
        loop.call_soon_threadsafe(free.release)
