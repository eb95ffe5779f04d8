"""Attendance: which clients of this worker are subscribed where, and what of that Redis has yet to be told.

Does: note who enters and leaves a channel, keep the newest change of each client until Redis has taken it, let watchers
into the audience of join and leave pushes.
Does not: wait, know Redis or the other workers (presence).
Called by: presence.
Never break: this is the truth about the worker's own clients, whatever becomes of Redis; of each client in a channel
one change waits at most, so what waits is bounded by who is here and who was when Redis was last heard of.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from .audience import Subscriber
from .channels import Namespace
from .fanout import Fanout
from .message import ClientInfo

MAX_CHANNELS = 256
"""In one batch: a bound on how long Redis serves nobody else."""
MAX_CLIENTS = 128
"""Of one channel in one batch."""
MAX_CHANGES = 512
"""Of all channels in one batch, give or take one channel's: about 5 ms of this worker, and as much of Redis."""


class Member:
    """One client of this worker in one channel."""

    __slots__ = ("attempted", "info", "name", "watcher")

    def __init__(self, info: ClientInfo, watcher: Subscriber | None) -> None:
        self.info = info
        self.watcher = watcher
        """Its connection, where it is told of others."""
        self.name = ""
        """The client id under which it has been announced; '' as long as Redis has not said so."""
        self.attempted = False
        """Redis may have it."""


class Change(NamedTuple):
    """A client that enters, or leaves. hold: its leave push may be held back."""

    member: Member
    joins: bool
    hold: bool = False


class Room:
    """One channel with clients of this worker, or with news of them for Redis."""

    __slots__ = ("changes", "members", "namespace", "under_way")

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.members: dict[str, Member] = {}
        self.changes: dict[str, Change] = {}
        """The newest of each client that Redis has not taken yet."""
        self.under_way: frozenset[str] = frozenset()
        """Clients of which Redis is being told; the room stays until it answers, for others may enter meanwhile."""


class Batch(NamedTuple):
    """What Redis is told of one channel at a time."""

    channel: str
    room: Room
    leaves: list[Change]
    joins: list[Change]


class Attendance:
    """All rooms of one worker."""

    def __init__(self, fanout: Fanout) -> None:
        self._fanout = fanout
        self.rooms: dict[str, Room] = {}
        self.dirty: dict[str, None] = {}
        """Channels with changes, the longest waiting first."""
        self.moved: set[str] = set()
        """Channels that have become rooms, or have ceased to be, since this was last emptied."""

    def enter(self, channel: str, namespace: Namespace, info: ClientInfo, watcher: Subscriber | None) -> None:
        """A client is in. watcher: its connection, if it is told of others from now on."""
        room = self.rooms.get(channel)
        if room is None:
            room = self.rooms[channel] = Room(namespace)
            self.moved.add(channel)
        member = room.members[info.client] = Member(info, watcher)
        # Where it is to leave yet, or its leave is on the way, Redis may still have it.
        member.attempted = info.client in room.changes or info.client in room.under_way
        self._change(channel, room, Change(member, joins=True))
        if watcher is not None:
            self._fanout.watch(channel, watcher)

    def exit(self, channel: str, client: str, hold: bool) -> None:
        """A client that may have entered is out."""
        room = self.rooms.get(channel)
        member = room.members.pop(client, None) if room is not None else None
        if room is None or member is None:
            return
        if member.watcher is not None:
            self._fanout.unwatch(channel, member.watcher)
        if member.attempted:
            self._change(channel, room, Change(member, joins=False, hold=hold))
        else:
            del room.changes[client]
            self._tidy(channel, room)

    def _change(self, channel: str, room: Room, change: Change) -> None:
        room.changes[change.member.info.client] = change
        self.dirty[channel] = None

    def _tidy(self, channel: str, room: Room) -> None:
        """Forget a channel in which nobody is and of which there is nothing to send."""
        if not room.changes:
            self.dirty.pop(channel, None)
            if not room.members and not room.under_way:
                del self.rooms[channel]
                self.moved.add(channel)

    # What presence calls, in turn: `take`, then one of `settle` and `put_back` for all that was taken.

    def take(self) -> list[Batch]:
        """The next changes for Redis; a channel with more of them waits for its next turn."""
        batches: list[Batch] = []
        left = MAX_CHANGES
        for channel in list(islice(self.dirty, MAX_CHANNELS)):
            if left <= 0:
                break
            del self.dirty[channel]
            room = self.rooms[channel]
            taken = [room.changes.pop(client) for client in list(islice(room.changes, MAX_CLIENTS))]
            left -= len(taken)
            if room.changes:
                self.dirty[channel] = None
            joins = [change for change in taken if change.joins]
            for change in joins:
                change.member.attempted = True
            room.under_way = frozenset(change.member.info.client for change in taken)
            batches.append(Batch(channel, room, [change for change in taken if not change.joins], joins))
        return batches

    def put_back(self, batches: Iterable[Batch]) -> None:
        """Nobody knows whether Redis took these, so they are sent again; what came since is newer."""
        for channel, room, leaves, joins in batches:
            room.under_way = frozenset()
            for change in leaves + joins:
                room.changes.setdefault(change.member.info.client, change)
            self.dirty[channel] = None

    def settle(self, batch: Batch, names: list[str]) -> None:
        """Redis took it. names: under which those who joined have been announced."""
        batch.room.under_way = frozenset()
        for change, name in zip(batch.joins, names, strict=True):
            change.member.name = name
        self._tidy(batch.channel, batch.room)

    def enter_again(self, channels: Iterable[str]) -> None:
        """Redis may not know all of these channels' clients: tell it of everybody who is in."""
        for channel in channels:
            room = self.rooms[channel]
            room.changes |= {client: Change(member, joins=True) for client, member in room.members.items()}
            self.dirty[channel] = None
