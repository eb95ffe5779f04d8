"""Subscribing: who joins a channel's audience, and when; which Redis channels this worker holds for that.

Does: hold a Redis channel while it has local subscribers, let a subscriber in once it is confirmed, release it after
the last; hand `stream` channels to streams; give who comes to a `latest` channel its newest value.
Does not: check rules (session does), keep the audience (fanout) or read from Redis (ingest).
Called by: session, ingest (deliver), symbols (hold, release).
Never break: `done(Joined)` comes before the first publication that the subscriber receives, and none is missed after
it.

Several channels can share one Redis channel: all of a `latest` namespace come on its feed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from . import errors
from .audience import Rate, Terms, WireForm
from .channels import Namespace
from .errors import BrokerUnavailable, CommandError, HubError
from .fanout import Fanout
from .groups import Bundle
from .ingest import Ingest
from .message import Publication
from .position import Position
from .quotas import Quotas
from .recovery import Joined
from .snapshots import Snapshots
from .store import Keys
from .stream import GIVEN_UP, Done, StreamSubscriber
from .streams import Streams
from .symbols import Symbols
from .views import Views
from .wants import Wants

IN = Joined()
CACHED = Joined(recoverable=True)
"""Who comes to a `latest` channel is given its newest value; who comes back, wherever it was, has recovered by that."""

CHECK_AT_ONCE = 4096
"""Channels whose newest value is asked for at a time, when any may have been missed; of those that snapshots takes."""
CHECK_AGAIN_S = 1.0


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

    def __init__(
        self,
        fanout: Fanout,
        ingest: Ingest,
        keys: Keys,
        streams: Streams,
        snapshots: Snapshots,
        symbols: Symbols,
        quotas: Quotas | None = None,
    ) -> None:
        """quotas: how many channels this worker may have; None: any number."""
        quotas = quotas or Quotas()
        self.most = quotas.settings.channels
        self._refusals = quotas.refusals
        self._fanout = fanout
        self._ingest = ingest
        self._keys = keys
        self._streams = streams
        self._snapshots = snapshots
        self.symbols = symbols
        symbols.feeds = self
        self._views = Views()
        self._topics: dict[str, _Topic] = {}
        self._entering: dict[tuple[str, StreamSubscriber, Terms | None], Done] = {}
        """Who waits for a newest value, by its latest question."""
        self._unchecked: dict[str, None] = {}
        """Channels whose newest value may not have arrived, and has yet to be asked for."""
        self._refused: dict[str, None] = {}
        """Those of them that Redis has refused; they are asked for again."""
        self._checking = 0
        """Of how many it is asked for now."""

    def subscribe(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: StreamSubscriber,
        done: Done,
        since: Position | None = None,
        terms: Terms | None = None,
    ) -> None:
        """Let `subscriber` into the channel. `done(Joined)` once it is in, perhaps at once.

        since: where it was, of a subscriber that comes back; `none` channels know no positions and pass it over.
        terms: of a `latest` channel, None for the usual ones. `done(BrokerUnavailable)` if it can't be let in, and
        `done(CommandError)` 111 where the worker has as many channels as it may.
        """
        if not self.fits(channel):
            done(self._full())
            return
        if namespace.mode == "stream":
            self._streams.subscribe(channel, namespace, subscriber, since, done)
            return
        self.hold(
            channel, namespace, partial(self._enter, channel, namespace, subscriber, done, since is not None, terms)
        )

    def fits(self, channel: str, coming: int = 0) -> bool:
        """Whether this worker may have the channel. coming: so many others come in before it."""
        lines = self._fanout.lines
        return not self.most or len(lines) + coming < self.most or channel in lines.by_channel

    def fitting(self, channels: Iterable[str]) -> list[str]:
        """Those of these that this worker may have together: what is here already, and of others the first ones."""
        here, found, coming = self._fanout.lines.by_channel, [], 0
        for channel in channels:
            if self.fits(channel, coming):
                found.append(channel)
                coming += channel not in here
            else:
                self._refusals.count("worker_channels")
        return found

    def _full(self) -> CommandError:
        self._refusals.count("worker_channels")
        return CommandError(errors.TOO_MANY_REQUESTS, "this process has all the channels that it may have")

    def hold(self, channel: str, namespace: Namespace, ready: Callable[[HubError | None], None]) -> None:
        """Have what carries a channel that is no `stream` channel, for one more; `ready` once, perhaps at once.

        After `ready(None)` everything that is published there arrives here, until `release`.
        """
        name = self._topic_name(channel, namespace)
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = _Topic()
            self._ingest.hold(name, partial(self._confirmed, name))
        elif topic.confirmed and not self._ingest.connected:
            # It is held again after the reconnect, but until then something could be missed after `ready`.
            ready(BrokerUnavailable("the subscriber connection to Redis is down"))
            return
        topic.subscribers += 1
        if topic.confirmed:
            ready(None)
        else:
            topic.waiting.append(ready)

    def join_new(self, channel: str, namespace: Namespace, subscriber: StreamSubscriber, terms: Terms) -> None:
        """Let `subscriber` at once into a `latest` channel whose first value is about to be delivered, and no other.

        The caller has looked whether it fits.
        """
        self._topics[self._topic_name(channel, namespace)].subscribers += 1
        self._give_up(channel, namespace, subscriber, terms)
        self._fanout.join(channel, namespace, subscriber, terms)

    def unsubscribe(
        self, channel: str, namespace: Namespace, subscriber: StreamSubscriber, terms: Terms | None = None
    ) -> None:
        """Take `subscriber`, who is in on these terms, out again."""
        if namespace.mode == "stream":
            self._streams.unsubscribe(channel, subscriber)
            return
        self._fanout.leave(channel, subscriber, terms)
        self.release(channel, namespace)

    def knows(self, channels: Sequence[str], namespace: Namespace) -> bool:
        """Whether who comes to these, all of one `latest` namespace, may `enter` now: their newest values are here."""
        topic = self._topics.get(self._topic_name(channels[0], namespace)) if channels else None
        if topic is None or not topic.confirmed or not self._ingest.connected:
            return False
        newest = self._fanout.lines.newest
        return all(newest(channel) is not None for channel in channels)

    def enter(self, channel: str, namespace: Namespace, subscriber: StreamSubscriber, terms: Terms) -> bytes | None:
        """Let `subscriber` into a channel that is known, now. Returns the newest value as it is told it."""
        self._topics[self._topic_name(channel, namespace)].subscribers += 1
        self._fanout.join(channel, namespace, subscriber, terms)
        return self._fanout.lines.told(channel, terms)

    def terms(self, form: WireForm, wants: Wants, shown: str = "") -> Terms:
        """On what terms a subscription takes a `latest` channel. shown: the watch list that it is in."""
        view = self._views.of(form, shown, wants.fields, wants.marks)
        return Terms(view, wants.raw, self._fanout.paces.at(wants.hz))

    @property
    def paused(self) -> Rate | None:
        """The pace of those who get nothing for now."""
        return self._fanout.paces.at(0)

    def told(self, channel: str, terms: Terms) -> bytes | None:
        """The newest value as one who comes on these terms is told it; None: there is none."""
        return self._fanout.lines.told(channel, terms)

    def change(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: StreamSubscriber,
        old: Terms | None,
        new: Terms | None,
        told: bool = False,
    ) -> None:
        """Go on in a `latest` channel on other terms: nothing is lost, and nothing comes twice.

        told: it has been told the newest value, by the caller.
        """
        self._fanout.change(channel, namespace, subscriber, old, new, told)

    def bundle(self, channels: Iterable[str], terms: Terms) -> Bundle:
        """Of `latest` channels that somebody holds on these terms, for `change_all`."""
        return self._fanout.bundle(channels, terms)

    def change_all(self, bundle: Bundle, namespace: Namespace, subscriber: StreamSubscriber, new: Terms) -> Bundle:
        """`change` for many channels that it holds on the same terms. Returns them on the new ones."""
        return self._fanout.change_all(bundle, namespace, subscriber, new)

    def check_all(self) -> None:
        """What was published in `latest` channels may not have arrived: whoever is inside gets the newest, if so."""
        self._unchecked = dict.fromkeys(self._fanout.lines.kept())
        self._check_some()
        self.symbols.check_all()

    def _check_some(self) -> None:
        """Ask for so many at a time that who comes meanwhile finds room, too."""
        lines = self._fanout.lines.by_channel
        while self._unchecked and self._checking < CHECK_AT_ONCE:
            channel, _ = self._unchecked.popitem()
            if channel in lines:
                self._checking += 1
                self._snapshots.ask(channel, partial(self._refreshed, channel))

    def _refreshed(self, channel: str, value: bytes | HubError | None) -> None:
        self._checking -= 1
        if isinstance(value, bytes) and value != self._fanout.lines.newest(channel):
            self._fanout.missed(channel)
            self._fanout.deliver([Publication(channel, value)])
        # Where the subscriber connection is gone again, the next one asks anew; else nobody would but we.
        if isinstance(value, HubError) and self._ingest.connected:
            if not self._refused:
                asyncio.get_running_loop().call_later(CHECK_AGAIN_S, self._check_refused)
            self._refused[channel] = None
        self._check_some()

    def _check_refused(self) -> None:
        self._unchecked |= self._refused
        self._refused = {}
        self._check_some()

    def epoch(self, channel: str) -> str:
        """Of what a `stream` channel that somebody here holds passes on now."""
        return self._streams.epoch(channel)

    def deliver(self, publications: list[Publication]) -> None:
        """What comes from Redis for channels without positions."""
        if self._snapshots.busy:
            self._snapshots.passed(publications)
        if self.symbols.listening:
            self.symbols.heard(publications)
        self._fanout.deliver(publications)

    def release(self, channel: str, namespace: Namespace) -> None:
        """The opposite of a `hold` that was granted."""
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
        terms: Terms | None,
        error: HubError | None,
    ) -> None:
        """Redis has confirmed the channel, or not."""
        if error is not None:
            done(error)
            return
        if self._entering:
            self._give_up(channel, namespace, subscriber, terms)
        if namespace.mode != "latest":
            if not self.fits(channel):
                self.release(channel, namespace)
                done(self._full())
                return
            self._fanout.join(channel, namespace, subscriber)
            done(IN)
            return
        self._entering[channel, subscriber, terms] = done
        enter = partial(self._enter_behind, channel, namespace, subscriber, done, returns, terms)
        newest = self._fanout.lines.newest(channel)
        if newest is not None:
            enter(newest)
        else:
            self._snapshots.ask(channel, enter)

    def _give_up(self, channel: str, namespace: Namespace, subscriber: StreamSubscriber, terms: Terms | None) -> None:
        """Who waits to be let in on the same terms is not: a later one takes its place."""
        given_up = self._entering.pop((channel, subscriber, terms), None)
        if given_up is not None:
            # Were it let in for both, being taken out for the first would take it out for good.
            self.release(channel, namespace)
            given_up(GIVEN_UP)

    def _enter_behind(
        self,
        channel: str,
        namespace: Namespace,
        subscriber: StreamSubscriber,
        done: Done,
        returns: bool,
        terms: Terms | None,
        value: bytes | HubError | None,
    ) -> None:
        """The newest value is known, or can't be had now."""
        if self._entering.get((channel, subscriber, terms)) is not done:
            return  # it has been told already
        del self._entering[channel, subscriber, terms]
        if not isinstance(value, HubError) and not self.fits(channel):
            value = self._full()  # others came while Redis was asked: a list's hundreds are asked for at once
        if isinstance(value, HubError):
            self.release(channel, namespace)
            done(value)
            return
        # What others inside have had since may be newer than what Redis was asked for.
        newest = self._fanout.lines.newest(channel) or value
        self._fanout.join(channel, namespace, subscriber, terms, newest=newest)
        # Recovered also without a value: nothing was missed then, as nothing was ever published.
        recovered = True if returns else None
        told = newest if terms is None else self._fanout.lines.told(channel, terms)
        done(CACHED._replace(recovered=recovered, publications=[told] if told is not None else []))
