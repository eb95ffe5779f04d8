"""Emissions: an application's events on their way through channels, and who is passed over by one.

Does: say an event in the words of a publication, and read it again; the channel that all of a Socket.IO namespace are
in; a fan-out that leaves out the client that an event names.
Does not: know handlers (app_gate) or how an event looks on a wire (transports.socketio).
Called by: app_gate, transports.socketio, worker (where an application is configured).
Never break: an emission is a publication like any other, so its order, limits and recovery are the channel's.

    emit("said", "hi", 3, skip=ann)  ->  {"data":["hi",3],"tags":{"event":"said","args":"2","skip":"5d1e…"}}

With one argument, `data` is that, and there is no tag `args`. Clients of other wires see just this. The server API may
publish with the same tags; clients can't, as theirs have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import orjson

from .audience import Subscriber
from .channels import Namespace
from .fanout import Fanout
from .message import Publication

EVENT, ARGS, SKIP = "event", "args", "skip"
EVENT_MARK = b'"event":"'
SKIP_MARK = b'"skip":"'
EVERYONE = Namespace.model_validate({"subscribe": "nobody", "publish": "nobody"})
"""The rules of the channels of `everyone`, which no client can name: their namespace is not among the settings."""


class Emission(NamedTuple):
    """One event, as it stands in a publication. skip: the client that does not get it, or ''."""

    name: str
    args: list[Any]
    skip: str = ""


def everyone(namespace: str) -> str:
    """The channel of all clients in a Socket.IO namespace: '/a/b' -> 'hub.everyone::a:b'."""
    return "hub.everyone:" + namespace.replace("/", ":")


def encode(name: str, args: tuple[Any, ...], skip: str = "") -> tuple[Any, dict[str, str]]:
    """An event as data and tags of a publication."""
    tags = {EVENT: name, SKIP: skip} if skip else {EVENT: name}
    if len(args) == 1:
        return args[0], tags
    return list(args), {**tags, ARGS: str(len(args))}


def parse(body: bytes) -> Emission | None:
    """The event that a publication's body says; None for every other publication."""
    # Looked for before anything is parsed. Data may hold the mark as well, so only the parsed tags count.
    if EVENT_MARK not in body:
        return None
    publication = orjson.loads(body)
    tags, data = publication.get("tags", {}), publication["data"]
    name = tags.get(EVENT)
    if not name:
        return None
    return Emission(name, data if ARGS in tags and isinstance(data, list) else [data], tags.get(SKIP, ""))


class EmittingFanout(Fanout):
    """A fan-out that passes over whom an emission leaves out.

    find: that subscriber, where it is in this worker.
    """

    find: Callable[[str], Subscriber | None] = staticmethod(lambda client: None)
    """By the client's id; set by worker."""

    def deliver(self, publications: Iterable[Publication]) -> None:
        gathered: list[Publication] = []
        for publication in publications:
            skipped = self._skipped_by(publication) if SKIP_MARK in publication.body else None
            if skipped is None:
                gathered.append(publication)
                continue
            super().deliver(gathered)
            gathered = []
            self.deliver_past(publication, skipped)
        super().deliver(gathered)

    def _skipped_by(self, publication: Publication) -> Subscriber | None:
        """Whom it passes over, if that one is here and in the channel."""
        emission = parse(publication.body)
        subscriber = self.find(emission.skip) if emission is not None and emission.skip else None
        return subscriber if subscriber is not None and self.holds(publication.channel, subscriber) else None
