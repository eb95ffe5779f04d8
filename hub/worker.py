"""Worker: one process, one event loop, one core: the life of all its rooms.

Does: have everything built after the fork, boot, open the doors, serve, take it down in order.
Does not: wire rooms together (building), send clients away (leaving), or have behaviour of its own beyond that order.
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
import time
from functools import partial

import uvloop

from . import api, figures, monitoring, retune
from .building import Building
from .config import Settings
from .doors import Doors, Remote
from .errors import EXIT_OK, BootError, BrokerUnavailable
from .exposition import Exposition
from .health import Health
from .leaving import Leaving, Signs
from .metrics import Metrics
from .monitoring import Monitoring
from .retune import Retuner
from .seat import Seat
from .services import Services
from .streams import TICK_S

logger = logging.getLogger(__name__)

BOOT_RETRY_S = 0.1
SUBSCRIBER_WAIT_S = 0.5
"""Where Redis does not answer: clients are served then, and told to try again."""
SUBSCRIBER_POLL_S = 0.002
HEARTBEATS_PER_TIMEOUT = 8
REPORT_S = 60.0


def main(settings: Settings, seat: Seat) -> int:
    """The worker's life; returns its exit status. Raises BootError when it can't start."""
    return uvloop.run(Worker(settings, seat).run())


class Worker:
    """All rooms of one process."""

    def __init__(self, settings: Settings, seat: Seat) -> None:
        self._settings = settings
        self._seat = seat
        self._signs = Signs()

    async def run(self) -> int:
        """Boot, serve until SIGTERM, drain."""
        self._beat()
        self._rooms = Building(self._settings, self._seat, self._signs.stopping.is_set)
        await self._boot()
        self._signs.follow()
        self._listen()
        self._report()
        self._seat.heartbeat.ready()
        logger.debug("worker %d (generation %d) is ready", self._seat.slot.index, self._seat.generation)
        leaving = Leaving(self._signs, self._rooms, self._doors, self._seat, lambda: self._settings)
        await self._signs.ending.wait()
        if self._signs.stopping.is_set():
            await leaving.close_doors()
        else:
            await leaving.retire()
        await self._end(leaving)
        return EXIT_OK

    async def rehearse(self, *, asks_redis: bool) -> None:
        """Build all rooms and their doors, ask Redis for a sign of life, take them down: nobody else notices.

        Raises BootError as a start does.
        """
        self._rooms = Building(self._settings, self._seat, self._signs.stopping.is_set)
        if asks_redis:
            await self._reach_redis()
        self._listen()
        self._doors.close()
        if self._seat.certificates is not None:
            self._seat.certificates.close()
        self._rooms.links.handover.close()
        await self._rooms.broker.close()
        self._rooms.reactor.stop()

    async def _boot(self) -> None:
        """Return once Redis answers.

        A respawned worker serves without it, and its clients' commands fail as temporary.
        """
        answers = await self._reach_redis()
        if self._rooms.jwks is not None:
            await self._rooms.jwks.start()
        # It takes milliseconds, but seconds where a dozen workers start at once on busy CPUs.
        await self._start_rooms(self._settings.redis.start_timeout_s if answers else SUBSCRIBER_WAIT_S)

    async def _reach_redis(self) -> bool:
        """Whether it answers."""
        deadline = time.monotonic() + self._settings.redis.start_timeout_s
        while True:
            try:
                await self._rooms.broker.ping()
                return True
            except BrokerUnavailable as error:
                if self._seat.respawned:
                    logger.warning("serving without Redis for now: %s", error)
                    return False
                if time.monotonic() >= deadline:
                    raise BootError(
                        f"{error}; tried for {self._settings.redis.start_timeout_s:g} s (redis.start_timeout_s)"
                    ) from None
            await asyncio.sleep(BOOT_RETRY_S)

    async def _start_rooms(self, subscriber_wait_s: float) -> None:
        rooms = self._rooms
        rooms.reactor.start()
        rooms.ingest.start()
        rooms.headroom.start()
        rooms.revocations.start()
        await self._wait_for_subscriber(subscriber_wait_s)
        await rooms.revocations.ready(SUBSCRIBER_WAIT_S)
        rooms.registry.start()
        if rooms.census.needed:
            rooms.census.start()
        rooms.loopback.start()
        self._tick()
        if any(namespace.presence != "off" for namespace in self._settings.namespaces.values()):
            rooms.presence.start()
        rooms.ticker.start()
        rooms.redelivery.start()
        rooms.links.recall.start()
        if rooms.gate is not None:
            rooms.gate.runner.start()
            if rooms.gate.manifest is not None:
                rooms.gate.manifest.start()
                # Who came before would be told that it is in before it is noted, and a kill would lose its end.
                await rooms.gate.manifest.ready(SUBSCRIBER_WAIT_S)
        await rooms.links.start()

    async def _wait_for_subscriber(self, wait_s: float) -> None:
        """Clients subscribe as soon as we listen; those who came before this connection would be refused."""
        deadline = time.monotonic() + wait_s
        while not self._rooms.ingest.connected and time.monotonic() < deadline:
            await asyncio.sleep(SUBSCRIBER_POLL_S)

    def _listen(self) -> None:
        rooms, links = self._rooms, self._rooms.links
        self._doors = Doors(self._settings, rooms.reactor, rooms.services, rooms.entrance, self._seat.certificates)
        if self._seat.certificates is not None:
            self._seat.certificates.watch(self._settings.tls.reload_s)
        public = self._doors.public(
            rooms.polls,
            Remote(links.relay, links.handover, links.tunnels, links.recall),
            lambda: rooms.fanout.turn,
        )
        server_api = api.Api(
            self._settings.api.key,
            rooms.channels,
            rooms.publisher,
            rooms.history,
            rooms.registry,
            rooms.presence,
            self._settings.client.commands_per_message,
            rooms.mailboxes,
            self._settings.mailbox.namespace,
            rooms.revocations,
            rooms.tickets,
        )
        internal = api.routes(server_api)
        internal += rooms.admin.routes(server_api, rooms.reactor, rooms.services, rooms.entrance)
        internal += links.routes()
        self._monitoring = self._build_monitoring()
        internal += monitoring.routes(self._monitoring)
        self._doors.open(self._seat.slot, public, internal)
        if links.balance is not None:
            self._doors.share(links.balance)
        self._metrics.start()
        self._follow(server_api)

    def _build_monitoring(self) -> Monitoring:
        settings, seat = self._settings, self._seat
        home = seat.home.directory
        self._metrics = Metrics(home, seat.slot.index, partial(figures.current, self._rooms.figures))
        self._exposition = Exposition(self._metrics, home, seat.workers, self._rooms.store)
        health = Health(
            self._rooms.figures,
            home,
            draining=self._signs.stopping.is_set,
            living=partial(self._metrics.living, seat.workers),
            workers=seat.workers,
            min_workers=min(settings.health.min_workers, seat.workers),
            needs_redis=settings.health.needs_redis,
        )
        guarded = bool(seat.slot.combined)
        return Monitoring(self._exposition, health, settings.api.key, guarded, seat.workers)

    def _follow(self, server_api: api.Api) -> None:
        """Take up new settings from now on: all rooms are there."""
        rooms = self._rooms
        held = retune.Rooms(
            admin=rooms.admin,
            api=server_api,
            authenticator=rooms.authenticator,
            broker=rooms.broker,
            census=rooms.census,
            certificates=self._seat.certificates,
            channels=rooms.channels,
            doors=self._doors,
            entrance=rooms.entrance,
            fanout=rooms.fanout,
            handshakes=rooms.handshakes,
            jwks=rooms.jwks,
            mailboxes=rooms.mailboxes,
            monitoring=self._monitoring,
            orders=rooms.orders,
            polls=rooms.polls,
            presence=rooms.presence,
            publisher=rooms.publisher,
            quotas=rooms.quotas,
            reactor=rooms.reactor,
            recall=rooms.links.recall,
            redelivery=rooms.redelivery,
            revocations=rooms.revocations,
            services=rooms.services,
            streams=rooms.streams,
            subscriptions=rooms.subscriptions,
            ticker=rooms.ticker,
        )
        seat = self._seat
        self._retuner = Retuner(held, self._settings, seat.keys, seat.heartbeat, self._adopt, seat.counts)
        if seat.instructions is not None:
            self._retuner.follow(seat.instructions)

    def _adopt(self, settings: Settings, services: Services) -> None:
        self._settings, self._rooms.services = settings, services

    # Living.

    def _beat(self) -> None:
        self._seat.heartbeat.beat()
        period_s = self._settings.heartbeat_timeout_s / HEARTBEATS_PER_TIMEOUT
        asyncio.get_running_loop().call_later(period_s, self._beat)

    def _tick(self) -> None:
        # First, as a fault in one step must not be the end of all that is paced.
        asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._rooms.lag.tick()
        self._rooms.streams.tick()
        if self._rooms.links.balance is not None:
            self._rooms.links.balance.tell()
        self._rooms.fanout.check_silence()

    def _report(self, told: tuple[int, ...] = ()) -> None:
        """Lines once a minute about what was not delivered as published, or not published, if there was any since."""
        backlog, fanout = self._rooms.reactor.backlog, self._rooms.fanout
        now = (backlog.conflated, backlog.dropped, backlog.slow, fanout.conflated, fanout.dropped)
        if any(now) and now != told:
            logger.info("slow readers: %d conflated, %d dropped, %d closed; all behind: %d conflated, %d dropped", *now)
        application = self._rooms.gate.runner.report() if self._rooms.gate is not None else ""
        for line in (self._rooms.ticker.report(), application, self._rooms.quotas.refusals.report()):
            if line:
                logger.info("%s", line)
        asyncio.get_running_loop().call_later(REPORT_S, self._report, now)

    async def _end(self, leaving: Leaving) -> None:
        rooms = self._rooms
        if self._seat.certificates is not None:
            self._seat.certificates.close()
        await leaving.last_goodbyes()
        if rooms.gate is not None:
            await rooms.gate.close()  # what its handlers still publish goes out
        # Before the HTTP connections: who waits there for Redis' verdict on a publish still gets it.
        await rooms.broker.close()
        await rooms.presence.close()
        await self._doors.close_all_connections()
        await self._exposition.close()
        await rooms.links.close()
        await rooms.tickets.close()
        await self._retuner.close()
        await rooms.loopback.close()
        await rooms.census.close()
        await rooms.admin.close()
        await rooms.headroom.close()
        await rooms.registry.close()
        await rooms.orders.close()
        await rooms.revocations.close()
        await rooms.ingest.close()
        await rooms.catchup.close()
        await rooms.askings.close()
        rooms.snapshots.close()
        rooms.symbols.close()
        await rooms.history.close()
        self._metrics.close()
        rooms.reactor.stop()
