"""Errors: one tree, and the two tables of codes that clients see.

    HubError                        everything the hub raises on purpose
    ├── ConfigError                 the operator's settings; one line, exit status 2
    ├── BootError                   a process cannot start: port in use, Redis away; one line, exit status 3
    ├── ProtocolError               the client broke its wire; carries the Close to end the connection with
    ├── CommandError                one command fails, the connection lives; carries the Reply code
    ├── BrokerUnavailable           Redis is away; our fault and temporary (client code 100, HTTP 503)
    │   └── StoreFull               it has no room for what is kept; the same codes
    └── RelayError                  the worker in which a session lives gave no answer
        ├── OwnerGone               it has ended, and the session with it (HTTP 404)
        ├── OwnerSlow               not in time (HTTP 504)
        └── OwnerFailed             it could not (HTTP 500)

Does: name each code once, with its text and whether the client should come back; word an error for the server API.
Does not: decide when a code applies; the room that finds the fault raises it.
The codes are Centrifugo's (https://centrifugal.dev/docs/server/codes), so stock SDKs react rightly.
A new code needs a row here and a test in the room that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
"""Bad settings or a bad command line; nothing was started."""
EXIT_BOOT = 3
"""The settings are fine but the machine is not: port in use, Redis away."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An error that answers one command: code, text, and whether trying again may help."""

    code: int
    text: str
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """A reason that a connection ends.

    Below 3500 (and for 1xxx as the RFC has it) clients reconnect, from 3500 on they don't; of an application's own
    codes they do below 4500.
    """

    code: int
    reason: str

    @property
    def reconnect(self) -> bool:
        return self.code < 3500 or 4000 <= self.code < 4500


INTERNAL = Reply(100, "internal server error", temporary=True)
UNAUTHORIZED = Reply(101, "unauthorized")
UNKNOWN_CHANNEL = Reply(102, "unknown channel")
PERMISSION_DENIED = Reply(103, "permission denied")
METHOD_NOT_FOUND = Reply(104, "method not found")
ALREADY_SUBSCRIBED = Reply(105, "already subscribed")
LIMIT_EXCEEDED = Reply(106, "limit exceeded")
BAD_REQUEST = Reply(107, "bad request")
NOT_AVAILABLE = Reply(108, "not available")
TOKEN_EXPIRED = Reply(109, "token expired")
EXPIRED = Reply(110, "expired")
TOO_MANY_REQUESTS = Reply(111, "too many requests", temporary=True)
UNRECOVERABLE_POSITION = Reply(112, "unrecoverable position")

STORE_FULL = "the store is full; try again"
"""What INTERNAL says where nothing is broken and nothing away."""

UNSUBSCRIBE_CODE = 2500
"""Ends one subscription and not the connection; upon it SDKs subscribe anew, with the position that they have."""

UNSUBSCRIBE_EXPIRED_CODE = 2501
"""The same where a channel token has ended: SDKs ask their application for another one."""

CLOSE_NORMAL = Close(3000, "connection closed")
CLOSE_SHUTDOWN = Close(3001, "shutdown")
CLOSE_SERVER_ERROR = Close(3004, "internal server error")
CLOSE_EXPIRED = Close(3005, "connection expired")
CLOSE_SUBSCRIPTION_EXPIRED = Close(3006, "subscription expired")
CLOSE_SLOW = Close(3008, "slow")
CLOSE_WRITE_ERROR = Close(3009, "write error")
CLOSE_INSUFFICIENT_STATE = Close(3010, "insufficient state")
CLOSE_FORCE_RECONNECT = Close(3011, "force reconnect")
CLOSE_NO_PONG = Close(3012, "no pong")
CLOSE_TOO_MANY_REQUESTS = Close(3013, "too many requests")
CLOSE_INVALID_TOKEN = Close(3500, "invalid token")
CLOSE_BAD_REQUEST = Close(3501, "bad request")
CLOSE_STALE = Close(3502, "stale")
CLOSE_FORCE_DISCONNECT = Close(3503, "force disconnect")
CLOSE_CONNECTION_LIMIT = Close(3504, "connection limit")
CLOSE_CHANNEL_LIMIT = Close(3505, "channel limit")
CLOSE_INAPPROPRIATE_PROTOCOL = Close(3506, "inappropriate protocol")
CLOSE_PERMISSION_DENIED = Close(3507, "permission denied")
CLOSE_NOT_AVAILABLE = Close(3508, "not available")
CLOSE_TOO_MANY_ERRORS = Close(3509, "too many errors")

# RFC 6455 §7.4.1, for faults of the wire itself.
CLOSE_BY_PEER = Close(1000, "")
"""The answer to a close frame that names no code."""
CLOSE_PROTOCOL_ERROR = Close(1002, "protocol error")
CLOSE_UNSUPPORTED = Close(1003, "unsupported data")
CLOSE_INVALID_DATA = Close(1007, "invalid data")
CLOSE_POLICY = Close(1008, "policy violation")
CLOSE_TOO_BIG = Close(1009, "message too big")


class HubError(Exception):
    """Whatever the hub raises on purpose; its text is one line for a person."""

    told = False
    """A command with --json has said it on standard output already, in words of its own."""


class ConfigError(HubError):
    """A mistake in the settings. The text names the key, what was found and what is allowed."""


class BootError(HubError):
    """The process cannot start on this machine as it is now. The text says what to do."""


class ProtocolError(HubError):
    """The client broke its wire; the connection ends with `close`."""

    def __init__(self, close: Close, detail: str = "") -> None:
        super().__init__(detail or close.reason)
        self.close = close


class CommandError(HubError):
    """One command fails with `reply`; the connection goes on."""

    def __init__(self, reply: Reply, detail: str = "") -> None:
        super().__init__(detail or reply.text)
        self.reply = reply


class BrokerUnavailable(HubError):
    """Redis did not take the command, or did not answer in time. Trying again later may help."""


class StoreFull(BrokerUnavailable):
    """The store has no room for a publication that would be kept; nothing has happened."""


class RelayError(HubError):
    """The worker in which a session lives was asked and gave no answer."""


class OwnerGone(RelayError):
    """It has ended, and the session with it. What was asked just then may have been done."""


class OwnerSlow(RelayError):
    """No answer in time, or too much waits for it; it may still be done."""


class OwnerFailed(RelayError):
    """What was asked is too large, or its handler raised."""


def is_temporary(error: HubError) -> bool:
    """Whether the same request may succeed later: Redis is away or a queue is full."""
    return error.reply.temporary if isinstance(error, CommandError) else True


def error_body(error: HubError) -> dict[str, object]:
    """{"code":102,"message":"unknown channel"}, with "temporary":true where that is so."""
    if isinstance(error, CommandError):
        body: dict[str, object] = {"code": error.reply.code, "message": str(error)}
    else:
        text = STORE_FULL if isinstance(error, StoreFull) else "Redis is away; try again"
        body = {"code": INTERNAL.code, "message": text}
    return {**body, "temporary": True} if is_temporary(error) else body


def raise_if_hopeless(outcomes: Sequence[object]) -> None:
    """Raise the first outcome where all are errors that may pass: then the whole may be tried again."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, HubError) and is_temporary(outcome)]
    if failed and len(failed) == len(outcomes):
        raise failed[0]
