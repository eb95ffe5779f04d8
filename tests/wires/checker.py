"""Checker: what of all that was written down is a fault.

Does: follow each client's events, acks and messages; count what is lost, doubled, out of order, unknown or untrue, and
how long acks took, by group of clients.
Does not: speak to anybody.
Called by: __main__, test_short; test_checker shows it logs that lie.
Never break: what a client does not say counts against it: an event without an ack is lost, and so is a message of the
room that it did not hear, whoever was to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .events import Acked, Emitted, Entered, Event, Gone, Heard, Left, Published, Refused

FAULTS = ("lost", "doubled", "reordered", "wrong", "unknown_sid", "refused", "gone")
UNKNOWN_SID = 1
"""Engine.IO's code."""
MAX_FINDINGS = 20


@dataclass
class Figures:
    """One group's.

    lost: events without an ack, acked ones that the application never had, and messages not heard. doubled: acks,
    events or messages that came again, and acks of nothing. reordered: events that another one of the client overtook
    on the way to the application, and messages behind a later one. wrong: acks with another's value, and messages that
    nobody published. unknown_sid: requests answered "Session ID unknown"; refused: those with any other error. gone:
    clients whose connection ended early, that never got in, or never said that they were done.
    """

    clients: int = 0
    events: int = 0
    heard: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    wrong: int = 0
    unknown_sid: int = 0
    refused: int = 0
    gone: int = 0
    ack_ms: list[float] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(getattr(self, name) for name in FAULTS)


@dataclass
class _Client:
    """What one client has said so far."""

    figures: Figures
    emits: bool
    emitted: int = 0
    acked: set[int] = field(default_factory=set)
    heard: set[int] = field(default_factory=set)
    last_heard: int = -1
    left: bool = False
    gone: bool = False


class Checker:
    """Takes events file by file; `finish` counts what never came."""

    def __init__(self, messages: int, events: int, group: str) -> None:
        """messages: that the room was to get, events: that each client was to emit. group: of who never got in."""
        self.groups: dict[str, Figures] = {}
        self.findings: list[str] = []
        """The first faults, in words."""
        self._messages = messages
        self._events = events
        self._nowhere = group
        self._clients: dict[str, _Client] = {}
        self._published: set[int] = set()

    @property
    def failed(self) -> bool:
        return any(figures.failed for figures in self.groups.values())

    def read(self, events: Iterable[Event]) -> None:
        """Follow them."""
        handlers: dict[type, Callable[[Any], None]] = {
            Entered: self._on_entered,
            Emitted: self._on_emitted,
            Acked: self._on_acked,
            Published: self._on_published,
            Heard: self._on_heard,
            Left: self._on_left,
            Refused: self._on_refused,
            Gone: self._on_gone,
        }
        for event in events:
            handlers[type(event)](event)

    def finish(self) -> None:
        """Nothing more comes."""
        for name, client in self._clients.items():
            expected = self._events if client.emits else 0
            self._count(client.figures, "lost", expected - len(client.acked), f"{name}: events without an ack")
            unheard = self._messages - len(client.heard & self._published)
            self._count(client.figures, "lost", unheard, f"{name}: messages not heard")
            self._count(client.figures, "wrong", len(client.heard - self._published), f"{name}: nobody's messages")
            if not client.left and not client.gone:
                self._count(client.figures, "gone", 1, f"{name}: it never said that it was done")

    def _figures(self, group: str) -> Figures:
        return self.groups.setdefault(group, Figures())

    def _of(self, name: str) -> Figures:
        """Of a client's group, or of those who never got in."""
        client = self._clients.get(name)
        return client.figures if client is not None else self._figures(self._nowhere)

    def _count(self, figures: Figures, fault: str, count: int, text: str) -> None:
        if count:
            setattr(figures, fault, getattr(figures, fault) + count)
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(f"{fault.replace('_', ' ')}, {count}: {text}")

    # One for each kind of event.

    def _on_entered(self, event: Entered) -> None:
        figures = self._figures(event.group)
        self._count(figures, "doubled", event.client in self._clients, f"{event.client} came in twice")
        figures.clients += 1
        self._clients[event.client] = _Client(figures, event.emits)

    def _on_emitted(self, event: Emitted) -> None:
        client = self._clients[event.client]
        client.emitted += 1
        client.figures.events += 1

    def _on_acked(self, event: Acked) -> None:
        client, text = self._clients[event.client], f"{event.client}: ack {event.number} is {event.value!r}"
        figures = client.figures
        if event.number in client.acked or not 0 <= event.number < client.emitted:
            self._count(figures, "doubled", 1, text)
            return
        client.acked.add(event.number)
        figures.ack_ms.append(event.ms)
        value = event.value
        if not isinstance(value, list) or value[:2] != [event.client, event.number] or len(value) != 3:
            self._count(figures, "wrong", 1, text)
        elif value[2] != event.number:
            self._count(figures, "reordered", 1, text)

    def _on_published(self, event: Published) -> None:
        self._published.add(event.number)

    def _on_heard(self, event: Heard) -> None:
        client = self._clients[event.client]
        client.figures.heard += 1
        text = f"{event.client}: message {event.number} behind {client.last_heard}"
        if event.number in client.heard:
            self._count(client.figures, "doubled", 1, text)
        elif event.number < client.last_heard:
            self._count(client.figures, "reordered", 1, text)
        client.heard.add(event.number)
        client.last_heard = max(client.last_heard, event.number)

    def _on_left(self, event: Left) -> None:
        client = self._clients[event.client]
        client.left = True
        if event.seen is not None:
            text = (
                f"{event.client}: {client.emitted} events, {len(client.acked)} acks, the application had {event.seen}"
            )
            self._count(client.figures, "lost", max(0, len(client.acked) - event.seen), text)
            self._count(client.figures, "doubled", max(0, event.seen - client.emitted), text)

    def _on_refused(self, event: Refused) -> None:
        fault = "unknown_sid" if event.code == UNKNOWN_SID else "refused"
        self._count(self._of(event.client), fault, 1, f"{event.client}: HTTP {event.status}, code {event.code}")

    def _on_gone(self, event: Gone) -> None:
        if (client := self._clients.get(event.client)) is not None:
            client.gone = True
        self._count(self._of(event.client), "gone", 1, f"{event.client}: {event.why}")
