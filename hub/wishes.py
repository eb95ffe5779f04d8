"""Wishes: the words of a subscribe command beyond the channel, and those of its answer.

Does: refuse what a namespace's mode does not have, read the position a client comes back from, write the result.
Does not: subscribe (subscribe) or judge positions (recovery).
Called by: session.
"""

from __future__ import annotations

from typing import Any

from . import errors, protocol
from .channels import Mode
from .errors import CommandError
from .position import MAX_EPOCH_LENGTH, MAX_OFFSET, Position
from .recovery import Joined

UNMET_WISHES: dict[Mode, tuple[str, ...]] = {
    "none": ("recover", "recoverable", "positioned"),
    "stream": (),
    "latest": ("positioned",),
}
"""Options of a subscription that a namespace of this mode, or the hub, doesn't have."""


def check(mode: Mode, params: dict[str, Any]) -> None:
    """Raises CommandError 108 for an option that isn't to be had."""
    for wish in UNMET_WISHES[mode]:
        if params.get(wish):
            raise CommandError(errors.NOT_AVAILABLE, f"{wish} is not available")


def position(params: dict[str, Any]) -> Position:
    """Where a client was. Raises CommandError 107 for what is no position."""
    epoch, offset = params.get("epoch") or "", params.get("offset") or 0
    if not isinstance(epoch, str) or len(epoch) > MAX_EPOCH_LENGTH:
        raise CommandError(errors.BAD_REQUEST, f"epoch: allowed is a text of at most {MAX_EPOCH_LENGTH} characters")
    if type(offset) is not int or not 0 <= offset <= MAX_OFFSET:
        raise CommandError(errors.BAD_REQUEST, f"offset: allowed are whole numbers from 0 to {MAX_OFFSET}")
    return Position(epoch, offset)


def subscribe_result(
    joined: Joined, granted: dict[str, Any] | None = None, ttl_s: int | None = None, device: str = ""
) -> dict[str, Any]:
    """As the protocol's SubscribeResult has it; what is false or empty is left out, as there.

    granted: what a client gets of its wishes, who has some. ttl_s: until its channel token ends, None for never.
    device: what it comes back with as `epoch`, of a channel without positions.
    """
    result: dict[str, Any] = {} if ttl_s is None else {"expires": True, "ttl": ttl_s}
    if granted is not None:
        result["data"] = granted
    if joined.positioned:
        result |= {"positioned": True, "epoch": joined.epoch, "offset": joined.offset}
    elif device:
        result["epoch"] = device
    if joined.recoverable:
        result["recoverable"] = True
    if joined.recovered is not None:
        result |= {"was_recovering": True, "recovered": joined.recovered}
    if joined.publications:
        result["publications"] = protocol.fragments(joined.publications)
    return result
