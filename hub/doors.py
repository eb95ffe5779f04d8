"""Doors: which wires a worker serves, and on which of its listeners.

Does: list the routes of all wires, put a server and an acceptor behind each kind of listener, take them down.
Does not: build the rooms behind them (building), nor know how a wire speaks (transports).
Called by: worker (builds, opens), leaving (closes).
A new wire needs its routes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import assets, handshake, httpd
from .acceptor import DESCRIPTOR_MARGIN, INTERNAL_MARGIN, Acceptor
from .balance import Balance
from .certificates import Certificates
from .config import Settings
from .entrance import Entrance
from .handover import Handover
from .listeners import Slot
from .outbox import Limits
from .reactor import Reactor
from .recall import Recall
from .relay import Relay
from .sections import ClientSettings
from .services import Services
from .transports import (
    emulation,
    engineio,
    engineio_raw,
    http_stream,
    longpoll,
    polling,
    publishing,
    socketio,
    socketio_session,
    sse,
    websocket,
)
from .tunnel import Tunnels


def outbox_limits(client: ClientSettings) -> Limits:
    """What one connection's outbox may hold, as the settings have it."""
    return Limits(client.outbox_conflate_bytes, client.outbox_drop_bytes, client.outbox_bytes, client.outbox_frames)


def _deflate(client: ClientSettings) -> tuple[object, ...]:
    return client.deflate, client.deflate_min_bytes, client.deflate_level


@dataclass(frozen=True, slots=True)
class Remote:
    """The ways to sessions that live in another process, and to what is kept of those that were lost."""

    relay: Relay
    handover: Handover
    tunnels: Tunnels | None
    recall: Recall


class Doors:
    """The doors of one worker."""

    def __init__(
        self,
        settings: Settings,
        reactor: Reactor,
        services: Services,
        entrance: Entrance,
        certificates: Certificates | None = None,
    ) -> None:
        """certificates: of the listeners that speak TLS."""
        self._certificates = certificates
        self._settings = settings
        self._reactor = reactor
        self._services = services
        self._door = websocket.Door(
            reactor=reactor,
            services=services,
            entrance=entrance,
            forms=websocket.deflated_forms(settings.client),
        )
        self._emulated: emulation.Emulation | None = None
        self._socketio_door: socketio.Door | None = None
        self._engine: engineio.Engine | None = None
        self._raws: list[engineio_raw.Raw] = []
        self._polls: longpoll.Polls | None = None
        self._servers: list[httpd.Server] = []
        self._acceptors: list[Acceptor] = []
        self._public: list[Acceptor] = []
        """Those of them that clients come to."""

    def public(self, polls: longpoll.Polls, remote: Remote, turn: Callable[[], int]) -> httpd.Routes:
        """Of the public listeners: pages and all wires. turn: the number of the fan-out's."""
        self._polls = polls
        routes = assets.pages(self._settings.demo, self._settings.app.pages)
        routes += [
            (handshake.PATH, websocket.WebSocketHandler, {"door": self._door}),
            *sse.routes(self._door),
            (longpoll.PATH, longpoll.PollHandler, {"door": self._door, "polls": polls}),
            (publishing.PATH, publishing.PublishHandler, {"door": self._door}),
        ]
        return routes + self._emulation(remote.relay) + self._socketio(remote, turn)

    def _emulation(self, relay: Relay) -> httpd.Routes:
        """The doors of clients that no WebSocket reaches."""
        door, sessions = self._door, emulation.Sessions(relay.owner)
        relay.serve(emulation.KIND, sessions.answer)
        self._emulated = emulation.Emulation(self._reactor, self._services, door.entrance, sessions, relay)
        return http_stream.routes(self._emulated)

    def _socketio(self, remote: Remote, turn: Callable[[], int]) -> httpd.Routes:
        settings = self._settings.socketio
        if not settings.enabled:
            return []
        door = self._socketio_door = socketio.Door(
            services=self._services,
            forms=socketio_session.new_forms(settings, turn, self._services.gate),
            entrance=self._door.entrance,
            recall=remote.recall,
            turn=turn,
        )
        client = self._engine_client()
        engine = self._engine = engineio.Engine(
            reactor=self._reactor,
            client=client,
            outbox=outbox_limits(client),
            settings=settings,
            owner=remote.relay.owner,
            quotas=self._services.quotas,
        )
        address = polling.Address(engine, door, remote.relay, remote.handover, remote.tunnels)
        remote.handover.start(address.take)
        library = assets.client_library(settings.client_dir)
        self._raws = engineio_raw.addresses(self._services)
        return library + polling.routes(address, engineio_raw.makers(self._raws))

    def _engine_client(self) -> ClientSettings:
        return self._settings.client.model_copy(update={"message_bytes": self._settings.socketio.max_payload_bytes})

    def retune(self, settings: Settings, services: Services) -> None:
        """Other settings and services for who comes from now on; who is here has those that it began with."""
        # Other forms, though equal, would have everything encoded once more for who has them.
        forms_change = _deflate(settings.client) != _deflate(self._settings.client)
        self._settings, self._services = settings, services
        rooms = (self._door, self._emulated, self._socketio_door, *self._raws)
        for room in rooms:
            if room is not None:
                room.services = services
        if forms_change:
            self._door.forms = websocket.deflated_forms(settings.client)
        if self._engine is not None:
            self._engine.client, self._engine.settings = self._engine_client(), settings.socketio
            self._engine.outbox = outbox_limits(settings.client)
        for server in self._servers:
            server.retune(settings.http)
        for acceptor in self._acceptors:
            acceptor.retune(settings.http.header_timeout_s, settings.tls.handshakes)

    def open(self, slot: Slot, public: httpd.Routes, internal: httpd.Routes) -> None:
        """Serve the slot's listeners from now on."""
        fast = self._settings.fast_upgrade
        only_public = [sock for sock in slot.public if sock not in slot.combined]
        for routes, listeners, quick, margin in (
            (public, only_public, fast, DESCRIPTOR_MARGIN),
            (internal, slot.internal, False, INTERNAL_MARGIN),
            (public + internal, slot.combined, fast, DESCRIPTOR_MARGIN),
        ):
            acceptor = self._acceptor(routes, quick, margin, margin == DESCRIPTOR_MARGIN)
            proxied = [sock for sock in listeners if sock in slot.proxied]
            acceptor.listen([sock for sock in listeners if sock not in slot.secure], proxied)
            acceptor.listen_tls([sock for sock in listeners if sock in slot.secure], proxied)

    def share(self, balance: Balance) -> None:
        """Give new clients to emptier workers, and take those of fuller ones. Call behind `open`. Raises OSError."""
        for acceptor in self._public:
            acceptor.balance = balance
        # All workers have the same listeners in the same order.
        balance.open(lambda sock, kind, place: self._public[kind].take(sock, place))

    def _acceptor(self, routes: httpd.Routes, fast: bool, margin: int, public: bool) -> Acceptor:
        http = self._settings.http
        server = httpd.Server(httpd.application(routes), http)
        self._servers.append(server)
        acceptor = Acceptor(
            self._reactor,
            server,
            self._door,
            http.header_timeout_s,
            fast=fast,
            margin=margin,
            certificates=self._certificates,
            tls_handshakes=self._settings.tls.handshakes,
            public=public,
        )
        if public:
            acceptor.kind = len(self._public)
            self._public.append(acceptor)
        self._acceptors.append(acceptor)
        return acceptor

    def retire(self) -> None:
        """Accept no more, as others do on the same sockets; who is in may go on, by one request for each connection."""
        for acceptor in self._acceptors:
            acceptor.stop()
        for server in self._servers:
            server.retire()

    @property
    def kept(self) -> int:
        """HTTP connections that there are, idle ones too."""
        return sum(server.kept for server in self._servers)

    def close(self) -> None:
        """Accept no more; whoever waits in a poll is answered."""
        for acceptor in self._acceptors:
            acceptor.stop()
        for server in self._servers:
            server.stop()
        if self._polls is not None:
            self._polls.close()

    async def close_all_connections(self) -> None:
        """End what is left of plain HTTP."""
        for server in self._servers:
            await server.close_all_connections()
