"""Subscribing: who joins a channel's audience, and when; which Redis channels this worker holds for that.

Does: hold a Redis channel while it has local subscribers, let a subscriber in once it is confirmed, release it after
the last; hand `stream` channels to streams; give who comes back to a `latest` channel its newest value.
Does not: check rules (session does), keep the audience (fanout) or read from Redis (ingest).
Called by: session, ingest (deliver).
Never break: `done(Joined)` comes before the first publication that the subscriber receives, and none is missed after
it.

Several channels can share one Redis channel: all of a `latest` namespace come on its feed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .channels import Namespace
from .errors import BrokerUnavailable, HubError
from .fanout import Fanout
from .ingest import Ingest
from .message import Publication
from .position import Position
from .recovery import Joined
from .snapshots import Snapshots
from .store import Keys
from .stream import GIVEN_UP, Done, StreamSubscriber
from .streams import Streams

IN = Joined()
CACHED = Joined(recoverable=True)
"""Who comes back to a `latest` channel is given its newest value, wherever it was."""


class _Topic:
    """One Redis channel that is held, or about to be."""

    __slots__ = ("confirmed", "subscribers", "waiting")

    def __init__(self) -> None:
        self.confirmed = False
        self.subscribers = 0
        """Those who are in and those who wait: who leaves inside its own `done` must not take it from the next."""
        self.waiting: list[Callable[[HubError | None], None]] = []


class Subscriptions:
    """The subscriptions of one worker."""

    def __init__(self, fanout: Fanout, ingest: Ingest, keys: Keys, streams: Streams, snapshots: Snapshots) -> None:
        self._fanout = fanout
        self._ingest = ingest
        self._keys = keys
        self._streams = streams
        self._snapshots = snapshots
        self._topics: dict[str, _Topic] = {}
        self._returning: dict[tuple[str, StreamSubscriber], Done] = {}
        """Who waits for a newest value, by its latest question."""

    def subscribe(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: StreamSubscriber,
        done: Done,
        since: Position | None = None,
    ) -> None:
        """Let `subscriber` into the channel. `done(Joined)` once it is in, perhaps at once.

        since: where it was, of a subscriber that comes back; `none` channels know no positions and pass it over.
        `done(BrokerUnavailable)` if it can't be let in.
        """
        if namespace.mode == "stream":
            self._streams.subscribe(channel, namespace, subscriber, since, done)
            return
        enter = partial(self._enter, channel, namespace, subscriber, done, since is not None)
        name = self._topic_name(channel, namespace)
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = _Topic()
            self._ingest.hold(name, partial(self._confirmed, name))
        elif topic.confirmed and not self._ingest.connected:
            # It is held again after the reconnect, but until then something could be missed after `done`.
            done(BrokerUnavailable("the subscriber connection to Redis is down"))
            return
        topic.subscribers += 1
        if topic.confirmed:
            enter(None)
        else:
            topic.waiting.append(enter)

    def unsubscribe(self, channel: str, namespace: Namespace, subscriber: StreamSubscriber) -> None:
        """Take `subscriber`, who is in, out again."""
        if namespace.mode == "stream":
            self._streams.unsubscribe(channel, subscriber)
            return
        self._fanout.leave(channel, subscriber)
        self._gone(channel, namespace)

    def epoch(self, channel: str) -> str:
        """Of what a `stream` channel that somebody here holds passes on now."""
        return self._streams.epoch(channel)

    def deliver(self, publications: list[Publication]) -> None:
        """What comes from Redis for channels without positions."""
        if self._snapshots.busy:
            self._snapshots.passed(publications)
        self._fanout.deliver(publications)

    def _gone(self, channel: str, namespace: Namespace) -> None:
        name = self._topic_name(channel, namespace)
        topic = self._topics[name]
        topic.subscribers -= 1
        if not topic.subscribers:
            del self._topics[name]
            self._ingest.release(name)

    def _topic_name(self, channel: str, namespace: Namespace) -> str:
        return self._keys.topic(channel, namespace.mode)

    def _confirmed(self, name: str, error: HubError | None) -> None:
        topic = self._topics[name]
        waiting, topic.waiting = topic.waiting, []
        if error is not None:
            del self._topics[name]
        topic.confirmed = True
        for enter in waiting:
            enter(error)

    def _enter(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: StreamSubscriber,
        done: Done,
        returns: bool,
        error: HubError | None,
    ) -> None:
        """Redis has confirmed the channel, or not."""
        if error is not None:
            done(error)
            return
        given_up = self._returning.pop((channel, subscriber), None)
        if given_up is not None:
            # Were it let in for both, being taken out for the first would take it out for good.
            self._gone(channel, namespace)
            given_up(GIVEN_UP)
        if namespace.mode == "latest" and returns:
            self._returning[channel, subscriber] = done
            self._snapshots.ask(channel, partial(self._enter_behind, channel, namespace, subscriber, done))
        else:
            self._fanout.join(channel, namespace, subscriber)
            done(CACHED if namespace.mode == "latest" else IN)

    def _enter_behind(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: StreamSubscriber,
        done: Done,
        value: bytes | HubError | None,
    ) -> None:
        """The newest value is known, or can't be had now."""
        if self._returning.get((channel, subscriber)) is not done:
            return  # it has been told already
        del self._returning[channel, subscriber]
        if isinstance(value, HubError):
            self._gone(channel, namespace)
            done(value)
            return
        self._fanout.join(channel, namespace, subscriber)
        # Also without a value: nothing was missed then, as nothing was ever published.
        done(CACHED._replace(recovered=True, publications=[value] if value is not None else []))
