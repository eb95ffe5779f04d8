"""Quotas: how much one connection, one user and one address may have of a worker.

Does: count connections, handshakes, commands and bytes against the settings, say what is too much and when it has gone
on for too long, give back what a connection had.
Does not: answer (the wires do, each in its own words), find addresses (forwarded), or know other workers (census).
Called by: acceptor (knock, shuts_out), entrance (admit), transports (open, close, requests of plain HTTP), session
(spend, strike), connection (offend).
Never break: what is opened is closed exactly once, whatever way a connection ends; `Meter.spend` is a plain call of
less than a microsecond, for every message of every client passes it.

What is exact, and where: rates are of each worker by itself. Connections of an address and of a user are exact within a
worker; over all workers they are what census knows, a round trip to Redis later.

Over a rate a command fails with 111, and what the client meant is not done. Whoever goes on so for `tolerated_s`, or
has had MOST_REFUSED such answers, without a quiet second in between, is closed with 3013.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from .errors import Close
from .forwarded import Proxies, pack
from .limits import BURST_S, Account, Accounts, Cost, Episode, cost_s
from .refusals import Refusals
from .sections import LimitSettings

MOST_REFUSED = 1000
"""Answers 111 in one go: each is work, too. Whoever sends so many more has not read the first."""
MOST_STRIKES = 100
"""Answers 106 to more channels, in one go. Clients that subscribe to all they know of should read the first."""
MOST_KEYS = 4096
"""Addresses under whose name it need not be thought twice; some 100 bytes each."""
SOCKETS = 2
"""Of an address that are no client's, for each connection that it may have: who polls has another one for its posts."""
KNOCKS = 2
"""Connections of an address for each handshake that it may have: as many as are let in are told that they are not."""
UNLIMITED = LimitSettings.model_validate(
    {name: 0 for name in LimitSettings.model_fields if name not in ("tolerated_s", "ip_network_bits", "remembered")}
)


class Closable(Protocol):
    """A connection, or what stands for one."""

    def close(self, close: Close) -> None:
        """End it in order."""


class Census(Protocol):
    """How many there are on all workers; as census has it."""

    def note(self, kind: str, key: str, count: int, newcomer: Closable | None) -> None:
        """This worker has so many of one address or user now. newcomer: who has just come, None where one has gone."""

    def elsewhere(self, kind: str, key: str) -> int:
        """So many other workers have, as far as that is known and fresh; 0 where it is not."""


class NoCensus:
    """A worker by itself."""

    def note(self, kind: str, key: str, count: int, newcomer: Closable | None) -> None: ...

    def elsewhere(self, kind: str, key: str) -> int:
        return 0


IP, USER = "ip", "user"


class Quotas:
    """Of one worker."""

    def __init__(
        self,
        settings: LimitSettings = UNLIMITED,
        clock: Callable[[], float] = time.monotonic,
        *,
        proxies: Proxies | None = None,
        census: Census | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        """proxies: whose own addresses are under no limit, as they may stand for anybody."""
        self.refusals = refusals or Refusals()
        self.census = census or NoCensus()
        self.clock = clock
        self.connections = 0
        self._by_ip: dict[str, int] = {}
        """Connections."""
        self._sockets: dict[str, int] = {}
        """Those that are nobody's connection: newcomers, and whatever stays with plain HTTP."""
        self._ips = Accounts(settings.remembered)
        self._users = Accounts(settings.remembered)
        self._keys: dict[str, str] = {}
        """Of addresses that were asked about lately."""
        self.retune(settings, proxies or Proxies())

    def retune(self, settings: LimitSettings, proxies: Proxies) -> None:
        """Other limits from now on; who is over one of them stays. What is counted for an address or user from its
        beginning on is that of newcomers.
        """
        self.settings = settings
        self.connection_cost = Cost.of(settings.commands_per_s, settings.bytes_per_s)
        self.user_cost = Cost.of(settings.user_commands_per_s, settings.user_bytes_per_s)
        self.ip_cost = Cost.of(settings.ip_commands_per_s, settings.ip_bytes_per_s)
        self._handshake_s = cost_s(settings.ip_handshakes_per_s)
        self._offence_s = cost_s(settings.ip_offences_per_s)
        self._proxies = proxies
        self._keys.clear()
        self._keeps_ips = bool(settings.ip_loop_ms_per_s or self._offence_s or not self.ip_cost.free)
        """A connection holds its address's account."""
        self._names_ips = bool(self._keeps_ips or settings.ip_connections or self._handshake_s)
        for accounts in (self._ips, self._users):
            accounts.most_idle = settings.remembered

    def key(self, address: str) -> str:
        """Under which an address is counted: the network of `ip_network_bits` bits of an IPv6 one; '' for none."""
        key = self._keys.get(address)
        if key is None:  # each handshake asks four times
            if len(self._keys) >= MOST_KEYS:
                self._keys.clear()
            key = self._keys[address] = self._key(address)
        return key

    def _key(self, address: str) -> str:
        if not self._names_ips or not address or self._proxies.trusts(address):
            return ""
        if ":" not in address:
            return address
        packed = pack(address)
        if packed is None or len(packed) == 4:
            return address
        return str(ipaddress.IPv6Network((packed, self.settings.ip_network_bits), strict=False))

    # Sockets.

    def knock(self, address: str, *, secure: bool = False) -> Place | None:
        """Count one socket of this address, of which nothing has been read, until its place is left; None: it has too
        many, or has come too often: secure ones cost a signature before anything is known of them.
        """
        settings, key = self.settings, self.key(address)
        if not key:
            return NOWHERE
        if secure and self._handshake_s:
            # An account of its own: the request behind it counts, too.
            now = self.clock()
            if not self._ips.touch(f"tls {key}", now).greet(now, self._handshake_s):
                self._refused("ip_handshakes")
                return None
        if not settings.ip_connections:
            return NOWHERE
        count = self._sockets.get(key, 0)
        if count >= SOCKETS * settings.ip_connections:
            self._refused("ip_sockets")
            return None
        self._sockets[key] = count + 1
        return Place(self._sockets, key)

    # Handshakes.

    def shuts_out(self, address: str) -> str:
        """Count one connection of this address; under which key it is to be ended unread, and without an answer, as
        KNOCKS times as many have come as it may have handshakes: to tell the others that they are refused is work
        enough. '' where it may come.
        """
        key = self.key(address)
        if not key or not self._handshake_s:
            return ""
        now = self.clock()
        if self._ips.touch(key, now).knock(now, self._handshake_s / KNOCKS):
            return ""
        self._refused("ip_shut_out")
        return key

    def offend(self, account: Account | None, now: float) -> None:
        """A connection of this account's address had to be ended for what it sent."""
        if account is not None and self._offence_s:
            self.refusals.count("offences")
            account.offend(now, self._offence_s)

    def admit(self, address: str) -> str:
        """Count one handshake, or request that is one; why it can't be: a reason of refusals, '' where it may."""
        key = self.key(address)
        if key and (self._handshake_s or self._offence_s):
            now = self.clock()
            if not self._ips.touch(key, now).greet(now, self._handshake_s):
                return self._refused("ip_handshakes")
        return self.no_room(address)

    def no_room(self, address: str) -> str:
        """Why there can't be one more connection of this address, '' where there can. To be asked again by whoever has
        waited since `admit`: others may have come in meanwhile.
        """
        settings, key = self.settings, self.key(address)
        if key and settings.ip_connections:
            found = self._by_ip.get(key, 0) + self.census.elsewhere(IP, key)
            if found >= settings.ip_connections:
                return self._refused("ip_connections")
        if settings.connections and self.connections >= settings.connections:
            return self._refused("connections")
        return ""

    def _refused(self, reason: str) -> str:
        self.refusals.count(reason)
        return reason

    # Connections.

    def open(self, address: str, connection: Closable | None = None) -> Meter:
        """One more connection, until its meter is closed. connection: None for what can't be closed, as a poll."""
        key = self.key(address)
        self.connections += 1
        if key:
            count = self._by_ip[key] = self._by_ip.get(key, 0) + 1
            if self.settings.ip_connections:
                self.census.note(IP, key, count, connection)
        return Meter(self, key, self._ips.hold(key) if key and self._keeps_ips else None)

    def close(self, key: str, account: Account | None) -> None:
        """What a meter calls, once."""
        self.connections -= 1
        if account is not None:
            self._ips.let_go(account, self.clock())
        if key:
            count = self._by_ip.pop(key) - 1
            if count:
                self._by_ip[key] = count
            if self.settings.ip_connections:
                self.census.note(IP, key, count, None)

    def by_ip(self) -> Mapping[str, int]:
        """Connections of this worker by address."""
        return self._by_ip

    # Users.

    def full(self, found: int) -> bool:
        """A user that has so many connections here may have no more."""
        most = self.settings.user_connections
        if not most or found < most:
            return False
        self.refusals.count("user_connections")
        return True

    def entered(self, user: str, count: int, connection: Closable | None) -> None:
        """A user has so many connections here now. connection: the new one; None where one has gone."""
        if user and self.settings.user_connections:
            self.census.note(USER, user, count, connection)

    def account_of(self, user: str) -> Account | None:
        """Of one more session of a user, until `let_go`; None where users have no rates, or it is nobody's."""
        return None if self.user_cost.free or not user else self._users.hold(user)

    def let_go(self, account: Account | None) -> None:
        """What `account_of` gave."""
        if account is not None:
            self._users.let_go(account, self.clock())

    # Requests of plain HTTP.

    def request(self, address: str, user: str, size: int) -> bool:
        """Count a request of so many bytes as one command; False: too many."""
        now = self.clock()
        ip, name = "" if self.ip_cost.free else self.key(address), "" if self.user_cost.free else user
        account = self._ips.touch(ip, now) if ip else None
        return self.share(now, 1, size, account, self._users.touch(name, now) if name else None)

    def share(self, now: float, commands: int, size: int, ip: Account | None, user: Account | None) -> bool:
        """Count what an address and a user have together with others; False: one of them has no more."""
        if user is not None and not user.take(now, commands, size, self.user_cost):
            self.refusals.count("user_commands", commands)
            return False
        if ip is not None and not ip.take(now, commands, size, self.ip_cost):
            self.refusals.count("ip_commands", commands)
            if user is not None:  # what is refused costs nothing
                user.commands_at -= commands * self.user_cost.command_s
                user.bytes_at -= size * self.user_cost.byte_s
            return False
        return True


class Place:
    """One socket's among those of its address."""

    __slots__ = ("_key", "_sockets")

    def __init__(self, sockets: dict[str, int], key: str) -> None:
        """key: '' where it is not counted."""
        self._sockets = sockets
        self._key = key

    def leave(self) -> None:
        """It has become a client's, or is closed; once or more often."""
        key, self._key = self._key, ""
        if key:
            count = self._sockets.pop(key) - 1
            if count:
                self._sockets[key] = count


NOWHERE = Place({}, "")
"""Of all who are not counted."""


class Meter:
    """What one connection takes."""

    __slots__ = ("_bytes_at", "_commands_at", "_episode", "_key", "_quotas", "_rated", "_strikes", "account")

    def __init__(self, quotas: Quotas, key: str, account: Account | None) -> None:
        """account: of its address, where that has rates."""
        self._quotas: Quotas | None = quotas
        """None once it is closed."""
        self._key = key
        self.account = account
        self._rated = None if quotas.ip_cost.free else account
        """The same, where its commands or bytes count."""
        self._commands_at = self._bytes_at = 0.0
        self._episode: Episode | None = None
        self._strikes: Episode | None = None

    def close(self) -> None:
        """Give back what the connection had; once or more often."""
        quotas, self._quotas = self._quotas, None
        if quotas is not None:
            quotas.close(self._key, self.account)

    def spend(self, now: float, commands: int, size: int, user: Account | None = None) -> bool:
        """Count a message of so many commands and bytes. False: it is too much, and not counted.

        now: when it came, in seconds of the quotas' clock; user: whose session it is of, as `Quotas.account_of` has it.
        """
        quotas, account = self._quotas, self._rated
        if quotas is None:
            return False
        command_s, byte_s = quotas.connection_cost
        commands_at, bytes_at = self._commands_at, self._bytes_at
        # As `limits.fits`, written out: half of the time would be the calls.
        new_commands_at = (commands_at if commands_at > now else now) + commands * command_s
        new_bytes_at = (bytes_at if bytes_at > now else now) + size * byte_s
        most = now + BURST_S
        if (new_commands_at > most and commands_at > now) or (new_bytes_at > most and bytes_at > now):
            quotas.refusals.count("commands", commands)
            return False
        if (account is not None or user is not None) and not quotas.share(now, commands, size, account, user):
            return False
        if command_s:
            self._commands_at = new_commands_at
        if byte_s:
            self._bytes_at = new_bytes_at
        return True

    def offend(self, now: float) -> None:
        """The connection had to be ended for what it sent."""
        if self._quotas is not None:
            self._quotas.offend(self.account, now)

    def sustained(self, now: float, commands: int) -> bool:
        """So many more commands were too much; whether the connection has to go for it (3013)."""
        if self._episode is None:
            self._episode = Episode(now)
        return self._judge(self._episode.count(now, commands, MOST_REFUSED, self._tolerated_s), "floods")

    def strike(self, now: float) -> bool:
        """One more channel than it may have was asked for; whether the connection has to go for it (3505)."""
        if self._quotas is not None:
            self._quotas.refusals.count("channels")
        if self._strikes is None:
            self._strikes = Episode(now)
        return self._judge(self._strikes.count(now, 1, MOST_STRIKES, self._tolerated_s), "channel_floods")

    @property
    def _tolerated_s(self) -> float:
        return self._quotas.settings.tolerated_s if self._quotas is not None else 0.0

    def _judge(self, too_much: bool, reason: str) -> bool:
        if too_much and self._quotas is not None:
            self._quotas.refusals.count(reason)
        return too_much
