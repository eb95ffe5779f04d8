"""Publishing: the one door in, for clients, the server API and apps.

Does: check the data's nesting and the tags once, build the body, hand it to the broker.
Does not: check who may publish (session and api do, by `channels`) or how much (the wire and HTTP bound a message's
size), nor talk to Redis (broker).
Called by: session, api.
Never break: what passes here is one line of JSON within the limits, so every later room may trust it.
"""

from __future__ import annotations

from typing import Any

from . import errors
from .broker import Broker, Done
from .channels import Namespace, namespace_of
from .errors import CommandError
from .message import ClientInfo, Publication, encode_body

MAX_TAGS = 32
MAX_TAG_LENGTH = 255


class Publisher:
    """The door of one worker."""

    def __init__(self, broker: Broker, json_depth: int) -> None:
        self._broker = broker
        self._json_depth = json_depth

    def publish(
        self,
        channel: str,
        namespace: Namespace,
        data: Any,
        done: Done,
        info: ClientInfo | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Publish to a channel whose name has been checked; `done` as `Broker.publish` has it.

        data: what orjson.loads gave, nested at most `json_depth` deep; tags: text to text, at most 32.
        Raises CommandError 107 at once for data or tags that can't be published; nothing has happened then.
        """
        if too_deep(data, self._json_depth):
            raise CommandError(errors.BAD_REQUEST, f"data: nested too deep; allowed: {self._json_depth} levels")
        check_tags(tags)
        try:
            body = encode_body(data, info, tags)
        except TypeError as error:  # lone surrogates; orjson takes them in no text
            raise CommandError(errors.BAD_REQUEST, f"data or tags: {error}") from None
        publication = Publication(channel, body)
        self._broker.publish(namespace.mode, namespace_of(channel), [publication], done)


def too_deep(data: Any, most: int) -> bool:
    """Whether arrays and objects in `data` stand in each other more than `most` levels deep."""
    level: list[Any] = [data]
    for _ in range(most + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            else:
                continue
            inner.append(None)  # keeps the level in being for an empty array or object
        if not inner:
            return False
        level = inner
    return True


def check_tags(tags: object) -> None:
    """Raises CommandError 107 unless `tags` is None or a small object of texts."""
    if tags is None:
        return
    if not isinstance(tags, dict) or len(tags) > MAX_TAGS or not all(map(_is_tag, tags.items())):
        detail = f"tags: allowed are at most {MAX_TAGS} texts by name, each up to {MAX_TAG_LENGTH} characters"
        raise CommandError(errors.BAD_REQUEST, detail)


def _is_tag(item: tuple[object, object]) -> bool:
    return all(isinstance(text, str) and len(text) <= MAX_TAG_LENGTH for text in item)
