"""Building: all rooms of one worker, and how they are wired together.

Does: build each room after the fork, lowest first, and give it what it calls.
Does not: start any of them, open the doors, or end anything: worker does.
Called by: worker.
Never break: nothing is built at import, nothing here waits for Redis or writes anywhere, and nothing of one worker is
shared with another but through Redis.
A new room is built in the step of those that it belongs to, and reaches the others by their constructors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from . import figures
from .admin import Admin
from .app import DISCONNECT, load
from .app_gate import Gate
from .app_runner import Runner
from .asking import ANSWER_SHARE, Histories
from .audience import Subscriber
from .broker import Broker
from .catchup import Catchup
from .census import Census
from .channels import Channels
from .config import Settings
from .control import Errand
from .doors import outbox_limits
from .emission import EmittingFanout, everyone_rules
from .entrance import Entrance
from .errors import BootError, ConfigError
from .fairness import Fairness, Rates
from .fanout import Fanout
from .forwarded import Proxies
from .headroom import Headroom
from .history import History
from .ingest import Ingest
from .jwks import Jwks
from .keyfiles import authenticator, own_keys
from .lag import Lag
from .limits import TokenBucket
from .links import Links
from .loopback import Loopback
from .mailbox import Mailboxes
from .manifest import Manifest
from .notice import Notices
from .orders import Orders, Sessionless
from .origin import Origins
from .presence import Presence
from .publish import Publisher
from .quotas import IP, USER, Quotas
from .reactor import Reactor
from .redelivery import Redelivery
from .refusals import Refusals
from .registry import Registry
from .remembered import Remembered
from .revocation import Revocations
from .seat import Seat
from .services import Services
from .snapshots import Snapshots
from .store import Store
from .streams import TICK_S, Streams
from .subscribe import Subscriptions
from .symbols import Symbols
from .ticker import Ticker
from .tickets import Tickets
from .transports import engineio, longpoll
from .users import Users
from .views import numbering


class Building:
    """The rooms of one worker. Build it with a running loop.

    stopping: whether nobody new is to be let in. Raises BootError for what can't be read or loaded.
    """

    def __init__(self, settings: Settings, seat: Seat, stopping: Callable[[], bool]) -> None:
        self._settings = settings
        self._seat = seat
        self._build_plane()
        self._build_accounts()
        self._build_orders()
        self._build_memory()
        self._build_subscriptions()
        self.publisher = Publisher(self.broker, settings.client.json_depth, self.mailboxes, self.headroom)
        self.gate = self._load_application() if settings.app.module else None
        self._build_authenticator()
        self._build_services()
        self._build_entrance(stopping)
        self._build_ticker()
        self.links = Links(settings, seat, self.store, self.reactor)
        self._build_figures()

    # The order in which they stand on each other.

    def _build_plane(self) -> None:
        """Sockets on one side, Redis on the other, and the fan-out between them."""
        settings, client = self._settings, self._settings.client
        loop = asyncio.get_running_loop()
        self.store = Store(settings.redis, self._seat.redis_url)
        tick_s = engineio.tick_s(settings.socketio)
        self._refusals, limits = Refusals(), settings.limits
        rates = Rates.of_ms(limits.loop_ms_per_s, limits.ip_loop_ms_per_s, settings.worker.busy_ms_per_s)
        fairness = Fairness(time.monotonic, loop.call_later, rates, partial(self._refusals.count, "loop_time"))
        backlog_bytes = settings.worker.backlog_bytes
        self.reactor = Reactor(loop, client.close_timeout_s, backlog_bytes, tick_s=tick_s, fairness=fairness)
        # Not all on the plane are subscribers, but all who stand in a group are.
        members = cast("Mapping[int, Subscriber]", self.reactor.connections)
        kind = EmittingFanout if settings.app.module else Fanout
        self.fanout = kind(
            members, self.reactor.arm_turn, self.reactor.clock, loop.call_later, settings.worker.batch_bytes
        )
        self.fanout.lines.numbering = numbering
        self.reactor.batches = self.fanout
        self.broker = Broker(self.store, settings.redis.pending_publishes, settings.redis.pending_bytes)

    def _build_accounts(self) -> None:
        """Who is there, and how much everybody may have."""
        settings = self._settings
        self.proxies = Proxies(settings.trusted_proxies)
        self.quotas = Quotas(settings.limits, self.reactor.clock, proxies=self.proxies, refusals=self._refusals)
        self.users = Users(self.quotas.entered)
        self.notices = Notices(self.users.everybody, self.users.of)
        self.channels = Channels(settings.namespaces)
        self.polls = longpoll.Polls(settings.worker.polls, self.quotas.refusals)

    def _build_orders(self) -> None:
        """What is said of and to the clients of all workers."""
        settings = self._settings
        self.revocations = Revocations(self.store, settings.auth.revocations)
        self.sessionless: set[Sessionless] = set()
        self.orders = Orders(self.users, self.channels, self.revocations, lambda: [*self.polls, *self.sessionless])
        self.revocations.on_read = self.orders.judge_all
        self.admin = Admin(
            settings.api.key, self.users, self.fanout, self.broker, lambda: figures.current(self.figures)
        )
        self.registry = Registry(
            self.store,
            self._seat.slot.index,
            self._stats,
            self.fanout.lines.counts,
            on_notice=self.notices.tell,
            on_errand=self._on_errand,
            orders={**self.orders.answers, **self.admin.orders},
        )
        self.census = Census(
            self.store,
            self.registry.uid,
            {IP: settings.limits.ip_connections, USER: settings.limits.user_connections},
            self._counted,
            self.quotas.refusals,
        )
        self.quotas.census = self.census

    def _build_memory(self) -> None:
        """What Redis keeps of channels and users."""
        settings, client = self._settings.worker, self._settings.client
        self.history = History(self.store)
        # Not the streams' own: large pages must not keep who comes back from what it missed.
        self.askings = Catchup(self.history)
        self.presence = Presence(
            self.store, self.fanout, self.channels, settings.presence_grace_s, client.presence_clients
        )
        self.mailboxes = Mailboxes(self.broker, self.store.keys, self._settings.mailbox, client.outbox_bytes)
        self.headroom = Headroom(self.store, self._settings.redis.full_percent, self._refusals, self._seat.workers)
        self.broker.on_full = self.headroom.overrun

    def _build_subscriptions(self) -> None:
        """The way from Redis to the fan-out: these rooms call each other in a ring, so each is given what it calls."""
        settings, loop, keys = self._settings.worker, asyncio.get_running_loop(), self.store.keys
        self.ingest = Ingest(
            self.store,
            lambda publications: self.redelivery.deliver(publications),
            self.registry.on_control,
            lambda publications: self.streams.receive(publications),
            self._on_connected,
            self.fanout.announce,
        )
        self.ingest.on_cost = self.reactor.fairness.charge
        self.catchup = Catchup(self.history)
        newest_channel = keys.newest(self.registry.uid)
        self.snapshots = Snapshots(self.broker, keys, newest_channel)
        self.ingest.listen(newest_channel, self.snapshots.heard)
        self.streams = Streams(
            self.fanout,
            self.ingest,
            self.catchup,
            keys,
            self.reactor.clock,
            loop.call_soon,
            most=self._settings.client.recovery_publications,
            most_bytes=self._settings.client.recovery_bytes,
            ring_bytes=settings.ring_bytes,
            linger_s=settings.linger_s,
            displaced_per_s=settings.resubscribes_per_s,
        )
        self.symbols = Symbols(self.broker, keys, loop.call_later)
        self.subscriptions = Subscriptions(
            self.fanout, self.ingest, keys, self.streams, self.snapshots, self.symbols, self.quotas
        )
        self.redelivery = Redelivery(
            self.mailboxes, self.channels, self.subscriptions.deliver, self.fanout.lines.audience_size
        )
        self.fanout.on_full = self._on_full
        loop_channel = keys.loop(self.registry.uid)
        self.loopback = Loopback(
            self.ingest,
            partial(self._probe, loop_channel),
            self._check_all,
            self.registry.uid.replace("-", ""),
            on_heard=self.fanout.ride,
        )
        self.ingest.listen(loop_channel, self.loopback.heard)

    def _load_application(self) -> Gate:
        """Raises BootError for a file that can't be loaded."""
        settings = self._settings.app
        runner = Runner(
            load(settings.module, settings.directory), settings.timeout_s, settings.threads, settings.pending
        )
        gate = Gate(
            runner,
            self.channels,
            self.publisher,
            self.registry.send,
            self._settings.client.pending_commands,
            settings.claims_bytes,
            everyone_rules(self._settings.socketio.recovery_ms, self._settings.client.recovery_publications),
        )
        if runner.app.handles(DISCONNECT):
            gate.manifest = Manifest(self.store, gate.tell_of, gate.clients, gate.entry_of, gate.send_away)
        if isinstance(self.fanout, EmittingFanout):
            self.fanout.find = gate.find
        return gate

    def _build_authenticator(self) -> None:
        auth = self._settings.auth
        try:
            self.authenticator = authenticator(auth, time.time, self._seat.keys)
            self.authenticator.judge = self.revocations.judge
            own = own_keys(auth, self._seat.keys)
        except ConfigError as error:
            raise BootError(str(error)) from None  # a file that has changed since the start
        self.tickets = Tickets(self.store, self.authenticator)
        self.jwks: Jwks | None = None
        if auth.jwks_url:
            self.jwks = Jwks(
                auth.jwks_url, self.authenticator, own, auth.algorithms, auth.jwks_refresh_s, auth.jwks_ca_file
            )

    def _build_services(self) -> None:
        """What each session stands on."""
        settings, client = self._settings, self._settings.client
        self.services = Services(
            client=client,
            outbox=outbox_limits(client),
            authenticator=self.authenticator,
            channels=self.channels,
            publisher=self.publisher,
            subscriptions=self.subscriptions,
            presence=self.presence,
            histories=Histories(self.askings.read, client.history_publications, client.outbox_bytes // ANSWER_SHARE),
            redelivery=self.redelivery,
            remembered=Remembered(self.broker, self.store.keys),
            users=self.users,
            gate=self.gate,
            sessionless=self.sessionless,
            check_access=self.revocations.check,
            quotas=self.quotas,
            log_addresses=settings.log_addresses,
        )

    def _build_entrance(self, stopping: Callable[[], bool]) -> None:
        settings = self._settings
        self.handshakes = TokenBucket(settings.worker.handshakes_per_s, self.reactor.clock)
        self.entrance = Entrance(
            Origins(settings.allowed_origins),
            self.authenticator,
            self.handshakes.take,
            stopping,
            cookie=settings.auth.cookie,
            tickets=self.tickets,
            judges=self.gate is None or self.authenticator.enabled,
            proxies=self.proxies,
            quotas=self.quotas,
        )

    def _build_ticker(self) -> None:
        settings = self._settings
        self.ticker = Ticker(
            settings.ticker,
            self.store,
            self.broker,
            bar_rules=settings.namespaces.get(settings.ticker.bars_namespace),
        )

    def _build_figures(self) -> None:
        self.lag = Lag(TICK_S, self.reactor.clock)
        self.figures = figures.Rooms(
            slot=self._seat.slot.index,
            generation=self._seat.generation,
            reactor=self.reactor,
            fanout=self.fanout,
            broker=self.broker,
            streams=self.streams,
            ingest=self.ingest,
            loopback=self.loopback,
            registry=self.registry,
            users=self.users,
            refusals=self.quotas.refusals,
            polls=self.polls,
            lag=self.lag,
            began_at=self.reactor.clock(),
            certificates=self._seat.certificates,
            headroom=self.headroom,
            ticker=self.ticker.about,
        )

    # What they call each other for.

    def _on_errand(self, errand: Errand) -> None:
        if self.gate is not None:
            self.gate.errands.on_errand(errand)

    def _on_connected(self) -> None:
        self.revocations.reread()
        self.snapshots.lost()
        self._check_all()

    def _check_all(self) -> None:
        """Something may have been published that did not arrive here."""
        self.streams.check_all()
        self.subscriptions.check_all()
        self.redelivery.check_all()

    def _on_full(self, channel: str) -> None:
        """The fan-out could not take up what must not be left out."""
        self.streams.overloaded(channel)
        self.redelivery.overloaded(channel)

    async def _probe(self, loop_channel: str, token: str) -> str:
        await self.store.follow()
        return await self.history.probe(loop_channel, token)

    def _counted(self) -> list[tuple[str, str, int]]:
        """What the census tells of this worker."""
        ips = [(IP, key, count) for key, count in self.quotas.by_ip().items()]
        return ips + [(USER, user, count) for user, count in self.users.counts().items()]

    def _stats(self) -> dict[str, int]:
        return {
            "num_clients": self.users.sessions,
            "num_users": len(self.users),
            "num_subs": self.fanout.subscriptions,
            "num_channels": len(self.fanout.lines),
        }
