"""Errands: what an application does to one client, in whatever worker that is: emit, call, disconnect.

Does: act on a client of this worker at once; send the rest over the control channel, which all workers hear; wait for
the answers to calls.
Does not: word messages (control), send them (registry), or reach a client (app_seat).
Called by: app_gate (what the application does), registry (`on_errand`).
Never break: `on_errand` never waits, for it runs between publications. An errand for a client that is nowhere is
without effect, as an emission to a room in which nobody is: nobody can know that without asking everybody.

An errand is work for every worker, if little: what goes to many is an emission to a room. At most 64 KB in all, also
for a client of this very worker, so that it does not depend on where somebody is.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from . import control, errors
from .app_seat import Seat, check_event
from .control import ANSWER, CALL, DISCONNECT, EMIT, MAX_CALL_S, Errand
from .emission import marked, unmarked
from .errors import CommandError, HubError, Reply

logger = logging.getLogger(__name__)

GONE = "gone"
"""Answers a call of which the client went before it acked."""


class Errands:
    """Those of one worker's application, and those of others for its clients."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        find: Callable[[str], Seat | None],
        pending: int = 10_000,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """send: to all workers; raises HubError. find: a client of this worker, by its id. pending: calls at a time."""
        self._send = send
        self._find = find
        self._pending = pending
        self._new_id = new_id
        self._calls: dict[str, asyncio.Future[Errand]] = {}
        """Of this worker's application, which wait for their answers."""
        self._asking: set[asyncio.Task[None]] = set()
        """Of other workers' applications, which wait for acks."""

    async def close(self) -> None:
        """Nobody is answered any more."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    # What the application does.

    async def emit(self, client: str, name: str, args: tuple[Any, ...], volatile: bool) -> None:
        """Send an event to one client. Raises HubError."""
        check_event(name)
        message = _encode(EMIT, client=client, name=name, args=args, volatile=volatile)
        seat = self._find(client)
        if seat is None:
            await self._send(message)
        elif seat.accepted:
            seat.emit(name, args, volatile)

    async def call(self, client: str, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        """The same, and wait for its ack. Raises HubError, TimeoutError, ConnectionError."""
        check_event(name)
        number = self._new_id()
        message = _encode(
            CALL, client=client, name=name, args=args, number=number, timeout_s=min(timeout_s, MAX_CALL_S)
        )
        seat = self._find(client)
        if seat is not None:
            return await seat.ask(name, args, timeout_s)
        if len(self._calls) >= self._pending:
            raise CommandError(errors.TOO_MANY_REQUESTS, f"{len(self._calls)} calls of clients are under way")
        answered = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(message)
                answer = await answered
        finally:
            del self._calls[number]
        if answer.code:
            raise CommandError(Reply(answer.code, answer.name), answer.name)
        if answer.name == GONE:
            raise ConnectionError("the client is gone")
        return _values(answer)[0]

    async def disconnect(self, client: str) -> None:
        """End its connection. Raises HubError."""
        seat = self._find(client)
        if seat is None:
            await self._send(_encode(DISCONNECT, client=client))
        else:
            seat.end()

    # What comes from all workers.

    def on_errand(self, errand: Errand) -> None:
        """Do what it says to a client of this worker. Raises ValueError for what can't be done to any."""
        if errand.what == ANSWER:
            answered = self._calls.get(errand.number)
            if answered is not None and not answered.done():
                answered.set_result(errand)
            return
        seat = self._find(errand.client)
        if seat is None or not seat.accepted:
            return
        if errand.what == DISCONNECT:
            seat.end()
        elif errand.what == EMIT:
            try:
                seat.emit(errand.name, tuple(_values(errand)), errand.volatile)
            except TypeError as error:  # what orjson reads it may not write, such as deep nesting
                raise ValueError(str(error)) from None
        elif len(self._asking) >= self._pending:
            raise ValueError(f"{len(self._asking)} calls are under way")
        else:
            task = asyncio.get_running_loop().create_task(self._ask(seat, errand))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, seat: Seat, errand: Errand) -> None:
        try:
            await self._send(await self._answer(seat, errand))
        except TimeoutError:
            pass  # whoever asked has the same deadline
        except HubError as error:
            logger.debug("the answer to a call of client %s: %s", errand.client, error)
        except Exception:
            # The border of one call: whoever asked waits for its deadline, and nobody else.
            logger.exception("a call of client %s", errand.client)

    async def _answer(self, seat: Seat, errand: Errand) -> bytes:
        """Raises TimeoutError."""
        try:
            value = await seat.ask(errand.name, tuple(_values(errand)), errand.timeout_s)
            return _encode(ANSWER, number=errand.number, args=(value,))
        except ConnectionError:
            return _encode(ANSWER, number=errand.number, name=GONE)
        except CommandError as error:
            return _encode(ANSWER, number=errand.number, name=str(error), code=error.reply.code)
        except (TypeError, ValueError) as error:
            return _encode(ANSWER, number=errand.number, name=str(error)[:200], code=errors.BAD_REQUEST.code)


def _encode(what: str, args: Sequence[Any] = (), **more: Any) -> bytes:
    """Raises CommandError 107 for what is neither JSON nor bytes, 106 for too much."""
    try:
        values, count = marked(args)
        return control.encode_errand(Errand(what, args=values, binary=bool(count), **more))
    except TypeError as error:
        raise CommandError(errors.BAD_REQUEST, str(error)) from None
    except ValueError as error:
        raise CommandError(errors.LIMIT_EXCEEDED, str(error)) from None


def _values(errand: Errand) -> list[Any]:
    return unmarked(errand.args) if errand.binary else errand.args
