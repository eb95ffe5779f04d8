"""API of control: who is connected, and having connections ended, moved, refused, on all workers and machines.

Does: read a request's parameters, have all workers carry it out, add up what they answer.
Does not: know HTTP, keys or batches (api), nor how a worker does it (orders).
Called by: api, from its METHODS.
Never break: as in api, an option that would change what a request means is honoured or refused.

    connections   {"user"?,"channel"?,"client"?,"session"?,"address"?,"limit"?,"after"?}
                                  -> {"connections":{CLIENT:{"user","transport","protocol","address","age_s","channels",
                                      "num_channels","outbox_bytes"}},"next"?}   by client id; `next` is the next page's
                                      `after`
    disconnect    WHOM, {"code"?,"reason"?} or {"disconnect":{"code","reason"}}, "whitelist"?
                                        -> {"num_clients":2,"num_nodes":1}    num_nodes: workers that had some of them
    subscribe     WHOM, "channel"       -> {"num_clients":2,"num_refused"?:1}
    unsubscribe   WHOM, "channel"       -> {"num_clients":2}
    refresh       WHOM, "expired":true or "expire_at":1764000000      -> {"num_clients":2}
    revoke_token  {"uid":JTI,"expire_at"?}                            -> {"num_clients":1}
    invalidate_user_tokens  {"user","issued_before"?,"expire_at"?}    -> {"num_clients":1}
    block_user    {"user","expire_at"?}                               -> {"num_clients":1}
    unblock_user  {"user"}                                            -> {}

WHOM is one or more of "user", "client" and "session" (of the HTTP emulation); all that are given must hold. Times are
in seconds since 1970. `num_clients` is how many connections, waiting polls among them, it met; who comes back is
another one. "silent_nodes" names workers that have not answered within a second: what was revoked or blocked they read
when their link to Redis is back, all else is lost to them. See https://centrifugal.dev/docs/server/server_api.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Protocol

from . import control, errors, revocation, wants
from .auth import MAX_USER_LENGTH, is_user
from .channels import Channels
from .control import Question
from .errors import CommandError
from .grants import is_time
from .mistakes import short
from .orders import CODES, MAX_LIMIT, MAX_REASON_BYTES, MAX_WHITELIST, Row, parse_met, parse_rows
from .registry import Ordered, Registry
from .revocation import Entry, Revocations

DEFAULT_LIMIT = 100
MAX_AHEAD_S = 60.0
"""Before which tokens of a user may be revoked, for clocks that differ."""
MAX_ID_LENGTH = 128
TARGETS = ("user", "client", "session")
UNAVAILABLE_OF_SUBSCRIBE = ("info", "b64info", "data", "b64data", "recover_since", "override", "expire_at")

Params = dict[str, Any]
Result = dict[str, Any]


class Api(Protocol):
    """api.Api, as seen from here."""

    @property
    def channels(self) -> Channels: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def revocations(self) -> Revocations: ...


# Who is here.


async def connections(api: Api, params: Params) -> Result:
    """One page of connections."""
    if params.get("expression"):
        raise CommandError(errors.NOT_AVAILABLE, "expression is not available")
    channel, after = params.get("channel") or "", _text(params, "after", MAX_ID_LENGTH)
    if channel:
        api.channels.resolve(channel)
    limit = params.get("limit", DEFAULT_LIMIT)
    if type(limit) is not int or not 1 <= limit <= MAX_LIMIT:
        raise _bad("limit", limit, f"whole numbers from 1 to {MAX_LIMIT}")
    address = _text(params, "address", MAX_ID_LENGTH)
    asked = {**_target(params, anybody=True), "address": address, "channel": channel, "after": after, "limit": limit}
    ordered = await _order(api, "connections", asked)
    rows: list[Row] = []
    ends: list[str] = []
    for found, cut in api.registry.readable(ordered.answers, parse_rows):
        rows += found
        if cut and found:
            ends.append(found[-1].client)
    rows.sort()
    # Behind where a worker cut its page there may be others of its: they come with the next one.
    page = [row for row in rows if not ends or row.client <= min(ends)][:limit]
    body: Result = {"connections": {row.client: _connection(row) for row in page}}
    if page and (ends or len(page) < len(rows)):
        body["next"] = page[-1].client
    return with_silent(body, ordered.silent)


def wants_list(params: Params) -> bool:
    """Whether it asks who is connected, and not only how many."""
    return any(params.get(name) for name in (*TARGETS, "address", "channel", "after", "limit", "expression"))


def _connection(row: Row) -> Result:
    body = row._asdict()
    del body["client"]
    return {**body, "protocol": "json"}


# What is done to them.


async def disconnect(api: Api, params: Params) -> Result:
    """End connections; 3503 unless another code is wanted, upon which SDKs don't come back."""
    close = params.get("disconnect") or params
    if not isinstance(close, dict):
        raise _bad("disconnect", close, "an object of code and reason")
    code, reason = close.get("code", errors.CLOSE_FORCE_DISCONNECT.code), close.get("reason")
    reason = errors.CLOSE_FORCE_DISCONNECT.reason if reason is None else reason
    if type(code) is not int or code not in CODES:
        raise _bad("code", code, f"whole numbers from {CODES.start} to {CODES.stop - 1}")
    if not isinstance(reason, str) or not _fits(reason, MAX_REASON_BYTES):
        raise _bad("reason", reason, f"a text of at most {MAX_REASON_BYTES} bytes")
    whitelist = params.get("whitelist") or []
    named = isinstance(whitelist, list) and all(isinstance(one, str) and _fits(one, MAX_ID_LENGTH) for one in whitelist)
    if not named:
        raise _bad("whitelist", whitelist, "a list of client ids")
    if len(whitelist) > MAX_WHITELIST:
        raise CommandError(errors.LIMIT_EXCEEDED, f"whitelist: found {len(whitelist)}; allowed: {MAX_WHITELIST}")
    asked = {**_target(params), "code": code, "reason": reason, "whitelist": whitelist}
    ordered = await _order(api, "disconnect", asked)
    counts = [met for met, _ in api.registry.readable(ordered.answers, parse_met)]
    return with_silent({"num_clients": sum(counts), "num_nodes": sum(map(bool, counts))}, ordered.silent)


async def subscribe(api: Api, params: Params) -> Result:
    """Have them in a channel, as a server-side subscription; the namespace's rules are not asked."""
    for option in UNAVAILABLE_OF_SUBSCRIBE:
        if params.get(option):
            raise CommandError(errors.NOT_AVAILABLE, f"{option} is not available")
    target, channel = _target(params), _channel(api, params)
    if wants.is_watch(channel, api.channels.resolve(channel)):
        raise CommandError(errors.BAD_REQUEST, "channel: a watch list has symbols, and only its client says which")
    return await _met(api, "subscribe", {**target, "channel": channel})


async def unsubscribe(api: Api, params: Params) -> Result:
    """Have them out of a channel; SDKs don't subscribe again. An event stream with it ends, with 3503."""
    return await _met(api, "unsubscribe", {**_target(params), "channel": _channel(api, params)})


async def refresh(api: Api, params: Params) -> Result:
    """Another end for a connection, whatever its token says; `expired`: now, with 3005: SDKs come with a new token."""
    expired, expire_at = params.get("expired") or None, params.get("expire_at")
    if (expired is None) == (expire_at is None):
        raise CommandError(errors.BAD_REQUEST, "expired, expire_at: allowed is one of the two")
    if expired is not None and expired is not True:
        raise _bad("expired", expired, "true and false")
    if expire_at is not None:
        _time("expire_at", expire_at)
    return await _met(api, "refresh", {**_target(params), "expire_at": expire_at})


# Who is kept out.


async def revoke_token(api: Api, params: Params) -> Result:
    """Connection tokens and channel tokens with this `jti` are good no more; those who came with one go (3500)."""
    return await _revoke(api, Entry(revocation.TOKEN, _name(params, "uid"), _until(params)))


async def invalidate_user_tokens(api: Api, params: Params) -> Result:
    """The same of all tokens of a user that were issued before a time, which is now unless said otherwise.

    `iat` mostly is in whole seconds, and rounded down. So without `issued_before` all tokens of this very second are
    out, also those that are issued right behind this call; those of the next second are good. With it, `iat` must be
    less: a token of that second is good.
    """
    if params.get("channel"):
        raise CommandError(errors.NOT_AVAILABLE, "channel is not available")
    before = params.get("issued_before") or time.time()
    _time("issued_before", before)
    if before > time.time() + MAX_AHEAD_S:
        # It would keep out what has not been issued yet, and nothing takes it back; such as milliseconds.
        raise _bad("issued_before", before, f"seconds since 1970, at most {MAX_AHEAD_S:g} s from now")
    return await _revoke(api, Entry(revocation.ISSUED, _name(params, "user"), _until(params), float(before)))


async def block_user(api: Api, params: Params) -> Result:
    """The user goes and stays out, whatever token it has (3507)."""
    return await _revoke(api, Entry(revocation.USER, _name(params, "user"), _until(params)))


async def unblock_user(api: Api, params: Params) -> Result:
    """The opposite. Tokens that were revoked stay so."""
    ordered = await _store(api, Entry(revocation.USER, _name(params, "user"), gone=True))
    return with_silent({}, ordered.silent)


async def _revoke(api: Api, entry: Entry) -> Result:
    return _counted(api, await _store(api, entry))


async def _store(api: Api, entry: Entry) -> Ordered:
    """In Redis before any worker hears of it, so that one that does not hear reads it there."""
    return await api.registry.order("revoke", entry.params(), partial(api.revocations.store, entry))


# Small parts.


async def _met(api: Api, ask: str, params: Params) -> Result:
    return _counted(api, await _order(api, ask, params))


async def _order(api: Api, ask: str, params: Params) -> Ordered:
    try:
        control.encode_survey(Question("", ask, "", params))
    except ValueError as error:
        raise CommandError(errors.LIMIT_EXCEEDED, str(error)) from None
    return await api.registry.order(ask, params)


def _counted(api: Api, ordered: Ordered) -> Result:
    counts = api.registry.readable(ordered.answers, parse_met)
    body: Result = {"num_clients": sum(met for met, _ in counts)}
    refused = sum(refused for _, refused in counts)
    return with_silent({**body, "num_refused": refused} if refused else body, ordered.silent)


def with_silent(body: Result, silent: list[str]) -> Result:
    """An incomplete sum must not look like a complete one."""
    return {**body, "silent_nodes": silent} if silent else body


def _target(params: Params, anybody: bool = False) -> Params:
    target = {name: _text(params, name, MAX_ID_LENGTH if name != "user" else MAX_USER_LENGTH) for name in TARGETS}
    if not any(target.values()) and not anybody:
        raise CommandError(errors.BAD_REQUEST, "found no user, client or session; allowed: one at least")
    return target


def _text(params: Params, name: str, most: int) -> str:
    text = params.get(name)
    if text is None:
        return ""
    if not isinstance(text, str) or len(text) > most or not is_user(text):
        raise _bad(name, text, f"a text of at most {most} characters")
    return text


def _name(params: Params, name: str) -> str:
    text = _text(params, name, revocation.MAX_NAME_LENGTH)
    if not text:
        raise _bad(name, params.get(name), f"a text of 1 to {revocation.MAX_NAME_LENGTH} characters")
    return text


def _channel(api: Api, params: Params) -> str:
    api.channels.resolve(params.get("channel"))
    return str(params["channel"])


def _until(params: Params) -> float:
    """`expire_at`; 0 and nothing are never."""
    expire_at = params.get("expire_at") or 0
    _time("expire_at", expire_at)
    if 0 < expire_at <= time.time():
        # It would be over before it began, and whoever asks would take somebody for kept out who is not.
        raise _bad("expire_at", expire_at, "a time to come, in seconds since 1970; 0 or none for ever")
    return float(expire_at) or float("inf")


def _time(name: str, value: object) -> None:
    if not is_time(value) or value < 0:  # type: ignore[operator]
        raise _bad(name, value, "seconds since 1970")


def _fits(text: str, most_bytes: int) -> bool:
    try:
        return len(text.encode()) <= most_bytes
    except UnicodeEncodeError:
        return False


def _bad(name: str, found: object, allowed: str) -> CommandError:
    return CommandError(errors.BAD_REQUEST, f"{name}: found {short(found)}; allowed: {allowed}")
