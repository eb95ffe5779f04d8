"""Worker: one process, one event loop, one core; the only place that builds rooms and wires them together.

Does: build everything after the fork, boot, serve, drain, take it down in order.
Does not: have behaviour of its own beyond that order.
Called by: supervisor, through seat.
Never break: nothing is built at import; nothing of one worker is shared with another but through Redis.

Order of life: Redis answers → plane and subscriber connection → listeners → ready → … → SIGTERM: no more accepts,
clients are closed evenly over the window (a second SIGTERM: at once), what was published is sent, the process ends
with 0. In a deploy the supervisor says RETIRE instead: another generation accepts on the same sockets, and those who
come with their next request are let in. At the second RETIRE no worker of this generation accepts any more, and clients
are closed evenly, as ever.
"""

from __future__ import annotations

import asyncio
import logging
import select
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import uvloop

from . import api, figures, monitoring
from .admin import Admin
from .app import DISCONNECT, load
from .app_gate import Gate
from .app_runner import Runner
from .asking import ANSWER_SHARE, Histories
from .audience import Subscriber
from .balance import Balance
from .broker import Broker
from .catchup import Catchup
from .census import Census
from .channels import Channels
from .config import Settings
from .connection import Connection
from .control import Errand
from .doors import Doors, Remote, outbox_limits
from .drain import Drained, drain
from .emission import EmittingFanout, everyone_rules
from .entrance import Entrance
from .errors import EXIT_OK, BootError, BrokerUnavailable, ConfigError
from .exposition import Exposition
from .fairness import Fairness, Rates
from .fanout import Fanout
from .forwarded import Proxies
from .handover import Handover
from .health import Health
from .history import History
from .ingest import Ingest
from .jwks import Jwks
from .keyfiles import authenticator, own_keys
from .lag import Lag
from .limits import TokenBucket
from .loopback import Loopback
from .mailbox import Mailboxes
from .manifest import Manifest
from .metrics import Metrics
from .monitoring import Monitoring
from .neighbours import Neighbours
from .notice import Notices
from .orders import Orders, Sessionless
from .origin import Origins
from .presence import Presence
from .publish import Publisher
from .quotas import IP, USER, Quotas
from .reactor import Reactor
from .recall import Recall
from .redelivery import Redelivery
from .refusals import Refusals
from .registry import Registry
from .relay import NEWCOMERS, Relay
from .relay import Limits as RelayLimits
from .remembered import Remembered
from .retune import Retuner, Rooms
from .revocation import Revocations
from .seat import RETIRE, Seat
from .session import Services
from .snapshots import Snapshots
from .store import Store
from .streams import TICK_S, Streams
from .subscribe import Subscriptions
from .symbols import Symbols
from .ticker import Ticker
from .tickets import Tickets
from .transports import engineio, longpoll
from .tunnel import Tunnels
from .users import Users
from .views import numbering

logger = logging.getLogger(__name__)

BOOT_RETRY_S = 0.1
SUBSCRIBER_WAIT_S = 0.5
"""It takes milliseconds where Redis answers. Where it does not, clients are served, and told to try again."""
SUBSCRIBER_POLL_S = 0.002
HEARTBEATS_PER_TIMEOUT = 8
REPORT_S = 60.0
HURRIED_S = 1.0
"""For close handshakes after a second stop signal."""
KEPT_S = 0.1
"""Between two looks at whether kept HTTP connections have gone."""
LATE_WINDOW_S = 1.0
"""For those who came to a worker after it had begun to retire, with requests on connections that it had accepted."""
ACCEPT_LAST_S = 0.5
"""Bounds the last accepts of a worker that drains while new clients keep coming."""


def main(settings: Settings, seat: Seat) -> int:
    """The worker's life; returns its exit status. Raises BootError when it can't start."""
    return uvloop.run(Worker(settings, seat).run())


class Worker:
    """All rooms of one process."""

    def __init__(self, settings: Settings, seat: Seat) -> None:
        self._settings = settings
        self._seat = seat
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._ending = asyncio.Event()
        """Told to stop, or to retire."""
        self._leaving = asyncio.Event()
        """Told that all who retire with this one accept no more, or to stop."""

    async def run(self) -> int:
        """Boot, serve until SIGTERM, drain."""
        self._beat()
        self._build()
        await self._boot()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._handle_term)
        loop.add_signal_handler(RETIRE, self._handle_retire)
        self._listen()
        self._report()
        self._seat.heartbeat.ready()
        logger.debug("worker %d (generation %d) is ready", self._seat.slot.index, self._seat.generation)
        await self._ending.wait()
        if self._stopping.is_set():
            await self._close_doors()
        else:
            await self._retire()
        await self._end()
        return EXIT_OK

    async def rehearse(self, *, asks_redis: bool) -> None:
        """Build all rooms and their doors, ask Redis for a sign of life, take them down: nobody else notices.

        Raises BootError as a start does.
        """
        self._build()
        if asks_redis:
            await self._reach_redis()
        self._listen()
        self._doors.close()
        if self._seat.certificates is not None:
            self._seat.certificates.close()
        self._handover.close()
        await self._broker.close()
        self._reactor.stop()

    # Building.

    def _build(self) -> None:
        settings, client = self._settings, self._settings.client
        loop = asyncio.get_running_loop()
        self._store = Store(settings.redis, self._seat.redis_url)
        tick_s = engineio.tick_s(settings.socketio)
        refusals, limits = Refusals(), settings.limits
        rates = Rates.of_ms(limits.loop_ms_per_s, limits.ip_loop_ms_per_s, settings.worker.busy_ms_per_s)
        fairness = Fairness(time.monotonic, loop.call_later, rates, partial(refusals.count, "loop_time"))
        backlog_bytes = settings.worker.backlog_bytes
        self._reactor = Reactor(loop, client.close_timeout_s, backlog_bytes, tick_s=tick_s, fairness=fairness)
        # Not all on the plane are subscribers, but all who stand in a group are.
        members = cast("Mapping[int, Subscriber]", self._reactor.connections)
        kind = EmittingFanout if settings.app.module else Fanout
        self._fanout = kind(
            members, self._reactor.arm_turn, self._reactor.clock, loop.call_later, settings.worker.batch_bytes
        )
        self._fanout.lines.numbering = numbering
        self._reactor.batches = self._fanout
        self._broker = Broker(self._store, settings.redis.pending_publishes, settings.redis.pending_bytes)
        self._proxies = Proxies(settings.trusted_proxies)
        self._quotas = Quotas(limits, self._reactor.clock, proxies=self._proxies, refusals=refusals)
        self._users = Users(self._quotas.entered)
        self._notices = Notices(self._users.everybody, self._users.of)
        self._channels = Channels(settings.namespaces)
        self._polls = longpoll.Polls(settings.worker.polls, self._quotas.refusals)
        self._revocations = Revocations(self._store, settings.auth.revocations)
        self._sessionless: set[Sessionless] = set()
        self._orders = Orders(
            self._users, self._channels, self._revocations, lambda: [*self._polls, *self._sessionless]
        )
        self._revocations.on_read = self._orders.judge_all
        self._admin = Admin(
            settings.api.key, self._users, self._fanout, self._broker, lambda: figures.current(self._figures)
        )
        self._registry = Registry(
            self._store,
            self._seat.slot.index,
            self._stats,
            self._fanout.lines.counts,
            on_notice=self._notices.tell,
            on_errand=self._on_errand,
            orders={**self._orders.answers, **self._admin.orders},
        )
        self._census = Census(
            self._store,
            self._registry.uid,
            {IP: settings.limits.ip_connections, USER: settings.limits.user_connections},
            self._counted,
            self._quotas.refusals,
        )
        self._quotas.census = self._census
        self._history = History(self._store)
        # Not the streams' own: large pages must not keep who comes back from what it missed.
        self._askings = Catchup(self._history)
        self._presence = Presence(
            self._store, self._fanout, self._channels, settings.worker.presence_grace_s, client.presence_clients
        )
        self._mailboxes = Mailboxes(self._broker, self._store.keys, settings.mailbox, client.outbox_bytes)
        self._build_subscriptions()
        self._publisher = Publisher(self._broker, client.json_depth, self._mailboxes)
        self._gate = self._load_application() if settings.app.module else None
        self._build_authenticator()
        self._services = Services(
            client=client,
            outbox=outbox_limits(client),
            authenticator=self._authenticator,
            channels=self._channels,
            publisher=self._publisher,
            subscriptions=self._subscriptions,
            presence=self._presence,
            histories=Histories(self._askings.read, client.history_publications, client.outbox_bytes // ANSWER_SHARE),
            redelivery=self._redelivery,
            remembered=Remembered(self._broker, self._store.keys),
            users=self._users,
            gate=self._gate,
            sessionless=self._sessionless,
            check_access=self._revocations.check,
            quotas=self._quotas,
            log_addresses=settings.log_addresses,
        )
        self._handshakes = TokenBucket(settings.worker.handshakes_per_s, self._reactor.clock)
        self._entrance = Entrance(
            Origins(settings.allowed_origins),
            self._authenticator,
            self._handshakes.take,
            self._stopping.is_set,
            cookie=settings.auth.cookie,
            tickets=self._tickets,
            judges=self._gate is None or self._authenticator.enabled,
            proxies=self._proxies,
            quotas=self._quotas,
        )
        self._ticker = Ticker(
            settings.ticker,
            self._store,
            self._broker,
            bar_rules=settings.namespaces.get(settings.ticker.bars_namespace),
        )
        self._build_links()
        self._lag = Lag(TICK_S, self._reactor.clock)
        self._figures = figures.Rooms(
            slot=self._seat.slot.index,
            generation=self._seat.generation,
            reactor=self._reactor,
            fanout=self._fanout,
            broker=self._broker,
            streams=self._streams,
            ingest=self._ingest,
            loopback=self._loopback,
            registry=self._registry,
            users=self._users,
            refusals=self._quotas.refusals,
            polls=self._polls,
            lag=self._lag,
            began_at=self._reactor.clock(),
            certificates=self._seat.certificates,
        )

    def _build_authenticator(self) -> None:
        auth = self._settings.auth
        try:
            self._authenticator = authenticator(auth, time.time, self._seat.keys)
            self._authenticator.judge = self._revocations.judge
            own = own_keys(auth, self._seat.keys)
        except ConfigError as error:
            raise BootError(str(error)) from None  # a file that has changed since the start
        self._tickets = Tickets(self._store, self._authenticator)
        self._jwks: Jwks | None = None
        if auth.jwks_url:
            self._jwks = Jwks(
                auth.jwks_url, self._authenticator, own, auth.algorithms, auth.jwks_refresh_s, auth.jwks_ca_file
            )

    def _build_links(self) -> None:
        """What sessions that live in one process need when the next request reaches another one."""
        settings = self._settings
        asked = settings.relay
        limits = RelayLimits(asked.timeout_s, asked.pending, asked.message_bytes, asked.buffer_bytes)
        self._relay = Relay(self._seat.home, self._seat.slot.index, self._seat.generation, limits)
        self._neighbours: Neighbours | None = None
        if asked.url:
            self._neighbours = Neighbours(self._store, self._relay, asked.url, asked.secret)
        self._handover = Handover(self._seat.home, self._relay.owner)
        self._tunnels: Tunnels | None = None
        if self._neighbours is not None:
            stalled_s = settings.tcp.user_timeout_s
            self._tunnels = Tunnels(
                self._reactor, self._neighbours, self._handover, asked.timeout_s, stalled_s, asked.pending
            )
        self._balance: Balance | None = None
        if self._seat.loads is not None:
            way = Handover(self._seat.home, self._relay.owner, NEWCOMERS)
            count = self._reactor.connections.__len__
            self._balance = Balance(self._seat.loads, way, self._relay.owner, count)
        self._recall = Recall(self._store, settings.socketio.recovery_ms, settings.socketio.recovery_bytes)

    def _load_application(self) -> Gate:
        """Raises BootError for a file that can't be loaded."""
        settings = self._settings.app
        runner = Runner(
            load(settings.module, settings.directory), settings.timeout_s, settings.threads, settings.pending
        )
        gate = Gate(
            runner,
            self._channels,
            self._publisher,
            self._registry.send,
            self._settings.client.pending_commands,
            settings.claims_bytes,
            everyone_rules(self._settings.socketio.recovery_ms, self._settings.client.recovery_publications),
        )
        if runner.app.handles(DISCONNECT):
            gate.manifest = Manifest(self._store, gate.tell_of, gate.clients, gate.entry_of, gate.send_away)
        if isinstance(self._fanout, EmittingFanout):
            self._fanout.find = gate.find
        return gate

    def _build_subscriptions(self) -> None:
        """The way from Redis to the fan-out: these rooms call each other in a ring, so each is given what it calls."""
        settings, loop, keys = self._settings.worker, asyncio.get_running_loop(), self._store.keys
        self._ingest = Ingest(
            self._store,
            lambda publications: self._redelivery.deliver(publications),
            self._registry.on_control,
            lambda publications: self._streams.receive(publications),
            self._on_connected,
            self._fanout.announce,
        )
        self._ingest.on_cost = self._reactor.fairness.charge
        self._catchup = Catchup(self._history)
        newest_channel = keys.newest(self._registry.uid)
        self._snapshots = Snapshots(self._broker, keys, newest_channel)
        self._ingest.listen(newest_channel, self._snapshots.heard)
        self._streams = Streams(
            self._fanout,
            self._ingest,
            self._catchup,
            keys,
            self._reactor.clock,
            loop.call_soon,
            most=self._settings.client.recovery_publications,
            most_bytes=self._settings.client.recovery_bytes,
            ring_bytes=settings.ring_bytes,
            linger_s=settings.linger_s,
            displaced_per_s=settings.resubscribes_per_s,
        )
        self._symbols = Symbols(self._broker, keys, loop.call_later)
        self._subscriptions = Subscriptions(
            self._fanout, self._ingest, keys, self._streams, self._snapshots, self._symbols, self._quotas
        )
        self._redelivery = Redelivery(
            self._mailboxes, self._channels, self._subscriptions.deliver, self._fanout.lines.audience_size
        )
        self._fanout.on_full = self._on_full
        loop_channel = keys.loop(self._registry.uid)
        self._loopback = Loopback(
            self._ingest,
            partial(self._probe, loop_channel),
            self._check_all,
            self._registry.uid.replace("-", ""),
            on_heard=self._fanout.ride,
        )
        self._ingest.listen(loop_channel, self._loopback.heard)

    def _on_errand(self, errand: Errand) -> None:
        if self._gate is not None:
            self._gate.errands.on_errand(errand)

    def _on_connected(self) -> None:
        self._revocations.reread()
        self._snapshots.lost()
        self._check_all()

    def _check_all(self) -> None:
        """Something may have been published that did not arrive here."""
        self._streams.check_all()
        self._subscriptions.check_all()
        self._redelivery.check_all()

    def _on_full(self, channel: str) -> None:
        """The fan-out could not take up what must not be left out."""
        self._streams.overloaded(channel)
        self._redelivery.overloaded(channel)

    async def _probe(self, loop_channel: str, token: str) -> str:
        await self._store.follow()
        return await self._history.probe(loop_channel, token)

    async def _boot(self) -> None:
        """Return once Redis answers.

        A respawned worker serves without it, and its clients' commands fail as temporary.
        """
        await self._reach_redis()
        if self._jwks is not None:
            await self._jwks.start()
        await self._start_rooms()

    async def _reach_redis(self) -> None:
        deadline = time.monotonic() + self._settings.redis.start_timeout_s
        while True:
            try:
                await self._broker.ping()
                break
            except BrokerUnavailable as error:
                if self._seat.respawned:
                    logger.warning("serving without Redis for now: %s", error)
                    break
                if time.monotonic() >= deadline:
                    raise BootError(
                        f"{error}; tried for {self._settings.redis.start_timeout_s:g} s (redis.start_timeout_s)"
                    ) from None
            await asyncio.sleep(BOOT_RETRY_S)

    async def _start_rooms(self) -> None:
        self._reactor.start()
        self._ingest.start()
        self._revocations.start()
        await self._wait_for_subscriber()
        await self._revocations.ready(SUBSCRIBER_WAIT_S)
        self._registry.start()
        if self._census.needed:
            self._census.start()
        self._loopback.start()
        self._tick()
        if any(namespace.presence != "off" for namespace in self._settings.namespaces.values()):
            self._presence.start()
        self._ticker.start()
        self._redelivery.start()
        self._recall.start()
        if self._gate is not None:
            self._gate.runner.start()
            if self._gate.manifest is not None:
                self._gate.manifest.start()
                # Who came before would be told that it is in before it is noted, and a kill would lose its end.
                await self._gate.manifest.ready(SUBSCRIBER_WAIT_S)
        try:
            await self._relay.start()
        except OSError as error:
            raise BootError(f"no private socket in {self._seat.home.directory}: {error.strerror}") from None
        if self._neighbours is not None:
            self._neighbours.start()

    async def _wait_for_subscriber(self) -> None:
        """Clients subscribe as soon as we listen; those who came before this connection would be refused."""
        deadline = time.monotonic() + SUBSCRIBER_WAIT_S
        while not self._ingest.connected and time.monotonic() < deadline:
            await asyncio.sleep(SUBSCRIBER_POLL_S)

    def _listen(self) -> None:
        self._doors = Doors(self._settings, self._reactor, self._services, self._entrance, self._seat.certificates)
        if self._seat.certificates is not None:
            self._seat.certificates.watch(self._settings.tls.reload_s)
        public = self._doors.public(
            self._polls,
            Remote(self._relay, self._handover, self._tunnels, self._recall),
            lambda: self._fanout.turn,
        )
        server_api = api.Api(
            self._settings.api.key,
            self._channels,
            self._publisher,
            self._history,
            self._registry,
            self._presence,
            self._settings.client.commands_per_message,
            self._mailboxes,
            self._settings.mailbox.namespace,
            self._revocations,
            self._tickets,
        )
        internal = api.routes(server_api)
        internal += self._admin.routes(server_api, self._reactor, self._services, self._entrance)
        for room in (self._neighbours, self._tunnels):
            if room is not None:
                internal += room.routes()
        self._monitoring = self._build_monitoring()
        internal += monitoring.routes(self._monitoring)
        self._doors.open(self._seat.slot, public, internal)
        if self._balance is not None:
            self._doors.share(self._balance)
        self._metrics.start()
        self._follow(server_api)

    def _build_monitoring(self) -> Monitoring:
        settings, seat = self._settings, self._seat
        home = seat.home.directory
        self._metrics = Metrics(home, seat.slot.index, partial(figures.current, self._figures))
        self._exposition = Exposition(self._metrics, home, seat.workers, self._store)
        health = Health(
            self._figures,
            home,
            draining=self._stopping.is_set,
            living=partial(self._metrics.living, seat.workers),
            min_workers=min(settings.health.min_workers, seat.workers),
            needs_redis=settings.health.needs_redis,
        )
        guarded = bool(seat.slot.combined)
        return Monitoring(self._exposition, health, settings.api.key, guarded, seat.workers)

    def _follow(self, server_api: api.Api) -> None:
        """Take up new settings from now on: all rooms are there."""
        rooms = Rooms(
            admin=self._admin,
            api=server_api,
            authenticator=self._authenticator,
            broker=self._broker,
            census=self._census,
            certificates=self._seat.certificates,
            channels=self._channels,
            doors=self._doors,
            entrance=self._entrance,
            fanout=self._fanout,
            handshakes=self._handshakes,
            jwks=self._jwks,
            mailboxes=self._mailboxes,
            monitoring=self._monitoring,
            orders=self._orders,
            polls=self._polls,
            presence=self._presence,
            publisher=self._publisher,
            quotas=self._quotas,
            reactor=self._reactor,
            recall=self._recall,
            redelivery=self._redelivery,
            revocations=self._revocations,
            services=self._services,
            streams=self._streams,
            subscriptions=self._subscriptions,
            ticker=self._ticker,
        )
        seat = self._seat
        self._retuner = Retuner(rooms, self._settings, seat.keys, seat.heartbeat, self._adopt, seat.counts)
        if seat.instructions is not None:
            self._retuner.follow(seat.instructions)

    def _adopt(self, settings: Settings, services: Services) -> None:
        self._settings, self._services = settings, services

    # Living.

    def _beat(self) -> None:
        self._seat.heartbeat.beat()
        period_s = self._settings.heartbeat_timeout_s / HEARTBEATS_PER_TIMEOUT
        asyncio.get_running_loop().call_later(period_s, self._beat)

    def _tick(self) -> None:
        # First, as a fault in one step must not be the end of all that is paced.
        asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._lag.tick()
        self._streams.tick()
        if self._balance is not None:
            self._balance.tell()
        self._fanout.check_silence()

    def _counted(self) -> list[tuple[str, str, int]]:
        """What the census tells of this worker."""
        ips = [(IP, key, count) for key, count in self._quotas.by_ip().items()]
        return ips + [(USER, user, count) for user, count in self._users.counts().items()]

    def _stats(self) -> dict[str, int]:
        return {
            "num_clients": self._users.sessions,
            "num_users": len(self._users),
            "num_subs": self._fanout.subscriptions,
            "num_channels": len(self._fanout.lines),
        }

    def _report(self, told: tuple[int, ...] = ()) -> None:
        """Lines once a minute about what was not delivered as published, or not published, if there was any since."""
        backlog, fanout = self._reactor.backlog, self._fanout
        now = (backlog.conflated, backlog.dropped, backlog.slow, fanout.conflated, fanout.dropped)
        if any(now) and now != told:
            logger.info("slow readers: %d conflated, %d dropped, %d closed; all behind: %d conflated, %d dropped", *now)
        application = self._gate.runner.report() if self._gate is not None else ""
        for line in (self._ticker.report(), application, self._quotas.refusals.report()):
            if line:
                logger.info("%s", line)
        asyncio.get_running_loop().call_later(REPORT_S, self._report, now)

    def _handle_retire(self) -> None:
        if self._ending.is_set():
            self._leaving.set()
        self._ending.set()

    def _handle_term(self) -> None:
        if self._stopping.is_set():
            self._hurried.set()
        self._stopping.set()
        self._ending.set()
        self._leaving.set()

    # Ending.

    async def _close_doors(self) -> None:
        """Nobody accepts in our place."""
        if self._balance is not None:
            self._balance.rest()
        await self._empty_accept_queues()
        self._doors.close()
        await self._ticker.close()
        await self._redelivery.close()
        await self._drain(list(self._reactor.connections.values()), self._settings.drain_window_s)

    async def _retire(self) -> None:
        """Others accept in our place: what waits in the accept queues is theirs, and who has come in is a client."""
        if self._balance is not None:
            self._balance.rest()
        self._doors.retire()
        self._seat.heartbeat.rests()
        await self._ticker.close()
        # Whoever is sent away before that may come to a sibling that is about to do the same.
        await self._leaving.wait()
        window_over = time.monotonic() + self._settings.drain_window_s
        # Whoever is no client yet, or none of ours, has all the time there is.
        here = [one for one in self._reactor.connections.values() if isinstance(one, Connection)]
        await self._drain([*here, *self._polls], self._settings.drain_window_s)
        # Connections that proxies keep: they are told so with their next request, and none is lost in between.
        while self._doors.kept and time.monotonic() < window_over and not self._stopping.is_set():
            await asyncio.sleep(KEPT_S)
        await self._redelivery.close()
        self._doors.close()
        await self._drain(list(self._reactor.connections.values()), LATE_WINDOW_S)

    async def _drain(self, connections: Sequence[Drained], window_s: float) -> None:
        logger.debug("worker %d drains %d connections", self._seat.slot.index, len(connections))
        await drain(connections, window_s, self._hurried, time.monotonic)

    async def _end(self) -> None:
        if self._seat.certificates is not None:
            self._seat.certificates.close()
        await self._last_goodbyes()
        if self._gate is not None:
            await self._gate.close()  # what its handlers still publish goes out
        # Before the HTTP connections: who waits there for Redis' verdict on a publish still gets it.
        await self._broker.close()
        await self._presence.close()
        await self._doors.close_all_connections()
        await self._exposition.close()
        if self._neighbours is not None:
            await self._neighbours.close()
        await self._relay.close()
        self._handover.close()
        if self._balance is not None:
            self._balance.close()
        await self._recall.close()
        await self._tickets.close()
        await self._retuner.close()
        await self._loopback.close()
        await self._census.close()
        await self._admin.close()
        await self._registry.close()
        await self._orders.close()
        await self._revocations.close()
        await self._ingest.close()
        await self._catchup.close()
        await self._askings.close()
        self._snapshots.close()
        self._symbols.close()
        await self._history.close()
        self._metrics.close()
        self._reactor.stop()

    async def _empty_accept_queues(self) -> None:
        """Take who has already connected: closing a listener resets its queue, and they can still be told 503."""
        slot, ready = self._seat.slot, select.poll()
        for sock in (*slot.public, *slot.internal):
            ready.register(sock, select.POLLIN)
        stop_at = time.monotonic() + ACCEPT_LAST_S
        while ready.poll(0) and time.monotonic() < stop_at:
            await asyncio.sleep(0)

    async def _last_goodbyes(self) -> None:
        """Wait for the close handshakes that are still under way; those who don't answer in time are cut."""
        empty = asyncio.Event()
        self._reactor.when_empty(empty.set)
        for hurry, wait_s in ((self._hurried, self._settings.client.close_timeout_s + 1.0), (empty, HURRIED_S)):
            waiting = [asyncio.ensure_future(event.wait()) for event in {empty, hurry}]
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for one in waiting:
                one.cancel()
            if not self._hurried.is_set():
                return
