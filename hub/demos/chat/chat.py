"""Chat: the server code of the demo, an application of hub's as anybody may write one (`make chat`).

Does: let people in by a name, say what they say in rooms, carry direct messages and their marks, tell who is mentioned.
Does not: keep anything, for channels do: what is said is the history of `chat:ROOM`; a user's own things are that of
`me:#USER`, which all devices of the user read; what a user must not miss is in the mailbox `inbox:#USER` until a device
has acknowledged it. Nor is typing its business: pages publish that themselves, on `signs:ROOM`.
Never break: a call that is repeated with the same `id` does no harm, since clients know a message again by it. So who
got no answer, for whatever was killed in the middle, simply asks again.

    connect  {"name":"ann"}, or a token                        who it is
    login    {}                                              → {"user","token","ttl_s"}, for wires that send no name
    say      {"id","room","text"}                            → {"id","at"}; chat:v1 and chat:v2 in chat:ROOM
    direct   {"id","to","text"}                              → {"id","at"}; direct:v1 for both users
    mark     {"to","ids","state":"delivered" or "read"}      → {}; mark:v1 for both users

All are rpc methods, and events of Socket.IO with acks. Names of events end in the version of what they carry:

    chat:v1    {"id","room","user","text"}
    chat:v2    {"id","room","user","text","at"}              with the time in ms
    direct:v1  {"id","from","to","text","at"}
    mark:v1    {"by","to","ids","state"}
    notice:v1  {"id","room","from","text","at"}              somebody has mentioned you
"""

from __future__ import annotations

import re
import time
from typing import Any

import jwt

from hub.app import App, Client, Reject
from hub.errors import BAD_REQUEST, CommandError, is_temporary

SECRET = "chat-secret-which-everybody-knows"
"""auth.hmac_secret of config/chat.toml. A real application takes its own from where only it can read it."""
TOKEN_TTL_S = 86_400
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,23}")
"""Of users and of rooms, so that they can stand in the names of channels."""
ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
MENTION = re.compile(r"(?<![\w@])@([A-Za-z0-9][A-Za-z0-9_-]{0,23})")
TEXT_LETTERS = 2000
MENTIONS = 10
"""In one message: it is one publication more for each."""
MARKED = 100
STATES = ("delivered", "read")

app = App()


@app.on_connect()
async def connect(client: Client, data: Any) -> dict[str, str]:
    """Let in who brings a token of `login`, or a name.

    FOR THE DEMO ONLY: whoever says a name is believed. A real application asks for a password or a cookie here, or
    takes nothing but tokens that its own login has made.
    """
    if client.user:
        return {"user": _name(client.user, "the token's user")}
    if not isinstance(data, dict) or "name" not in data:
        raise Reject("who are you? a token, or a name, is missing")
    return {"user": _name(data["name"], "name")}


@app.on("login")
@app.on_rpc("login")
async def login(client: Client, _: Any = None) -> dict[str, Any]:
    """A token for whom `connect` has let in: event streams and polls carry nothing else."""
    claims = {"sub": client.user, "exp": int(time.time()) + TOKEN_TTL_S}
    return {"user": client.user, "token": jwt.encode(claims, SECRET, algorithm="HS256"), "ttl_s": TOKEN_TTL_S}


@app.on("say")
@app.on_rpc("say")
async def say(client: Client, data: Any = None) -> dict[str, Any]:
    """Say something in a room.

    Two versions at once: a client listens to the name that it knows and passes over the other. It costs each message
    twice, for as long as old clients are about; then the first emit goes.
    """
    values = _object(data)
    room, at = _name(values.get("room"), "room"), _now_ms()
    message = {"id": _id(values), "room": room, "user": client.user, "text": _text(values)}
    await app.emit("chat:v1", message, to=f"chat:{room}")
    await app.emit("chat:v2", {**message, "at": at}, to=f"chat:{room}")
    notice = {"id": message["id"], "room": room, "from": client.user, "text": message["text"], "at": at}
    for user in _mentioned(message["text"], client.user):
        try:
            await _tell(user, "notice:v1", notice)
        except Reject:
            pass  # the mailbox is full of what nobody fetches; the message itself has been said
    return {"id": message["id"], "at": at}


@app.on("direct")
@app.on_rpc("direct")
async def direct(client: Client, data: Any = None) -> dict[str, Any]:
    """Say something to one user, who may be away for as long as the mailbox keeps it."""
    values = _object(data)
    to, at = _name(values.get("to"), "to"), _now_ms()
    message = {"id": _id(values), "from": client.user, "to": to, "text": _text(values), "at": at}
    await _tell(to, "direct:v1", message)
    if to != client.user:
        await app.emit("direct:v1", message, to=f"me:#{client.user}")
    return {"id": message["id"], "at": at}


@app.on("mark")
@app.on_rpc("mark")
async def mark(client: Client, data: Any = None) -> dict[str, Any]:
    """A device of this user has got, or its user has seen, messages of another's. All devices of both hear of it."""
    values = _object(data)
    to, ids, state = _name(values.get("to"), "to"), values.get("ids"), values.get("state")
    if not isinstance(ids, list) or not 0 < len(ids) <= MARKED:
        raise Reject(f"ids: allowed is a list of 1 to {MARKED}", BAD_REQUEST.code)
    if state not in STATES:
        raise Reject(f"state: allowed are {' and '.join(STATES)}", BAD_REQUEST.code)
    words = {"by": client.user, "to": to, "ids": [_id({"id": one}) for one in ids], "state": state}
    for user in {client.user, to}:
        await app.emit("mark:v1", words, to=f"me:#{user}")
    return {}


async def _tell(user: str, event: str, words: dict[str, Any]) -> None:
    """Have a user learn something: the mailbox keeps it until one device has it, and all that are here get it now."""
    try:
        await app.publish(f"inbox:#{user}", {"event": event, **words})
    except CommandError as error:
        if is_temporary(error):
            raise
        raise Reject(f"{user}: {error}", error.reply.code) from None
    await app.emit(event, words, to=f"me:#{user}")


def _mentioned(text: str, but: str) -> list[str]:
    names = dict.fromkeys(found.lower() for found in MENTION.findall(text))
    names.pop(but, None)
    return list(names)[:MENTIONS]


def _now_ms() -> int:
    return int(time.time() * 1000)


# What came from outside.


def _object(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Reject("allowed is one argument, an object", BAD_REQUEST.code)
    return data


def _name(value: Any, what: str) -> str:
    name = value.strip().lower() if isinstance(value, str) else ""
    if not NAME.fullmatch(name):
        raise Reject(f"{what}: allowed are 1 to 24 of a-z 0-9 _ -, a letter or digit first", BAD_REQUEST.code)
    return name


def _id(values: dict[str, Any]) -> str:
    """The sender's own, by which a message that was sent twice is known again."""
    value = values.get("id")
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise Reject("id: allowed are 8 to 64 of A-Z a-z 0-9 _ -", BAD_REQUEST.code)
    return value


def _text(values: dict[str, Any]) -> str:
    text = values.get("text")
    if not isinstance(text, str) or not 0 < len(text.strip()) <= TEXT_LETTERS:
        raise Reject(f"text: allowed are 1 to {TEXT_LETTERS} letters", BAD_REQUEST.code)
    return text.strip()
