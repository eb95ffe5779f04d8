"""Asking: what a client may ask of a channel: who is there, and what was published.

Does: check the namespace's rule, hand the question to the room that knows, answer.
Does not: gather what is asked (presence, catchup), or know connections (session).
Called by: session, by its COMMANDS.
Never break: every command has one reply; where a namespace keeps nothing of the kind the code is 108, whoever asks.
A new question needs its function here, and rows in session.COMMANDS and protocol.METHODS.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import orjson

from . import errors, pages
from .capabilities import HISTORY, PRESENCE
from .channels import Namespace
from .errors import CommandError, HubError
from .history import Asked, Page
from .presence import Presence
from .protocol import Command
from .roll import Roll

ANSWER_SHARE = 2
"""Of client.outbox_bytes the part that one answer with publications may take: who reads slowly must not be closed for
having asked."""


class Histories(NamedTuple):
    """Who reads histories, and how many publications, and bytes of them, one answer may have."""

    read: Callable[[Asked, Callable[[Page | HubError], None]], None]
    most: int
    most_bytes: int


class Asker(Protocol):
    """The session, as seen from here."""

    @property
    def presence(self) -> Presence: ...

    @property
    def histories(self) -> Histories: ...

    def resolve(self, command: Command) -> tuple[str, Namespace]:
        """The command's channel. Raises CommandError."""

    def check(self, action: str, channel: str, namespace: Namespace) -> None:
        """Whether the client may do it. Raises CommandError 103."""

    def begin(self) -> None:
        """One more command that waits for Redis. Raises CommandError 111."""

    def end(self) -> None:
        """One of them has its answer."""

    def reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None: ...

    def fail(self, command_id: int, error: HubError) -> None: ...


def presence(session: Asker, command: Command) -> None:
    """{"channel"} -> {"presence":{CLIENT:{"user":"42","client":CLIENT}}}; 106 where they are too many for an answer."""
    _ask_presence(session, command, full=True)


def presence_stats(session: Asker, command: Command) -> None:
    """{"channel"} -> {"num_clients":3,"num_users":2}; the anonymous user is not counted as one."""
    _ask_presence(session, command, full=False)


def _ask_presence(session: Asker, command: Command, full: bool) -> None:
    channel, namespace = session.resolve(command)
    if namespace.presence == "off":
        raise CommandError(errors.NOT_AVAILABLE, "presence is not available in this namespace")
    session.check(PRESENCE, channel, namespace)
    session.begin()
    session.presence.ask(channel, full, partial(_answer_presence, session, command))


def _answer_presence(session: Asker, command: Command, verdict: Roll | HubError) -> None:
    session.end()
    if isinstance(verdict, HubError):
        session.fail(command.id, verdict)
    else:
        session.reply(command.id, command.method, presence_body(verdict))


def history(session: Asker, command: Command) -> None:
    """{"channel","limit"?,"since"?,"reverse"?} -> {"publications":[…],"offset","epoch"}; pages has the words."""
    channel, namespace = session.resolve(command)
    pages.check_kept(namespace)
    session.check(HISTORY, channel, namespace)
    request = pages.wanted(command.params, session.histories.most)
    since = None if request.since is None else request.since.offset
    session.begin()
    asked = Asked(channel, namespace, since, request.limit, request.reverse, session.histories.most_bytes)
    session.histories.read(asked, partial(_answer_history, session, command, request))


def _answer_history(session: Asker, command: Command, request: pages.Wanted, page: Page | HubError) -> None:
    session.end()
    if isinstance(page, HubError):
        session.fail(command.id, page)
        return
    try:
        session.reply(command.id, command.method, pages.body(pages.judged(page, request)))
    except CommandError as error:
        session.fail(command.id, error)


def presence_body(roll: Roll) -> dict[str, Any]:
    """The result of `presence` or `presence_stats`, for a client and in the server API alike."""
    if roll.body is not None:
        return {"presence": orjson.Fragment(roll.body)}
    return {"num_clients": roll.clients, "num_users": roll.users}
