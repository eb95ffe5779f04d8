"""RPC: the methods that the hub itself answers, `rpc {"method":"hub.…","data":{…}}`.

Does: check a call's data, do what it asks, reply.
Does not: know connections (session) or the mailboxes' insides; methods of applications are not answered here.
Called by: session, from its table of commands.
Never break: a call that is refused has changed nothing. A new method needs a row in METHODS.

    hub.time  {}                                                       -> {"time_ns":"1764000000000000000"}
    hub.ack   {"channel":"inbox:#42","ids":["1764000000000-000000"]}   -> {"acked":1}
    hub.ack   {"channel":"inbox:#42","upto":"1764000000000-000000"}    -> {"acked":3}
    hub.rate  {"channel":"ticker:$watch","hz":5}                        -> {"hz":5.0}
    hub.watch {"channel":"ticker:$watch","add":["ACME"],"remove":[]}    -> {"symbols":3}: so many are in it now
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from . import errors, membership, wants
from .channels import Namespace
from .errors import CommandError, HubError
from .mailbox import ID
from .permissions import check_users
from .protocol import Command
from .watch import WatchList

MAX_IDS = 1000
"""In one acknowledgement; no more than that can be in flight."""


class Services(membership.Services, Protocol):
    """What the methods need of their worker."""

    @property
    def wall_clock(self) -> Callable[[], float]: ...


class Caller(membership.Member, Protocol):
    """The session, as seen from here."""

    @property
    def services(self) -> Services: ...


def call(caller: Caller, command: Command) -> None:
    """Answer one rpc command, perhaps later. Raises CommandError: 104 for a method that is not here."""
    name = command.params.get("method", "")
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is None:
        raise CommandError(errors.METHOD_NOT_FOUND)
    method(caller, command)


def _time(caller: Caller, command: Command) -> None:
    """The hub's clock, with which a client can tell how old a tick is."""
    caller.reply(command.id, "rpc", {"data": {"time_ns": str(int(caller.services.wall_clock() * 1e9))}})


def _ack(caller: Caller, command: Command) -> None:
    """The user has some of its messages; the first of its devices to say so says it for all."""
    data = command.params.get("data")
    if not isinstance(data, dict) or ("ids" in data) == ("upto" in data):
        raise CommandError(errors.BAD_REQUEST, "data: allowed is an object of channel, and one of ids and upto")
    channel, namespace = _mailbox(caller, data.get("channel"))
    redelivery = caller.services.redelivery
    # Up to: by what this worker has sent, and not by what is kept. What never came here must not go with it.
    ids = _ids(data) if "ids" in data else redelivery.sent_up_to(channel, _id(data["upto"]))
    if not ids:
        caller.reply(command.id, "rpc", {"data": {"acked": 0}})
        return
    caller.begin()
    redelivery.acknowledge(channel, namespace, ids, partial(_acked, caller, command.id))


def _acked(caller: Caller, command_id: int, reply: int | HubError) -> None:
    caller.end()
    if isinstance(reply, HubError):
        caller.fail(command_id, reply)
    else:
        caller.reply(command_id, "rpc", {"data": {"acked": reply}})


def _mailbox(caller: Caller, channel: object) -> tuple[str, Namespace]:
    """Raises CommandError: 107 for what is no mailbox's name, 103 for another user's, 108 where there are none."""
    namespace = caller.services.channels.resolve(channel)
    if not namespace.mailbox:
        raise CommandError(errors.NOT_AVAILABLE, "this namespace has no mailboxes")
    check_users(str(channel), caller.user)
    return str(channel), namespace


def _ids(data: dict[str, Any]) -> list[str]:
    """What `ids` has, each once. Raises CommandError 106, 107."""
    ids = data["ids"]
    if not isinstance(ids, list):
        raise CommandError(errors.BAD_REQUEST, "ids: allowed is a list")
    if len(ids) > MAX_IDS:
        raise CommandError(errors.LIMIT_EXCEEDED, f"ids: found {len(ids)}; allowed: {MAX_IDS}")
    return list(dict.fromkeys(map(_id, ids)))


def _id(text: object) -> str:
    if not isinstance(text, str) or not ID.fullmatch(text):
        raise CommandError(errors.BAD_REQUEST, "id: allowed is what the tag `id` of a publication says")
    return text


def _rate(caller: Caller, command: Command) -> None:
    """How often a `latest` channel, or each of a watch list, is told at most from now on."""
    data = _object(command, "channel", "hz")
    hz = membership.change_rate(caller, str(data.get("channel")), wants.read_hz(data.get("hz")))
    caller.reply(command.id, "rpc", {"data": {"hz": hz} if hz != wants.EVERY else {}})


def _watch(caller: Caller, command: Command) -> None:
    """Add channels to a watch list and take some away. The newest values of new ones come before the answer."""
    data = _object(command, "channel", "add", "remove")
    channel = str(data.get("channel"))
    watch_list = membership.watch_list_of(caller, channel)
    namespace = caller.services.channels.resolve(channel)
    add = wants.read_symbols("add", data.get("add", []), namespace)
    caller.may_watch(channel, namespace, add)
    remove = frozenset(wants.read_symbols("remove", data.get("remove", []), namespace))
    fits = watch_list.asked_count + len(add) <= namespace.watch
    if not fits and len({*watch_list.asked, *add} - remove) > namespace.watch:
        raise CommandError(errors.LIMIT_EXCEEDED, f"a watch list has at most {namespace.watch} symbols")
    caller.begin()
    new = [symbol for symbol in add if symbol not in remove]
    watch_list.alter(new, remove, partial(_watched, caller, command.id, channel, watch_list))


def _watched(
    caller: Caller, command_id: int, channel: str, watch_list: WatchList, outcome: list[bytes] | HubError
) -> None:
    caller.end()
    if isinstance(outcome, HubError):
        caller.fail(command_id, outcome)
        return
    for body in outcome:
        caller.push(channel, body)
    membership.list_changed(caller, channel)
    caller.reply(command_id, "rpc", {"data": {"symbols": len(watch_list)}})


def _object(command: Command, *names: str) -> dict[str, Any]:
    """A call's data, with no other names. Raises CommandError 107."""
    data = command.params.get("data")
    if not isinstance(data, dict) or not data.keys() <= {*names}:
        raise CommandError(errors.BAD_REQUEST, f"data: allowed is an object of {', '.join(names)}")
    return data


METHODS: dict[str, Callable[[Caller, Command], None]] = {
    "hub.time": _time,
    "hub.ack": _ack,
    "hub.rate": _rate,
    "hub.watch": _watch,
}
