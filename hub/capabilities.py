"""Capabilities: what a token's claim `caps` allows in which channels, beside the namespaces' rules.

Does: read the claim, find the entry for a channel.
Does not: check tokens (auth) or decide (permissions).
Called by: auth (read), permissions (allows).
Never break: a claim that is not understood wholly is no claim: half of it could allow more than was meant.

    "caps":[{"channels":["news","user:42"],"allow":["sub"]},
            {"channels":["game:*"],"match":"wildcard","allow":["sub","pub","prs","hst"]}]

As in Centrifugo (https://centrifugal.dev/docs/pro/capabilities) the first entry that names a channel is the one that
counts. `*` stands for any characters, none too, and for a ':' as well; nothing else is special. There is no `regex`: a
pattern that takes seconds for one name would stop a whole worker, and whoever makes tokens can list channels.
"""

from __future__ import annotations

from typing import NamedTuple

SUBSCRIBE, PUBLISH, PRESENCE, HISTORY = "sub", "pub", "prs", "hst"
ACTIONS = frozenset({SUBSCRIBE, PUBLISH, PRESENCE, HISTORY})
MAX_ENTRIES = 64
"""Of one token."""
MAX_CHANNELS = 256
"""Of all its entries; each is looked at for each command."""


class Capability(NamedTuple):
    """One entry of the claim."""

    allow: frozenset[str]
    names: frozenset[str]
    patterns: tuple[tuple[str, ...], ...] = ()
    """Each as what stands between its stars: 'game:*' -> ('game:', '')."""

    def covers(self, channel: str) -> bool:
        """Whether this entry names a channel."""
        return channel in self.names or any(matches(pattern, channel) for pattern in self.patterns)


Capabilities = tuple[Capability, ...]


def read(claim: object) -> Capabilities:
    """The claim `caps`. Raises ValueError with what is allowed."""
    if not isinstance(claim, list) or len(claim) > MAX_ENTRIES:
        raise ValueError(f"caps: allowed is a list of at most {MAX_ENTRIES} entries")
    found = tuple(_entry(entry) for entry in claim)
    if sum(len(one.names) + len(one.patterns) for one in found) > MAX_CHANNELS:
        raise ValueError(f"caps: allowed are {MAX_CHANNELS} channels in all")
    return found


def read_actions(claim: object) -> frozenset[str]:
    """A list of what is allowed, such as ["sub","pub"]. Raises ValueError."""
    if not isinstance(claim, list) or not all(isinstance(one, str) and one in ACTIONS for one in claim):
        raise ValueError("allow: allowed is a list of sub, pub, prs and hst")
    return frozenset(claim)


def _entry(entry: object) -> Capability:
    if not isinstance(entry, dict) or not entry.keys() <= {"channels", "match", "allow"}:
        raise ValueError("caps: allowed are objects of channels, match and allow")
    channels, match = entry.get("channels"), entry.get("match") or "exact"
    if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
        raise ValueError("caps: channels: allowed is a list of texts")
    if match not in ("exact", "wildcard"):
        raise ValueError("caps: match: allowed are exact and wildcard")
    allow = read_actions(entry.get("allow"))
    if match == "exact":
        return Capability(allow, frozenset(channels))
    return Capability(allow, frozenset(), tuple(tuple(one.split("*")) for one in dict.fromkeys(channels)))


def matches(pattern: tuple[str, ...], channel: str) -> bool:
    """Whether a name is the pattern's texts with anything between them; in linear time for each text."""
    first, *between = pattern
    if not between:
        return channel == first
    *between, last = between
    if len(channel) < len(first) + len(last) or not channel.startswith(first) or not channel.endswith(last):
        return False
    # The leftmost place for each is right: what is behind it has the most room then.
    at, end = len(first), len(channel) - len(last)
    for text in between:
        at = channel.find(text, at, end)
        if at < 0:
            return False
        at += len(text)
    return True


def allows_all(capabilities: Capabilities, action: str, prefix: str) -> bool:
    """Whether it is allowed in every channel that begins so, whichever there will be."""
    for one in capabilities:
        if any(rest == [""] and prefix.startswith(first) for first, *rest in one.patterns):
            return action in one.allow
        if action not in one.allow and _could_name(one, prefix):
            return False
    return False


def _could_name(one: Capability, prefix: str) -> bool:
    """Whether any channel that begins so is named by this entry; True also where that is not certain."""
    return any(name.startswith(prefix) for name in one.names) or any(
        first.startswith(prefix) or prefix.startswith(first) for first, *_ in one.patterns
    )


def allows(capabilities: Capabilities, action: str, channel: str) -> bool:
    """Whether the first entry that names the channel allows it."""
    for one in capabilities:
        if one.covers(channel):
            return action in one.allow
    return False
