"""Pages: the history of a channel as clients and backends ask for it, in Centrifugo's words.

Does: check a request's `limit`, `since` and `reverse`, read the page, write it as the protocol has it.
Does not: know who may ask (session and api do), sockets or Redis (history).
Called by: api, and asking for clients.
Never break: `since` is a position of the channel as it is now, or the answer is error 112.

What lies behind `since` may have been trimmed, as with Centrifugo; then the first publication's offset says so. A page
ends early, with one publication at least, where more would be too many bytes; then its last offset is not yet `offset`:

    {"limit":2,"since":{"offset":17,"epoch":"4.k3"}} -> {"publications":[{"offset":18,…},…],"offset":40,"epoch":"4.k3"}
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import orjson

from . import errors
from .channels import Namespace
from .errors import BrokerUnavailable, CommandError
from .history import ALL, Asked, History, Page
from .position import MAX_EPOCH_LENGTH, MAX_OFFSET, Position, survives


class Wanted(NamedTuple):
    """One request, checked; see `History.read`."""

    since: Position | None
    limit: int
    reverse: bool


def wanted(params: dict[str, Any], most: int) -> Wanted:
    """What a request asks for. most: publications in one page; a larger limit, and -1 for all, becomes that.

    Raises CommandError 107, naming what is allowed.
    """
    limit, since, reverse = params.get("limit"), params.get("since"), params.get("reverse")
    limit = 0 if limit is None else limit
    if not _is_whole(limit) or limit < ALL:
        raise CommandError(errors.BAD_REQUEST, "limit: allowed is a whole number, 0 for the position only, -1 for all")
    if not isinstance(reverse, bool | None):
        raise CommandError(errors.BAD_REQUEST, "reverse: allowed are true and false")
    return Wanted(_position(since), most if limit == ALL else min(limit, most), bool(reverse))


async def read(history: History, channel: str, rules: Namespace, request: Wanted, most_bytes: int) -> Page:
    """The page that was asked for, of a channel whose name has been checked. most_bytes: of its publications.

    Raises CommandError 108 where nothing is kept, 112 where `since` is not a position of the channel as it is now;
    BrokerUnavailable.
    """
    check_kept(rules)
    since, limit, reverse = request
    offset = None if since is None else since.offset
    (page,) = await history.read_many([Asked(channel, rules, offset, limit, reverse, most_bytes)])
    if isinstance(page, BrokerUnavailable):
        raise page
    return judged(page, request)


def judged(page: Page, request: Wanted) -> Page:
    """The answer of a read, oldest first, in the order that was asked for. Raises CommandError 112, as `read`."""
    if request.since is not None and not survives(request.since, page.epoch, page.offset):
        raise CommandError(errors.UNRECOVERABLE_POSITION)
    return page._replace(publications=page.publications[::-1]) if request.reverse else page


def check_kept(rules: Namespace) -> None:
    """Raises CommandError 108 where nothing is kept."""
    if rules.mode != "stream":
        raise CommandError(errors.NOT_AVAILABLE, f"history: not in mode {rules.mode}, only in stream")


def body(page: Page) -> dict[str, Any]:
    """A page as JSON to be, for orjson: the publications are the bytes that went to the subscribers."""
    publications = [orjson.Fragment(publication) for _, publication in page.publications]
    return {"publications": publications, "offset": page.offset, "epoch": page.epoch}


def _position(since: object) -> Position | None:
    if since is None:
        return None
    if isinstance(since, dict):
        offset, epoch = since.get("offset", 0), since.get("epoch", "")
        if (
            _is_whole(offset)
            and 0 <= offset <= MAX_OFFSET
            and isinstance(epoch, str)
            and len(epoch) <= MAX_EPOCH_LENGTH
        ):
            return Position(epoch, offset)
    raise CommandError(
        errors.BAD_REQUEST, f"since: allowed are offset, 0 to {MAX_OFFSET}, and epoch, a text up to {MAX_EPOCH_LENGTH}"
    )


def _is_whole(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool)
