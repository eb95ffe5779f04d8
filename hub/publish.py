"""Publishing: the one door in, for clients, the server API and apps.

Does: check the data's nesting, tags and options once, build the body, hand it to the broker, or to the mailbox; refuse
what would be kept while the store is full.
Does not: check who may publish (session and api do, by `channels`) or how much (the wire and HTTP bound a message's
size), nor talk to Redis (broker).
Called by: session, api.
Never break: what passes here is one line of JSON within the limits, so every later room may trust it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from . import errors, wants
from .broker import Broker, Done, Receipt
from .channels import Namespace, namespace_of
from .errors import CommandError, HubError, StoreFull
from .headroom import Headroom
from .mailbox import Mailboxes, kept
from .message import PLAIN, ClientInfo, Publication, PublishOptions, encode_body
from .nesting import too_deep

MAX_TAGS = 32
MAX_TAG_LENGTH = 255
MAX_KEY_LENGTH = 255
"""Of an idempotency key and of a version's epoch, in characters."""
MAX_VERSION = 2**53 - 1
"""The largest integer that Lua's numbers, which compare versions, hold exactly."""


class Publisher:
    """The door of one worker."""

    def __init__(
        self, broker: Broker, json_depth: int, mailboxes: Mailboxes | None = None, headroom: Headroom | None = None
    ) -> None:
        """mailboxes: needed only where a namespace has them. headroom: None: there always is some."""
        self.headroom = headroom
        self._broker = broker
        self._mailboxes = mailboxes
        self.json_depth = json_depth

    def publish(
        self,
        channel: str,
        namespace: Namespace,
        data: Any,
        done: Done,
        info: ClientInfo | None = None,
        tags: dict[str, str] | None = None,
        options: PublishOptions = PLAIN,
        notice: bytes = b"",
    ) -> None:
        """Publish to a channel whose name has been checked; `done` as `Broker.publish`, or `Mailboxes.put`, has it.

        data: what orjson.loads gave, nested at most `json_depth` deep; tags: text to text, at most 32. notice: as
        `Mailboxes.put` has it; only where the namespace has mailboxes.
        Raises CommandError at once, and nothing has happened then: 107 for data, tags or options out of bounds and
        for a watch list, 108 for options that the namespace's mode has not. Where the store is full `done` hears
        StoreFull of what would be kept; a value of a `latest` channel that has one already, and needs no more room,
        still takes its place.
        """
        if wants.is_watch(channel, namespace):
            raise CommandError(errors.BAD_REQUEST, "channel: a watch list has what its symbols have; publish to those")
        check_options(namespace, options)
        self.check_depth(data)
        check_tags(tags)
        try:
            if namespace.mailbox and self._mailboxes is not None:
                message = kept(data, info, tags)
                if not self._takes(len(message)):
                    self._refuse(done)
                    return
                self._mailboxes.put(channel, namespace, message, done, options.idempotency_key, notice)
                return
            body = encode_body(data, info, tags)
        except TypeError as error:  # lone surrogates; orjson takes them in no text
            raise CommandError(errors.BAD_REQUEST, f"data or tags: {error}") from None
        publication = Publication(channel, body)
        if keeps(namespace, options) and not self._takes(len(body)):
            if namespace.mode == "latest":
                self._broker.publish_known(namespace_of(channel), publication, lambda told: self._told(done, told))
            else:
                self._refuse(done)
            return
        self._broker.publish(namespace, namespace_of(channel), [publication], done, options=options)

    def _takes(self, size: int) -> bool:
        return self.headroom is None or self.headroom.takes(size)

    def _refuse(self, done: Done) -> None:
        assert self.headroom is not None
        error = self.headroom.refuse()
        self._broker.count(error)
        asyncio.get_running_loop().call_soon(done, error)

    def _told(self, done: Done, outcome: Receipt | HubError) -> None:
        """Of a value in a full store."""
        if isinstance(outcome, StoreFull) and self.headroom is not None:
            outcome = self.headroom.refuse()
        done(outcome)

    def check_depth(self, data: Any) -> None:
        """Raises CommandError 107 for data that is nested too deep."""
        if too_deep(data, self.json_depth):
            raise CommandError(errors.BAD_REQUEST, f"data: nested too deep; allowed: {self.json_depth} levels")


def keeps(namespace: Namespace, options: PublishOptions) -> bool:
    """Whether a publication leaves something in the store, be it only its idempotency key."""
    return bool(
        namespace.mode == "latest"
        or (namespace.mode == "stream" and not options.skip_history)
        or options.idempotency_key
    )


def check_options(namespace: Namespace, options: PublishOptions) -> None:
    """Raises CommandError 107 for options out of bounds, 108 for those that the namespace's mode can't keep."""
    if options == PLAIN:
        return
    key, version, version_epoch, skip_history = options
    for name, text in (("idempotency_key", key), ("version_epoch", version_epoch)):
        if not isinstance(text, str) or len(text) > MAX_KEY_LENGTH or not text.isprintable():
            raise CommandError(errors.BAD_REQUEST, f"{name}: allowed are up to {MAX_KEY_LENGTH} printable characters")
    if not _is_version(version):
        raise CommandError(errors.BAD_REQUEST, f"version: allowed is a whole number from 0 to {MAX_VERSION}")
    if not isinstance(skip_history, bool):
        raise CommandError(errors.BAD_REQUEST, "skip_history: allowed are true and false")
    if version and skip_history:
        raise CommandError(
            errors.NOT_AVAILABLE, "version: not with skip_history, as versions are kept with the history"
        )
    if skip_history and namespace.mailbox:
        raise CommandError(errors.NOT_AVAILABLE, "skip_history: not in a mailbox, which keeps every message")
    if skip_history and namespace.mode == "latest":
        raise CommandError(errors.NOT_AVAILABLE, "skip_history: not in mode latest")
    if version and namespace.mode != "stream":
        raise CommandError(errors.NOT_AVAILABLE, f"version: not in mode {namespace.mode}, only in stream")
    if key and namespace.mode == "latest":
        raise CommandError(errors.NOT_AVAILABLE, "idempotency_key: not in mode latest")


def _is_version(version: object) -> bool:
    return isinstance(version, int) and not isinstance(version, bool) and 0 <= version <= MAX_VERSION


def check_tags(tags: object) -> None:
    """Raises CommandError 107 unless `tags` is None or a small object of texts."""
    if tags is None:
        return
    if not isinstance(tags, dict) or len(tags) > MAX_TAGS or not all(map(_is_tag, tags.items())):
        detail = f"tags: allowed are at most {MAX_TAGS} texts by name, each up to {MAX_TAG_LENGTH} characters"
        raise CommandError(errors.BAD_REQUEST, detail)


def _is_tag(item: tuple[object, object]) -> bool:
    return all(isinstance(text, str) and len(text) <= MAX_TAG_LENGTH for text in item)
