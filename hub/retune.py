"""Retune: a worker's part of a reload: new settings, brought to each room that holds some of the old ones.

    PREPARE   make what can fail: keys, certificates, networks            answers "prepared", or "refused" and why
    APPLY     hand all of it to the rooms, in one turn of the loop        answers "applied", or "failed" and why
    DROP      forget what was prepared
    TELL      how often the hub has been reloaded, for metrics

Does: carry out the supervisor's instructions; know which room holds which settings.
Does not: read a file (what they hold comes along), check settings, or decide what may change (reloadable).
Called by: worker, which builds it once all rooms are there.
Never break: between two lines of `apply` nothing else of this worker runs, and nobody is disconnected by it.
A room that takes settings when it is built, and whose settings may change, needs its line in `_apply`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import orjson

from . import log
from .admin import Admin
from .api import Api
from .asking import ANSWER_SHARE, Histories
from .auth import Authenticator
from .broker import Broker
from .census import Census
from .certificates import Certificates, Loaded
from .channels import Channels
from .config import Settings
from .doors import Doors, outbox_limits
from .emission import everyone_rules
from .entrance import Entrance
from .errors import ConfigError
from .fairness import Rates
from .fanout import Fanout
from .forwarded import Proxies
from .heartbeat import Answer, Heartbeat
from .instructions import APPLY, DROP, PREPARE, TELL, Instruction, Instructions
from .jwks import Jwks
from .keyfiles import authenticator, own_keys
from .keys import Key
from .limits import TokenBucket
from .mailbox import Mailboxes
from .monitoring import Monitoring
from .orders import Orders
from .origin import Origins
from .presence import Presence
from .publish import Publisher
from .quotas import IP, USER, Quotas
from .reactor import Reactor
from .recall import Recall
from .redelivery import Redelivery
from .reloadable import NEVER_RELOADED, Counts, Fresh, differences, gone, pairs_of, refusals, unpack
from .revocation import Revocations
from .services import Services
from .streams import Streams
from .subscribe import Subscriptions
from .ticker import Ticker
from .transports.longpoll import Polls

logger = logging.getLogger(__name__)

PREPARED, REFUSED, APPLIED, FAILED = "prepared", "refused", "applied", "failed"


class Ready(NamedTuple):
    """What was made of new settings, and waits for its word."""

    fresh: Fresh
    authenticator: Authenticator
    own: list[Key]
    proxies: Proxies
    certificates: Loaded | None


@dataclasses.dataclass(slots=True)
class Rooms:
    """What of a worker holds settings that may change."""

    admin: Admin
    api: Api
    authenticator: Authenticator
    broker: Broker
    census: Census
    certificates: Certificates | None
    channels: Channels
    doors: Doors
    entrance: Entrance
    fanout: Fanout
    handshakes: TokenBucket
    jwks: Jwks | None
    mailboxes: Mailboxes
    monitoring: Monitoring
    orders: Orders
    polls: Polls
    presence: Presence
    publisher: Publisher
    quotas: Quotas
    reactor: Reactor
    recall: Recall
    redelivery: Redelivery
    revocations: Revocations
    services: Services
    streams: Streams
    subscriptions: Subscriptions
    ticker: Ticker


class Retuner:
    """The instructions of one worker, carried out. Build it with a running loop."""

    def __init__(
        self,
        rooms: Rooms,
        settings: Settings,
        keys: object,
        heartbeat: Heartbeat,
        adopt: Callable[[Settings, Services], None],
        counts: Counts = NEVER_RELOADED,
    ) -> None:
        """keys: what the key files held that the authenticator was made with. adopt: hears of settings that hold now,
        before anything else of the worker runs.
        """
        self.rooms = rooms
        self.counts = counts
        self._settings = settings
        self._keys = keys
        self._heartbeat = heartbeat
        self._adopt = adopt
        self._ready: tuple[int, Ready] | None = None
        self._instructions: Instructions | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, instructions: Instructions) -> None:
        """Do what comes, until `close`."""
        self._instructions = instructions
        asyncio.get_running_loop().add_reader(instructions.fd, self._on_readable, instructions)

    async def close(self) -> None:
        """Follow no more."""
        self._unfollow()
        if self.rooms.jwks is not None:
            await self.rooms.jwks.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _unfollow(self) -> None:
        if self._instructions is not None:
            asyncio.get_running_loop().remove_reader(self._instructions.fd)
            self._instructions = None

    def _on_readable(self, instructions: Instructions) -> None:
        try:
            found = instructions.read()
        except EOFError:
            self._unfollow()  # the supervisor is gone, as we are soon
            return
        for one in found:
            self.obey(one)

    def obey(self, instruction: Instruction) -> None:
        """Carry out one instruction and answer it."""
        number = instruction.number
        if instruction.kind == PREPARE:
            self._answer(number, lambda: self._prepare(number, instruction.data), PREPARED, REFUSED)
        elif instruction.kind == APPLY:
            self._answer(number, lambda: self._apply(number), APPLIED, FAILED)
        elif instruction.kind == DROP:
            self._ready = None
        elif instruction.kind == TELL:
            self.counts = Counts(*orjson.loads(instruction.data))

    def _answer(self, number: int, work: Callable[[], None], good: str, bad: str) -> None:
        try:
            work()
        except ConfigError as error:
            self._heartbeat.answer(Answer(number, bad, str(error)))
        except Exception as error:
            # The supervisor waits for a word in any case; a fault of ours must not end this worker's clients.
            logger.exception("settings: %s", bad)
            self._heartbeat.answer(Answer(number, bad, f"{type(error).__name__}: {error}"))
        else:
            self._heartbeat.answer(Answer(number, good))

    def _prepare(self, number: int, data: bytes) -> None:
        self._ready = None
        fresh = unpack(data)
        settings, held = fresh.settings, self.rooms.certificates
        # The supervisor has looked, but where a deploy has failed it goes by other settings than we do.
        if lines := refusals(differences(self._settings, settings)):
            raise ConfigError("; ".join(lines))
        loaded = None
        if held is not None and fresh.certificates is not None:
            loaded = held.prepare(pairs_of(settings), fresh.certificates)
        self._ready = (
            number,
            Ready(
                fresh,
                authenticator(settings.auth, lambda: 0.0, fresh.keys),
                own_keys(settings.auth, fresh.keys),
                Proxies(settings.trusted_proxies),
                loaded,
            ),
        )

    def _apply(self, number: int) -> None:
        prepared, self._ready = self._ready, None
        if prepared is None or prepared[0] != number:
            raise ConfigError("these settings were not prepared")
        ready, rooms = prepared[1], self.rooms
        old, new = self._settings, ready.fresh.settings
        log.retune(new.log_level, new.log_format, new.log_burst)
        self._apply_rules(old, new)
        self._apply_limits(new, ready)
        self._apply_keys(old, new, ready)
        rooms.services = dataclasses.replace(
            rooms.services,
            client=new.client,
            outbox=outbox_limits(new.client),
            histories=Histories(
                rooms.services.histories.read,
                new.client.history_publications,
                new.client.outbox_bytes // ANSWER_SHARE,
            ),
            log_addresses=new.log_addresses,
        )
        rooms.doors.retune(new, rooms.services)
        rooms.admin.retune(rooms.services)
        self._settings, self._keys = new, ready.fresh.keys
        self._adopt(new, rooms.services)

    def _apply_rules(self, old: Settings, new: Settings) -> None:
        """Namespaces, and who relies on their rules."""
        rooms, client, worker = self.rooms, new.client, new.worker
        rooms.channels.retune(new.namespaces)
        rooms.streams.retune(
            rooms.channels.rules,
            most=client.recovery_publications,
            most_bytes=client.recovery_bytes,
            ring_bytes=worker.ring_bytes,
            linger_s=worker.linger_s,
            displaced_per_s=worker.resubscribes_per_s,
        )
        rooms.redelivery.retune(rooms.channels)
        rooms.redelivery.start()
        rooms.presence.retune(worker.presence_grace_s, client.presence_clients)
        if any(rules.presence != "off" for rules in new.namespaces.values()):
            rooms.presence.start()
        rooms.mailboxes.retune(new.mailbox, client.outbox_bytes)
        if (bars := new.namespaces.get(new.ticker.bars_namespace)) is not None:
            rooms.ticker.bar_rules = bars
        if left := gone(old, new):
            rooms.orders.close_namespaces(left)

    def _apply_limits(self, new: Settings, ready: Ready) -> None:
        rooms, limits, worker = self.rooms, new.limits, new.worker
        rooms.broker.retune(new.redis.pending_publishes, new.redis.pending_bytes)
        if rooms.publisher.headroom is not None:
            rooms.publisher.headroom.percent = new.redis.full_percent
        rooms.quotas.retune(limits, ready.proxies)
        rooms.reactor.fairness.retune(Rates.of_ms(limits.loop_ms_per_s, limits.ip_loop_ms_per_s, worker.busy_ms_per_s))
        rooms.census.retune({IP: limits.ip_connections, USER: limits.user_connections})
        if rooms.census.needed:
            rooms.census.start()
        rooms.subscriptions.most = limits.channels
        rooms.handshakes.per_s = worker.handshakes_per_s
        rooms.polls.most = worker.polls
        rooms.fanout.max_bytes = worker.batch_bytes
        rooms.reactor.close_timeout_s = new.client.close_timeout_s
        rooms.reactor.backlog.max_bytes = worker.backlog_bytes
        rooms.publisher.json_depth = new.client.json_depth
        rooms.recall.most_bytes = new.socketio.recovery_bytes
        rooms.revocations.most = new.auth.revocations
        rooms.admin.keys.retune(new.api.key)
        rooms.monitoring.retune(new.api.key, new.health)
        if (gate := rooms.services.gate) is not None:
            gate.retune(
                new.client.pending_commands,
                everyone_rules(new.socketio.recovery_ms, new.client.recovery_publications),
            )
        api = rooms.api
        api.key, api.most_commands, api.inbox = new.api.key, new.client.commands_per_message, new.mailbox.namespace

    def _apply_keys(self, old: Settings, new: Settings, ready: Ready) -> None:
        """Who is let in, from where, and by which certificate."""
        rooms = self.rooms
        entrance = rooms.entrance
        entrance.origins, entrance.proxies = Origins(new.allowed_origins), ready.proxies
        entrance.cookie = new.auth.cookie
        if rooms.certificates is not None and ready.certificates is not None:
            rooms.certificates.take(ready.certificates)
            rooms.certificates.watch(new.tls.reload_s)
        # Where nothing of it has changed, the tokens that are remembered as good stay so.
        if (new.auth, ready.fresh.keys) != (old.auth, self._keys):
            rooms.authenticator.become(ready.authenticator)
            self._apply_jwks(old, new, ready.own)
            if rooms.services.gate is not None:
                entrance.judges = rooms.authenticator.enabled

    def _apply_jwks(self, old: Settings, new: Settings, own: list[Key]) -> None:
        rooms, was, auth = self.rooms, old.auth, new.auth
        if rooms.jwks is not None and (was.jwks_url, was.jwks_ca_file) == (auth.jwks_url, auth.jwks_ca_file):
            rooms.jwks.retune(own, auth.algorithms, auth.jwks_refresh_s)
            return
        if rooms.jwks is not None:
            # At once: a set that comes in this very turn would put the old keys back.
            rooms.jwks.stop()
            self._begin(rooms.jwks.close())
            rooms.jwks = None
            rooms.authenticator.missing = lambda kid: False
        if auth.jwks_url:
            rooms.jwks = Jwks(
                auth.jwks_url, rooms.authenticator, own, auth.algorithms, auth.jwks_refresh_s, auth.jwks_ca_file
            )
            self._begin(rooms.jwks.start())

    def _begin(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
