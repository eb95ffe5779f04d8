"""Market: what a plain request wants of `latest` channels, and what its client holds of that.

Does: read rate, fields, marks, mode and the symbols of a watch list from a query, as `wants` has them; subscribe and
unsubscribe on these terms.
Does not: answer requests (plain), write events (sse) or gather messages (longpoll).
Called by: transports.plain (asked, granted), transports.sse and transports.longpoll (Holdings).
Never break: what a namespace or a token caps is capped here too, whether or not the request wants anything.

    GET /sse?channel=ticker:$watch&symbols=ACME,BOLT,AC*&fields=price,bid&hz=5&marks=true
    GET /poll?channel=ticker:$watch&symbols=ACME,BOLT&fields=price&hz=1

    GET /sse?channel=ticker:$watch&channel=fx:A&data={"ticker:$watch":{"symbols":["ACME"]},"fx:A":{"hz":1}}

These hold for all `latest` channels of the request, and `symbols` for its one watch list; `data` says it of each
channel by itself, in the words of a subscription. A list can't be changed: who wants another one asks anew. One longer
than a query may be has to be said by patterns, or over a native wire, which takes it in a message or a body.

Over polls there are no marks and no mode raw: what was merged since the last one sent, and whether any was left out, is
known to nobody there. And `hz` holds an answer back until so much time has passed since it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import orjson

from .. import errors, wants
from ..channels import Namespace
from ..errors import CommandError, HubError
from ..patterns import Holder, new_list
from ..recovery import Joined
from ..services import Services
from ..stream import Done, StreamSubscriber
from ..subscribe import CACHED
from ..wants import PLAIN, WATCH, Wants
from ..watch import WatchList

OPTIONS = ("mode", "hz", "fields", "marks", "symbols")
"""What may be wanted; `data` besides."""
MAX_LENGTH = 8000
"""Of `symbols`, in characters: proxies bound the line that it stands in, nginx to 8 KB as it comes."""
BOOLEANS = {"true": True, "false": False}


def asked(query: Mapping[str, str], channels: Mapping[str, Namespace]) -> dict[str, object]:
    """What a query says of its `latest` channels: each one's `data`, as a subscription would have it.

    query: the parameters, of which others are passed over. Raises CommandError 106, 107 for what is of no channel, or
    of one that is not among `channels`.
    """
    flat = {name: query[name] for name in OPTIONS if name in query}
    for name, text in query.items():
        if name in ("symbols", "data") and len(text) > MAX_LENGTH:
            text = f"{name}: found {len(text)} characters; allowed: {MAX_LENGTH}; longer lists by patterns such as AC*"
            raise CommandError(errors.LIMIT_EXCEEDED, f"{text}, or over the native wires")
    own = _own(query["data"]) if "data" in query else {}
    strange = [str(number) for number, name in enumerate(own, 1) if name not in channels]
    if strange:
        # By their places: an answer repeats no names.
        raise _bad(
            f"data: found channels that are not asked for, number {', '.join(strange)}; allowed: of channel=NAME"
        )
    latest = {name: rules for name, rules in channels.items() if rules.mode == "latest" and name not in own}
    lists = [name for name, rules in latest.items() if wants.is_watch(name, rules)]
    if flat and not latest:
        raise _bad(f"{next(iter(flat))}: allowed with a channel of a namespace with mode latest")
    if "symbols" in flat and len(lists) != 1:
        raise _bad(f"symbols: found {len(lists)} watch lists; allowed: one, channel=NAMESPACE:{WATCH}")
    data = {name: _value(name, text) for name, text in flat.items()}
    plain = {name: value for name, value in data.items() if name != "symbols"}
    return {**own, **{name: data if name in lists else plain for name in latest}}


def granted(channel: str, namespace: Namespace, data: object, streamed: bool, claimed_hz: float) -> Wants | None:
    """What one `latest` channel is taken with; None: as it comes.

    data: as `asked` has it. claimed_hz: what the token allows. Raises CommandError 103, 106, 107.
    """
    watch = wants.is_watch(channel, namespace)
    if watch and not (isinstance(data, dict) and data.get("symbols")):
        raise _bad(f"symbols: missing; allowed: ACME,BOLT with a watch list, {WATCH}")
    wanted = wants.read(data, namespace, watch)._replace(client="")
    if not streamed and (wanted.raw or wanted.marks):
        what = "mode raw" if wanted.raw else "marks"
        raise _bad(f"{what}: allowed over an event stream or the native wires, as polls know nothing of each other")
    one = wants.capped(wanted, namespace, claimed_hz)
    if wanted.hz == 0:
        raise _bad("hz: found 0; allowed: above 0, as nothing can be changed here")
    if one.hz == 0:
        raise CommandError(errors.PERMISSION_DENIED, "the token allows no values")
    return one if watch or one != PLAIN else None


def _own(text: str) -> dict[str, object]:
    try:
        own = orjson.loads(text)
    except orjson.JSONDecodeError:
        own = None
    if not isinstance(own, dict):
        raise _bad("data: allowed is an object of what is wanted by channel, in JSON")
    return own


def _value(name: str, text: str) -> object:
    """A parameter as it would stand in a subscription's `data`; what can't is left to `wants` to refuse."""
    if name in ("fields", "symbols"):
        return text.split(",")
    if name == "marks":
        return BOOLEANS.get(text, text)
    if name == "hz":
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _bad(text: str) -> CommandError:
    return CommandError(errors.BAD_REQUEST, text)


class Holdings:
    """The channels of one plain client that are not taken as they come."""

    __slots__ = ("_lists", "_most", "_services", "_subscriber", "_terms", "_wanted")

    def __init__(
        self, services: Services, subscriber: StreamSubscriber, wanted: Mapping[str, Wants], most: int = 0
    ) -> None:
        """wanted: by channel. most: symbols, where that is less than a namespace allows; 0: it is not."""
        self._services = services
        self._subscriber = subscriber
        self._wanted = wanted
        self._most = most
        self._lists: dict[str, WatchList] = {}
        subscriptions = services.subscriptions
        self._terms = {
            channel: subscriptions.terms(subscriber.wire, one, channel if one.symbols else "")
            for channel, one in wanted.items()
        }

    def __contains__(self, channel: str) -> bool:
        return channel in self._wanted

    @property
    def left_out(self) -> dict[str, int]:
        """How many symbols do not fit into each list, where some don't."""
        return {channel: one.left_out for channel, one in self._lists.items() if one.left_out}

    def subscribe(self, channel: str, namespace: Namespace, holder: Callable[[], Holder], done: Done) -> None:
        """Ask for one of them. `done` as `Subscriptions.subscribe` has it, CommandError 106 besides."""
        subscriptions, terms = self._services.subscriptions, self._terms[channel]
        symbols = self._wanted[channel].symbols
        if not symbols:
            subscriptions.subscribe(channel, namespace, self._subscriber, done, None, terms)
            return
        name = channel.partition(":")[0]
        # Lenient: a refusal would end an EventSource for good, which asks for the same again and again.
        one = new_list(subscriptions, name, namespace, self._subscriber, terms, holder(), True, self._most)
        self._lists[channel] = one
        one.alter(symbols, (), partial(_entered, done))

    def unsubscribe(self, channel: str, namespace: Namespace) -> None:
        """Leave one that it is in."""
        if channel in self._lists:
            self._lists.pop(channel).close()
        else:
            terms = self._terms[channel]
            self._services.subscriptions.unsubscribe(channel, namespace, self._subscriber, terms)


def _entered(done: Done, outcome: list[bytes] | HubError) -> None:
    joined: Joined | HubError = outcome if isinstance(outcome, HubError) else CACHED._replace(publications=outcome)
    done(joined)


def slowest_s(wanted: Mapping[str, Wants]) -> float:
    """The longest time between two values of a channel, in seconds; 0: as they come."""
    return max((1 / one.hz for one in wanted.values()), default=0.0)
