"""Subscribing: who joins a channel's audience, and when; which Redis channels this worker holds for that.

Does: hold a Redis channel while it has local subscribers, let a subscriber in once it is confirmed, release it after
the last.
Does not: check rules (session does), keep the audience (fanout) or read from Redis (ingest).
Called by: session.
Never break: `done(None)` comes before the first publication that the subscriber receives, and none is missed after it.

Several channels can share one Redis channel: all of a `latest` namespace come on its feed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .audience import Subscriber
from .channels import Namespace, namespace_of
from .errors import BrokerUnavailable, HubError
from .fanout import Fanout
from .ingest import Ingest
from .store import Keys

Done = Callable[[HubError | None], None]


class _Topic:
    """One Redis channel that is held, or about to be."""

    __slots__ = ("confirmed", "subscribers", "waiting")

    def __init__(self) -> None:
        self.confirmed = False
        self.subscribers = 0
        """Those who are in and those who wait: who leaves inside its own `done` must not take it from the next."""
        self.waiting: list[tuple[str, Namespace, Subscriber, Done]] = []


class Subscriptions:
    """The subscriptions of one worker."""

    def __init__(self, fanout: Fanout, ingest: Ingest, keys: Keys) -> None:
        self._fanout = fanout
        self._ingest = ingest
        self._keys = keys
        self._topics: dict[str, _Topic] = {}

    def subscribe(self, channel: str, namespace: Namespace, subscriber: Subscriber, done: Done) -> None:
        """Let `subscriber` into the channel. `done(None)` once it is in, perhaps at once.

        `done(BrokerUnavailable)` if it can't be.
        """
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
            self._fanout.join(channel, namespace, subscriber)
            done(None)
        else:
            topic.waiting.append((channel, namespace, subscriber, done))

    def unsubscribe(self, channel: str, namespace: Namespace, subscriber: Subscriber) -> None:
        """Take `subscriber`, who is in, out again."""
        name = self._topic_name(channel, namespace)
        self._fanout.leave(channel, subscriber)
        topic = self._topics[name]
        topic.subscribers -= 1
        self._release_if_empty(name, topic)

    def _topic_name(self, channel: str, namespace: Namespace) -> str:
        return self._keys.feed(namespace_of(channel)) if namespace.mode == "latest" else self._keys.channel(channel)

    def _confirmed(self, name: str, error: HubError | None) -> None:
        topic = self._topics[name]
        waiting, topic.waiting = topic.waiting, []
        if error is not None:
            del self._topics[name]
            for *_, done in waiting:
                done(error)
            return
        topic.confirmed = True
        for channel, namespace, subscriber, done in waiting:
            self._fanout.join(channel, namespace, subscriber)
            done(None)

    def _release_if_empty(self, name: str, topic: _Topic) -> None:
        if not topic.subscribers:
            del self._topics[name]
            self._ingest.release(name)
