"""Signals: how those that the supervisor handles become calls in its loop.

Does: a handler that does nothing, the interpreter's wakeup pipe, and a call for each number that is read from it; hold
them for whoever takes this process over; know whether the terminal has gone.
Does not: know what a signal means (supervisor), or reset them in a child (seat).
Called by: supervisor and its rooms.
Never break: nothing happens in a handler, so that a signal never meets half of a step; and none is lost on the way from
one version to the next.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .seat import SUPERVISED_SIGNALS

STDIN_FD = 0
READ_BYTES = 4096
"""A byte for each signal; more than that wait for the next turn."""


class Signals:
    """Those of one supervisor, from `open` to `close`.

    handle: called from its loop with the number of each, and the time of the turn.
    """

    def __init__(self, handle: Callable[[int, float], None]) -> None:
        self._handle = handle

    def open(self, selector: selectors.BaseSelector) -> None:
        """Handle them from now on. selector: calls what is registered with the time."""
        self._had_terminal = os.isatty(STDIN_FD)
        self._wakeup, self._wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        selector.register(self._wakeup, selectors.EVENT_READ, self._read)
        # The handlers do nothing: the interpreter writes each signal's number to the pipe, and the loop acts on it.
        self._old_wakeup = signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in SUPERVISED_SIGNALS}
        # Blocked by whoever made the exec, so that none of them met this process without its handlers.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)

    def leave(self) -> None:
        """In a child: close what is the supervisor's."""
        os.close(self._wakeup)
        os.close(self._wakeup_writer)

    def close(self) -> None:
        """The supervisor ends: they mean what they meant before."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self.leave()

    @property
    def hung_up(self) -> bool:
        """Whether the terminal that we were started in has closed, which comes as SIGHUP and means the end."""
        return self._had_terminal and not os.isatty(STDIN_FD)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What comes meanwhile, and what is still in the pipe, is pending (signal.sigpending).

        It waits for the handlers of the next version, which an exec leaves it to; without one, it is handled by us.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
        try:
            try:
                waiting = os.read(self._wakeup, READ_BYTES)
            except BlockingIOError:
                waiting = b""
            for number in waiting:
                os.kill(os.getpid(), number)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)

    def _read(self, now: float) -> None:
        for number in os.read(self._wakeup, READ_BYTES):
            self._handle(number, now)
