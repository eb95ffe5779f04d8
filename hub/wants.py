"""Wants: what a subscription to a `latest` channel may ask for in its `data`, and in the calls that change it.

Does: read and bound mode, rate, fields, marks and symbols; cap the rate by the namespace and by the client's token.
Does not: subscribe or keep anything (session, watch).
Called by: session, rpc.
Never break: what is refused has changed nothing; a name that is not known is refused, and not passed over.

    {"mode":"merge"}                     the newest value, as fast as this client takes them (the default)
    {"mode":"raw"}                       every value, or the connection is closed as too slow
    {"hz":5}                             so many values a second of each channel at most; 0: none, until that changes
    {"fields":["price","bid"]}           of each value only these
    {"marks":true}                       tags that say what a value stands for; views.py has them
    {"symbols":["ACME","BETA"]}          of a watch list; "AC*" is all that begin so, where the namespace has patterns
    {"client":"5d1e…"}                   the id that it had before: what it changed then holds again. With a token, the
                                         `epoch` that an SDK comes back with says it as well
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from . import errors
from .channels import NAMESPACE_NAME, Namespace
from .errors import CommandError
from .mistakes import short

MAX_FIELDS = 64
MAX_FIELD_LENGTH = 64
MAX_ID_LENGTH = 64
MAX_HZ = 1000.0
EVERY = float("inf")
RATES_HZ = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0)
"""What is had; a wish in between is rounded down, so that clients share their bytes. Above the last: every value, where
nothing caps it."""
WATCH = "$watch"
"""The watch list of a namespace is its channel of this name: 'ticker:$watch'."""
NAMES = ("mode", "hz", "fields", "marks", "symbols", "client")


class Wants(NamedTuple):
    """What one subscription asks for."""

    raw: bool = False
    hz: float = EVERY
    """0: paused."""
    fields: tuple[str, ...] = ()
    """() is all."""
    marks: bool = False
    symbols: tuple[str, ...] = ()
    client: str = ""
    """Who it says that it was."""


PLAIN = Wants()


def read(data: object, namespace: Namespace, watch: bool) -> Wants:
    """The `data` of a subscribe command. Raises CommandError 106, 107.

    watch: to a watch list, which has symbols; no other channel has.
    """
    if data is None and not watch:
        return PLAIN
    if not isinstance(data, dict):
        raise _bad(f"data: found {short(data)}; allowed: an object of {', '.join(NAMES)}")
    strange = next((name for name in data if name not in NAMES), None)
    if strange is not None:
        raise _bad(f"data: found {short(strange)}; allowed: {', '.join(NAMES)}")
    if not watch and "symbols" in data:
        raise _bad(f"symbols: allowed in {WATCH}, the watch list of the namespace")
    mode, marks = data.get("mode", "merge"), data.get("marks", False)
    if mode not in ("merge", "raw"):
        raise _bad(f"mode: found {short(mode)}; allowed: merge and raw")
    if not isinstance(marks, bool):
        raise _bad(f"marks: found {short(marks)}; allowed: true and false")
    hz = read_hz(data["hz"]) if "hz" in data else EVERY
    if mode == "raw" and hz != EVERY:
        raise _bad("hz: allowed with mode merge, as raw is every value")
    symbols = read_symbols("symbols", data.get("symbols", []), namespace) if watch else ()
    client = data.get("client", "")
    if not isinstance(client, str) or len(client) > MAX_ID_LENGTH:
        raise _bad(f"client: found {short(client)}; allowed: the id of a connection")
    return Wants(mode == "raw", hz, _fields(data.get("fields", [])), marks, symbols, client)


def read_hz(value: object) -> float:
    """A rate. Raises CommandError 107."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_HZ:
        raise _bad(f"hz: found {short(value)}; allowed: 0 to {MAX_HZ:g}")
    return float(value) or 0.0  # -0.0 is 0, and would be told as it was asked for


def read_symbols(name: str, value: object, namespace: Namespace) -> tuple[str, ...]:
    """A list of symbols, and of patterns where the namespace has them, each once. Raises CommandError 106, 107."""
    if not isinstance(value, list):
        raise _bad(f"{name}: found {short(value)}; allowed: a list of symbols")
    if len(value) > namespace.watch:
        raise CommandError(errors.LIMIT_EXCEEDED, f"{name}: found {len(value)}; allowed: {namespace.watch}")
    for symbol in value:
        if not isinstance(symbol, str) or not _is_entry(symbol, namespace):
            least = namespace.watch_prefix_length
            patterns = f", or a prefix of {least} or more of them and a *" if namespace.watch_prefixes else ""
            raise _bad(f"{name}: found {short(symbol)}; allowed: 1 to 64 of A-Z a-z 0-9 _ . -{patterns}")
    return tuple(dict.fromkeys(value))


def is_pattern(entry: str) -> bool:
    """Whether an entry of a watch list stands for all symbols that begin so: 'AC*'."""
    return entry.endswith("*")


def _is_entry(entry: str, namespace: Namespace) -> bool:
    if not namespace.watch_prefixes or not is_pattern(entry):
        return NAMESPACE_NAME.fullmatch(entry) is not None
    prefix = entry[:-1]
    return len(prefix) >= namespace.watch_prefix_length and (not prefix or NAMESPACE_NAME.fullmatch(prefix) is not None)


def capped(wants: Wants, namespace: Namespace, claimed_hz: float) -> Wants:
    """What is granted of it. claimed_hz: what the client's token allows. Raises CommandError 103."""
    most = min(namespace.max_hz or EVERY, claimed_hz)
    if wants.raw and most != EVERY:
        raise CommandError(errors.PERMISSION_DENIED, f"raw is every value; allowed: {most:g} a second")
    hz = min(wants.hz, most)
    if hz > RATES_HZ[-1] and most == EVERY:
        return wants
    hz = shared_hz(hz)
    return wants if wants.hz == hz else wants._replace(hz=hz)


def shared_hz(hz: float) -> float:
    """The rate that a wish gets, from 0 on: the next lower one that is had, or the lowest; the highest above all."""
    at = bisect_right(RATES_HZ, hz)
    return RATES_HZ[at - 1] if at else RATES_HZ[0] if hz else 0.0


def is_watch(channel: str, namespace: Namespace) -> bool:
    """Whether a channel is the watch list of its namespace."""
    return bool(namespace.watch) and channel.partition(":")[2] == WATCH


def _fields(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_FIELDS:
        raise _bad(f"fields: found {short(value)}; allowed: a list of at most {MAX_FIELDS} names")
    for field in value:
        if not isinstance(field, str) or not 0 < len(field) <= MAX_FIELD_LENGTH:
            raise _bad(f"fields: found {short(field)}; allowed: names of 1 to {MAX_FIELD_LENGTH} characters")
    return tuple(sorted(set(value)))


def _bad(text: str) -> CommandError:
    return CommandError(errors.BAD_REQUEST, text)


def digest(user: str, client: str, channel: str, wants: Wants) -> str:
    """Under what name a client's changes to a subscription are kept, that it began with `wants`; '' for nobody's.

    user: '' for one without a token, who is known by its id alone. client: '' for whichever of a user's connections
    went last, of those that began with the same; else they have names of their own.
    """
    who = f"client {client}" if client else ""
    if user:
        who = f"device {(user, client)!r}" if client else f"user {user}"
    began = repr(wants._replace(client="", symbols=tuple(sorted(wants.symbols))))
    return sha256("\n".join((who, channel, began)).encode()).hexdigest()[:32] if who else ""


def pack(wants: Wants) -> bytes:
    """What is kept."""
    return orjson.dumps({**describe(wants), "symbols": wants.symbols})


def unpack(text: object, namespace: Namespace, watch: bool, began: Wants) -> Wants:
    """What was kept; `began` where nothing was, or what is not to be had any more."""
    try:
        data = orjson.loads(text) if isinstance(text, bytes) else None
        if data is None:
            return began
        if not watch:
            data.pop("symbols", None)
        return read(data, namespace, watch)
    except (orjson.JSONDecodeError, AttributeError, CommandError):
        # Whoever reaches Redis can write there, and settings change: neither is this client's mistake.
        return began


def describe(wants: Wants) -> dict[str, Any]:
    """What was granted, as the reply to a subscription says it in its `data`."""
    granted: dict[str, Any] = {"mode": "raw" if wants.raw else "merge"}
    if wants.hz != EVERY:
        granted["hz"] = wants.hz
    if wants.fields:
        granted["fields"] = wants.fields
    if wants.marks:
        granted["marks"] = True
    return granted
