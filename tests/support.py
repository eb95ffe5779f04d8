"""What several test files share: a fake clock, and a decorator that runs a coroutine test on the hub's own loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

import uvloop


def async_test(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine test on uvloop, at most 60 s: a test that hangs fails and does not stall the suite."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run


class FakeClock:
    """A clock that moves only when told to; call it for the time in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
