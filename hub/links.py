"""Links: what sessions that live in one process need when the next request reaches another one.

Does: build the ways between a worker and its siblings, other machines and what is kept of lost sessions; start and end
them in order.
Does not: know what goes over them: relay, neighbours, handover, tunnel, balance and recall do.
Called by: building, worker.
Never break: nobody is answered by a way that is not open yet, and none is closed before those that use it.
"""

from __future__ import annotations

from . import httpd
from .balance import Balance
from .config import Settings
from .errors import BootError
from .handover import Handover
from .neighbours import Neighbours
from .reactor import Reactor
from .recall import Recall
from .relay import NEWCOMERS, Relay
from .relay import Limits as RelayLimits
from .seat import Seat
from .store import Store
from .tunnel import Tunnels


class Links:
    """Of one worker. neighbours, tunnels: None where no other machine is asked (relay.url); balance: where there is
    one worker only.
    """

    def __init__(self, settings: Settings, seat: Seat, store: Store, reactor: Reactor) -> None:
        self._home = seat.home.directory
        asked = settings.relay
        limits = RelayLimits(asked.timeout_s, asked.pending, asked.message_bytes, asked.buffer_bytes)
        self.relay = Relay(seat.home, seat.slot.index, seat.generation, limits)
        self.neighbours: Neighbours | None = None
        if asked.url:
            self.neighbours = Neighbours(store, self.relay, asked.url, asked.secret)
        self.handover = Handover(seat.home, self.relay.owner)
        self.tunnels: Tunnels | None = None
        if self.neighbours is not None:
            stalled_s = settings.tcp.user_timeout_s
            self.tunnels = Tunnels(reactor, self.neighbours, self.handover, asked.timeout_s, stalled_s, asked.pending)
        self.balance: Balance | None = None
        if seat.loads is not None:
            way = Handover(seat.home, self.relay.owner, NEWCOMERS)
            count = reactor.connections.__len__
            self.balance = Balance(seat.loads, way, self.relay.owner, count)
        self.recall = Recall(store, settings.socketio.recovery_ms, settings.socketio.recovery_bytes)

    async def start(self) -> None:
        """Answer siblings and other machines. Raises BootError where there is no room for a socket."""
        try:
            await self.relay.start()
        except OSError as error:
            raise BootError(f"no private socket in {self._home}: {error.strerror}") from None
        if self.neighbours is not None:
            self.neighbours.start()

    def routes(self) -> httpd.Routes:
        """Of the internal listener, for other machines."""
        return [route for room in (self.neighbours, self.tunnels) if room is not None for route in room.routes()]

    async def close(self) -> None:
        """End all, once no client is left."""
        if self.neighbours is not None:
            await self.neighbours.close()
        await self.relay.close()
        self.handover.close()
        if self.balance is not None:
            self.balance.close()
        await self.recall.close()
