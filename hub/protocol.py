"""The native protocol: Centrifugo's JSON client protocol, version 2, bytes ⇄ objects.

Does: take a client's message apart into commands, write replies, errors and pushes.
Does not: touch sockets or frames, know sessions, or decide anything; limits are passed in.
Called by: session (commands, replies), transports (pushes as wire bytes).
Source: https://centrifugal.dev/docs/transports/client_protocol and its protobuf schema; JSON keys are the schema's
names. A new command needs a row in METHODS and one in session's table.

A message is one command or several, one per line; an empty command `{}` is a pong. A reply carries its command's id:
    → {"id":1,"connect":{"token":"…"}}            ← {"id":1,"connect":{"client":"…","ping":25,"pong":true}}
    → {"id":2,"subscribe":{"channel":"a"}}        ← {"id":2,"error":{"code":103,"message":"permission denied"}}
                                                  ← {"push":{"channel":"a","pub":{"data":1}}}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from .errors import CLOSE_BAD_REQUEST, Close, ProtocolError, Reply
from .nesting import TooManyValues, openers, parse, too_deep

METHODS = frozenset(
    {
        "connect",
        "subscribe",
        "unsubscribe",
        "publish",
        "presence",
        "presence_stats",
        "history",
        "ping",
        "send",
        "rpc",
        "refresh",
        "sub_refresh",
    }
)
PING = b"{}"
MAX_ID = 2**32 - 1
"""`id` is a uint32 in the schema."""


class Command(NamedTuple):
    """One command. id 0: the client expects no reply. method '': a pong; 'unknown': none of METHODS; 'too_deep'."""

    id: int
    method: str
    params: dict[str, Any]


PONG = Command(0, "", {})
ENVELOPE = 2
"""Levels of nesting around the data of a command: {"publish":{"data":…}}."""
CLOSE_TOO_MANY_VALUES = Close(CLOSE_BAD_REQUEST.code, "too many values in one command")


def decode(message: bytes, most: int, depth: int = 32, values: int = 10_000) -> list[Command]:
    """Take a message apart; at most `most` commands, each of at most so many values, and `depth` levels of data.

    Raises ProtocolError (3501): not JSON, not an object, no or several methods, a bad id, too many commands or values.
    """
    if message == PING:
        return [PONG]
    lines = message.split(b"\n")
    if len(lines) > most + 1:
        raise ProtocolError(CLOSE_BAD_REQUEST, f"found over {most} commands in one message; allowed: {most}")
    commands = [_command(line, depth + ENVELOPE, values) for line in lines if line]
    if not commands:
        raise ProtocolError(CLOSE_BAD_REQUEST, "found an empty message")
    return commands


def _command(line: bytes, depth: int, values: int) -> Command:
    try:
        found = parse(line, values) if len(line) > values else orjson.loads(line)
    except TooManyValues as error:
        raise ProtocolError(CLOSE_TOO_MANY_VALUES, str(error)) from None
    except orjson.JSONDecodeError as error:
        raise ProtocolError(CLOSE_BAD_REQUEST, f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ProtocolError(CLOSE_BAD_REQUEST, "a command must be a JSON object")
    if not found:
        return PONG
    command_id = found.pop("id", 0)
    if type(command_id) is not int or not 0 <= command_id <= MAX_ID:
        raise ProtocolError(CLOSE_BAD_REQUEST, f"id must be a whole number from 0 to {MAX_ID}")
    if len(line) > 2 * depth and openers(line) > depth and too_deep(found, depth):
        return Command(command_id, "too_deep", {})
    if len(found) == 1:
        [method] = found
        if method not in METHODS:
            return Command(command_id, "unknown", {})
    else:
        methods = [name for name in found if name in METHODS]
        if len(methods) > 1:
            raise ProtocolError(CLOSE_BAD_REQUEST, f"one command has several methods: {', '.join(methods)}")
        if not methods:
            return Command(command_id, "unknown", {})
        method = methods[0]
    params = found[method]
    if not isinstance(params, dict):
        raise ProtocolError(CLOSE_BAD_REQUEST, f"{method} must be a JSON object")
    return Command(command_id, method, params)


def encode_reply(command_id: int, method: str, result: dict[str, Any]) -> bytes:
    """b'{"id":1,"subscribe":{}}'"""
    return orjson.dumps({"id": command_id, method: result})


def fragments(bodies: Iterable[bytes]) -> orjson.Fragment:
    """Bodies of publications, to stand in a reply as they are: an array of all of them.

    One fragment: in a storm of clients who come back each has its own reply, where one for each body takes 3 times as
    long.
    """
    return orjson.Fragment(b"[%b]" % b",".join(bodies))


def encode_error(command_id: int, reply: Reply, detail: str = "") -> bytes:
    """b'{"id":1,"error":{"code":103,"message":"permission denied"}}'; `detail`, where given, is the message instead."""
    error: dict[str, Any] = {"code": reply.code, "message": detail or reply.text}
    if reply.temporary:
        error["temporary"] = True
    return orjson.dumps({"id": command_id, "error": error})


def encode_publication(channel: str, body: bytes) -> bytes:
    """b'{"push":{"channel":"a","pub":{"data":1}}}'; `body` is a publication's body, put in as it is."""
    return b'{"push":{"channel":' + orjson.dumps(channel) + b',"pub":' + body + b"}}"


def encode_arrival(channel: str, body: bytes) -> bytes:
    """b'{"push":{"channel":"a","join":{"info":{…}}}}'; `body` is that of an Arrival, put in as it is."""
    return b'{"push":{"channel":' + orjson.dumps(channel) + b"," + body + b"}}"


def encode_message(data: Any) -> bytes:
    """b'{"push":{"message":{"data":…}}}': from the hub itself; SDKs raise a `message` event."""
    return orjson.dumps({"push": {"message": {"data": data}}})


def encode_disconnect(code: int, reason: str) -> bytes:
    """b'{"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}'; on wires that have no close frame."""
    return orjson.dumps({"push": {"disconnect": {"code": code, "reason": reason}}})


def encode_subscribe(channel: str, result: dict[str, Any]) -> bytes:
    """b'{"push":{"channel":"a","subscribe":{}}}': the server has subscribed the client; as a SubscribeResult."""
    return orjson.dumps({"push": {"channel": channel, "subscribe": result}})


def encode_unsubscribe(channel: str, code: int, reason: str) -> bytes:
    """b'{"push":{"channel":"a","unsubscribe":{"code":2500,"reason":"…"}}}'; from 2500 on SDKs subscribe again."""
    return orjson.dumps({"push": {"channel": channel, "unsubscribe": {"code": code, "reason": reason}}})
