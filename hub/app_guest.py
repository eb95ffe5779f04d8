"""Guests: clients of plain HTTP, as an application meets them.

Does: ask it about one request: may it come in, may it have a channel, what is to be published; stand for the event
stream that the request becomes.
Does not: check tokens or the namespaces' rules (transports.plain), run handlers (app_runner), keep seats (app_gate).
Called by: transports.plain, transports.sse, transports.publishing, where an application is configured.
Never break: a client that has gone is asked about no more, and one that waits does so for no longer than
`app.timeout_s`, however many channels its request names.

A poll and a publication are over with their answers, so for them there is `on_connect` and no more: who comes with each
request is neither connected nor disconnected. An event stream is, from its first byte to its last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from . import app as apps
from . import errors
from .app import Call
from .app_gate import Gate
from .app_seat import Transport
from .app_session import encode_event
from .channels import Namespace
from .errors import CommandError, HubError


class Gone(HubError):
    """The client went while the application was asked; nobody is to be told."""


class Stream(Transport, Protocol):
    """An event stream, as seen from here."""

    def holds(self, channel: str) -> bool: ...


class Guest:
    """The client of one request, whose namespace is ''. Make it when the application is about to be asked."""

    __slots__ = ("_dismissed", "_gate", "_seat", "_stream", "_until", "client", "user")

    def __init__(self, gate: Gate, client: str, user: str) -> None:
        """client: the hub's name for it. user: as its token says; the application may say otherwise in `connect`."""
        self.client = client
        self.user = user
        self._gate = gate
        self._seat = gate.seat(self)
        self._until = asyncio.get_running_loop().time() + gate.runner.timeout_s
        self._stream: Stream | None = None
        self._dismissed = False

    # What its request asks. All raise CommandError, as handlers do, and Gone.

    async def connect(self) -> None:
        """May it come in, and as whom?"""
        self._seat.claim(await self._ask(apps.CONNECT, "", None), self._gate.claims_bytes)

    async def subscribe(self, channel: str) -> None:
        """May it have a channel?"""
        await self._ask(apps.SUBSCRIBE, channel, channel)

    async def publish(self, channel: str, data: Any) -> Any:
        """What is to be published."""
        changed = await self._ask(apps.PUBLISH, channel, channel, data)
        return data if changed is None else changed

    async def _ask(self, kind: str, name: str, *args: Any) -> Any:
        if self._seat.gone:
            raise Gone
        runner = self._gate.runner
        handler = runner.app.handler(kind, "")
        if handler is None and kind != apps.CONNECT:
            return None
        answer = await runner.run(handler, self._seat.client, Call(kind, name, args), self._until)
        if self._dismissed:
            raise CommandError(errors.PERMISSION_DENIED)
        return answer

    # How long it is here.

    async def stay(self, begin: Callable[[], Stream | None]) -> bool:
        """It is let in. begin: its event stream; None, and then False, where that can't be had any more.

        Returns once the application has been told.
        """

        def accept() -> bool:
            self._stream = begin()
            return self._stream is not None

        return await self._gate.let_in(self._seat, accept)

    def on_gone(self) -> None:
        """It has gone; once or more often."""
        self._seat.lose()
        self._gate.gone(self)

    # What the application does to it.

    @property
    def transport(self) -> Stream:
        assert self._stream is not None, "nobody looks before it is let in"
        return self._stream

    def emit_event(self, name: str, args: tuple[Any, ...], number: int | None = None) -> None:
        """As a message of the native protocol, which is a `notice` there. Raises CommandError 108 where an ack is
        wanted.
        """
        stream = self.transport
        stream.put(stream.wire.encode_message(encode_event(name, args, number)))

    def join(self, channel: str, namespace: Namespace, done: Callable[[HubError | None], None]) -> None:
        """Its cursor knows the channels that its request names, and no others."""
        done(CommandError(errors.NOT_AVAILABLE, "an event stream has the channels that its request names"))

    def leave(self, channel: str) -> None:
        """Its stream ends if it has that channel; it comes back by itself, and the application is asked anew."""
        if self._stream is not None and self._stream.holds(channel):
            self._stream.close(errors.CLOSE_FORCE_RECONNECT)

    def dismiss(self) -> None:
        """The stream ends; a request that has no answer yet is refused."""
        if self._stream is not None:
            self._stream.close(errors.CLOSE_FORCE_DISCONNECT)
        self._dismissed = True
