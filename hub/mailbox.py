"""Mailbox: messages that are kept for one user until its client acknowledges them.

Does: one call for each thing that can happen to a mailbox, each one script in Redis (lua/mailbox_*.lua), and reads what
it replies.
Does not: decide when mailboxes are looked at (redelivery), know sessions or HTTP, or keep anything in this process.
Called by: publish and api_mailbox (put), redelivery (open, visit, claim), rpc (acknowledge), api_mailbox (the rest).
Never break: `done(Receipt)` means that the message stays until it is acknowledged, or is dead with a reason: expired,
max_deliveries, overflow. A client gets it at least once, and knows it again by the tag `id`.

What clients get is a publication with two tags more: {"data":…,"tags":{"id":"1764000000000-000000","deliveries":"1"}}.
Redis keeps it up to those two, as each delivery has its own count: b'{"data":…,"tags":{'.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from . import errors
from .broker import Broker, Done, Receipt
from .channels import Namespace, namespace_of
from .errors import CommandError, HubError
from .message import ClientInfo, encode_body
from .sections import MailboxSettings
from .store import Keys

ID = re.compile(r"[0-9]{13}-[0-9]{6}")
"""A message's; lua/mailbox.lua makes them."""
LETTER_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
"""A dead letter's: that of a Redis stream's entry; `is_letter_id` has the rest."""
MAX_LETTER_PART = 2**64 - 1
OWN_TAGS = ("id", "deliveries")
MAX_CLAIMS = 100
"""Mailboxes that one worker takes on at once; each is a script of its own."""
CLAIM_S = 5.0
"""After this a mailbox that a worker has claimed is due again, should that one be gone."""
WINDOW_SHARE = 4
"""Of client.outbox_bytes the part that may be in flight: a device that subscribes gets all of it in one go."""
FULL = {
    b"full": "the mailbox is full",
    b"total": "all mailboxes together are full",
    b"large": "the message is larger than a mailbox may be",
}


class Contents(NamedTuple):
    """How much is in one mailbox. bytes: as the bounds count them; in_flight: sent and not acknowledged."""

    messages: int
    bytes: int
    in_flight: int
    totals: dict[str, int]
    """Of all mailboxes: messages, bytes, dead_bytes; dead_REASON and dead_forgotten since the store's beginning."""


class Letter(NamedTuple):
    """A message that died. id: its place among the letters; message: its own id while it lived."""

    id: str
    channel: str
    reason: str
    message: str
    deliveries: int
    publication: dict[str, Any]


class Mailboxes:
    """The mailboxes of all users, as one worker reaches them. What is called back is called later, never at once."""

    def __init__(
        self,
        broker: Broker,
        keys: Keys,
        settings: MailboxSettings,
        outbox_bytes: int,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """outbox_bytes: what may wait for one connection. jitter: from 0 to 1, spreads redeliveries."""
        self._broker = broker
        self._keys = keys
        self._jitter = jitter
        self.retune(settings, outbox_bytes)

    def retune(self, settings: MailboxSettings, outbox_bytes: int) -> None:
        """As the constructor has them, from now on."""
        self._settings = settings
        self._window_bytes = outbox_bytes // WINDOW_SHARE

    def put(
        self,
        channel: str,
        namespace: Namespace,
        message: bytes,
        done: Done,
        idempotency_key: str = "",
        notice: bytes = b"",
    ) -> None:
        """Keep a message, and send it to all devices of its user.

        message: as `kept` makes it. notice: sent to all workers on the control channel, if the message is kept now.
        `done`: as `Broker.publish` has it, the receipt with an id; CommandError 106 where there is no room.
        """
        remembered_ms = int(namespace.idempotency_ttl_s * 1000) if idempotency_key else ""
        arguments = [
            message,
            *self._bounds(namespace),
            namespace.mailbox_full,
            remembered_ms,
            self._keys.control,
            notice,
        ]

        def replied(reply: Any) -> None:
            outcome = _receipt(reply, namespace.ack)
            self._broker.count(outcome)
            done(outcome)

        self._run("put", channel, namespace, arguments, replied, [self._keys.once(channel, idempotency_key)])

    def open(self, channel: str, namespace: Namespace, replied: Callable[[list[bytes] | HubError], None]) -> None:
        """What is in flight, as bodies of publications, oldest first; what waits is sent to all devices."""
        self._run("open", channel, namespace, (), replied)

    def acknowledge(
        self, channel: str, namespace: Namespace, ids: Sequence[str], replied: Callable[[int | HubError], None]
    ) -> None:
        """Take messages out for good, if they were ever sent; tells how many of `ids`, which match ID, were there."""
        self._run("ack", channel, namespace, ids, replied)

    def visit(self, channel: str, namespace: Namespace, replied: Callable[[int | HubError], None]) -> None:
        """Do what is due in one mailbox, if anything is."""
        self._run("visit", channel, namespace, (), replied)

    def claim(self, namespace: str, replied: Callable[[list[bytes] | HubError], None]) -> None:
        """Channels in which something is due, at most MAX_CLAIMS; for CLAIM_S no other worker gets them."""
        self._broker.script("mailbox_due", [self._keys.due(namespace)], [MAX_CLAIMS, int(CLAIM_S * 1000)], replied)

    def stats(self, channel: str, namespace: Namespace, replied: Callable[[Contents | HubError], None]) -> None:
        """How much there is."""

        def read(reply: Any) -> None:
            replied(reply if isinstance(reply, HubError) else _contents(*reply))

        self._run("stats", channel, namespace, (), read)

    def letters(self, after: str, limit: int, replied: Callable[[list[Letter] | HubError], None]) -> None:
        """Dead letters, oldest first, behind the one with the id `after` ('': from the first), at most `limit`."""

        def read(reply: Any) -> None:
            replied(reply if isinstance(reply, HubError) else [_letter(entry, fields) for entry, fields in reply])

        self._broker.script("mailbox_dead", [self._keys.dead_letters], [after, limit], read)

    def requeue(self, letter: str, channel: str, namespace: Namespace, done: Done) -> None:
        """Put a dead letter back, as a new message; `done` as in `put`, CommandError 107 where it is not there."""
        arguments = [letter, *self._bounds(namespace)]

        def replied(reply: Any) -> None:
            done(_receipt(reply, namespace.ack))

        self._run("requeue", channel, namespace, arguments, replied)

    def _run(
        self,
        name: str,
        channel: str,
        namespace: Namespace,
        arguments: Sequence[Any],
        replied: Callable[[Any], None],
        keys: Sequence[str] = (),
    ) -> None:
        common = [
            channel,
            self._keys.channel(channel),
            int(namespace.mailbox_ttl_s * 1000),
            namespace.mailbox_window,
            int(namespace.ack_timeout_s * 1000),
            namespace.mailbox_deliveries,
            f"{self._jitter():.3f}",
            self._settings.dead_letters,
            self._settings.dead_bytes,
            self._window_bytes,
        ]
        due = self._keys.due(namespace_of(channel))
        all_keys = [*self._keys.mailbox(channel), due, self._keys.mail_totals, self._keys.dead_letters, *keys]
        ack = namespace.ack if name in ("put", "requeue") else "memory"
        self._broker.script(f"mailbox_{name}", all_keys, [*common, *arguments], replied, ack)

    def _bounds(self, namespace: Namespace) -> tuple[int, int, int]:
        return namespace.mailbox_size, namespace.mailbox_bytes, self._settings.total_bytes


def kept(data: Any, info: ClientInfo | None, tags: dict[str, str] | None) -> bytes:
    """What Redis keeps of a publication: b'{"data":1,"tags":{', or b'{"data":1,"tags":{"a":"b",'.

    Raises TypeError for what orjson can't write, CommandError 107 for tags by a name that each delivery sets itself.
    """
    if tags and any(name in tags for name in OWN_TAGS):
        raise CommandError(errors.BAD_REQUEST, f"tags: {' and '.join(OWN_TAGS)} are set by the mailbox itself")
    body = encode_body(data, info, tags)  # with the tags last, if any
    return body[:-2] + b"," if tags else body[:-1] + b',"tags":{'


def id_of(body: bytes) -> str:
    """The id of a message as clients get it; '' for a publication without one."""
    start = body.rfind(b',"deliveries":"') - len('"1764000000000-000000"')
    text = str(body[start + 1 : start + 21], "latin-1") if start > 0 else ""
    return text if ID.fullmatch(text) else ""


def is_letter_id(text: object) -> bool:
    """Whether Redis takes it for the id of a letter, and for one behind which others may come."""
    match = LETTER_ID.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return False
    parts = [int(part) for part in match.groups()]
    return max(parts) <= MAX_LETTER_PART and min(parts) < MAX_LETTER_PART


def _receipt(reply: Any, ack: str) -> Receipt | HubError:
    if isinstance(reply, HubError):
        return reply
    what, *rest = reply
    if rest:
        return Receipt(id=str(rest[0], "ascii"), duplicate=what == b"duplicate", ack=ack)
    if what == b"gone":
        return CommandError(errors.BAD_REQUEST, "there is no such dead letter")
    return CommandError(errors.LIMIT_EXCEEDED, FULL[what])


def _contents(messages: int, size: int, in_flight: int, pairs: list[bytes]) -> Contents:
    totals = {str(name, "ascii"): int(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
    return Contents(messages, size, in_flight, totals)


def _letter(entry: bytes, fields: list[bytes]) -> Letter:
    _, channel, _, reason, _, message, _, deliveries, _, body = fields
    # A body that has come to the end of its tags without the two of a delivery.
    publication = orjson.loads(body.removesuffix(b",") + b"}}")
    if not publication["tags"]:
        del publication["tags"]
    place, name, why, message_id = (str(text, "ascii") for text in (entry, channel, reason, message))
    return Letter(place, name, why, message_id, int(deliveries), publication)
