"""Outbox: what waits to be written to one connection.

Does: keep frames in order; under backlog keep only the newest frame of each `latest` channel, then drop those of `none`
channels, then say that the client is too slow.
Does not: know connections, encode, or touch sockets; the connection takes bytes when its socket takes some.
Called by: connection.
Never break: no call waits or raises; what was taken half is put back in front, byte for byte; a frame is never torn by
another one, and an older value never follows a newer one of its channel.

Most outboxes are empty for all their life: a broadcast is written past them. They fill when the client's own replies
wait for the end of the turn, or when its socket takes no more.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .audience import AudienceMode, replacing


class Verdict(enum.Enum):
    """What became of a frame."""

    QUEUED = "queued"
    CONFLATED = "conflated"
    """It took the place of an older one of its channel."""
    DROPPED = "dropped"
    SLOW = "slow"
    """Nothing was queued: the client has to go."""


QUEUED = Verdict.QUEUED
"""Looked up once, for `put`: of an enum each look-up is a call."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one outbox, in bytes that wait, and in frames. From `conflate_bytes` on `latest` frames are conflated, from
    `drop_bytes` on `none` frames are dropped, beyond `max_bytes` or `max_frames` the client is too slow."""

    conflate_bytes: int
    drop_bytes: int
    max_bytes: int
    max_frames: int


LARGE_PART = 2
"""Of `max_bytes`: a frame of more than half is a large one."""


class Outbox:
    """Frames of one connection in the order they were put."""

    __slots__ = ("_first", "_frames", "_keys", "_large", "_limits", "_newest", "_taken", "size")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._frames: list[bytes] = []
        self._taken = 0
        """What `_large` was before the last `take`, whose rest may be put back."""
        self._large = 0
        """Bytes of a large frame that was put while nothing waited; what comes behind it has the bound for itself."""
        self._first = 0
        """Frames before it have been taken; at most half of the list, and then dropped."""
        self._keys: dict[int, object] | None = None
        """Channel by position, of the `latest` frames; None while there is none."""
        self._newest: dict[object, int] | None = None
        """Position by channel, once conflation has begun; then each channel stands in `_frames` once."""
        self.size = 0
        """Bytes that wait."""

    def put(self, frame: bytes) -> Verdict:
        """Queue one ready-made frame that must not be lost."""
        size = self.size + len(frame)
        # One frame always fits an empty outbox, and does not count against those behind it: a single large message, or
        # all that somebody has missed, says nothing about how fast its reader is.
        if not self.size:
            self._large = len(frame) if len(frame) > self._limits.max_bytes // LARGE_PART else 0
        elif size - self._large > self._limits.max_bytes or len(self._frames) - self._first >= self._limits.max_frames:
            return Verdict.SLOW
        self._frames.append(frame)
        self.size = size
        return QUEUED

    def offer(self, frame: bytes, mode: AudienceMode, channel: object) -> Verdict:
        """Queue a publication's frame by the rules of its channel's mode.

        channel: the same object for the same channel.
        """
        if mode == "latest":
            return self._put_latest(frame, channel)
        if mode == "none" and self.size >= self._limits.drop_bytes:
            return Verdict.DROPPED
        return self.put(frame)

    def put_last(self, frame: bytes) -> None:
        """Queue the connection's last words, over the limit too: nothing comes behind them."""
        if frame:
            self._frames.append(frame)
            self.size += len(frame)

    def take(self, most: int) -> bytes:
        """Whole frames from the front as one piece, about `most` bytes, one frame at least; b'' if nothing waits."""
        frames = self._frames
        self._taken, self._large = self._large, 0
        if self.size <= most:
            data = frames[0] if len(frames) == 1 and not self._first else b"".join(frames[self._first :])
            self.clear()
            return data
        begin = end = self._first
        size = 0
        while size < most:
            size += len(frames[end])
            end += 1
        data = b"".join(frames[begin:end])
        self._first = end
        self.size -= size
        if not self.size:
            self.clear()
        elif end > len(frames) // 2 and end > 1:
            self._compact()
        return data

    def front(self, most: int) -> bytes:
        """The same piece, which goes on waiting until `written` says how much of it has gone; for a socket that may
        take only some of it, so that what it leaves can still be conflated.
        """
        frames, begin = self._frames, self._first
        if self.size <= most:
            return b"".join(frames[begin:])
        end, size = begin, 0
        while size < most:
            size += len(frames[end])
            end += 1
        return b"".join(frames[begin:end])

    def written(self, count: int) -> None:
        """The first `count` bytes that wait have gone; right after `front`. A frame that has begun is not replaced."""
        frames, at = self._frames, self._first
        self.size -= count
        if not self.size:
            self._large = 0
            self.clear()
            return
        while count and count >= len(frames[at]):
            count -= len(frames[at])
            at += 1
        # A large frame is the first one, as nothing waited when it was put.
        left = self._large if at == self._first else 0
        self._first = at
        if count:
            frames[at] = frames[at][count:]
            self._unkey(at)
        self._large = min(left, len(frames[at]))
        if at > len(frames) // 2 and at > 1:
            self._compact()

    def put_back(self, rest: bytes) -> None:
        """Put what the socket did not take in front again; only right after `take`, or while nothing waits."""
        if self._first:
            self._first -= 1
            self._frames[self._first] = rest
            self._unkey(self._first)
        else:
            # Nothing was left behind it, so no position is shifted.
            self._frames.insert(0, rest)
        self.size += len(rest)
        self._large, self._taken = min(self._taken, len(rest)), 0

    def unkey(self, *channels: object) -> None:
        """Channels are left: their values that wait stay as they are, also if one is joined again."""
        if self._keys:
            left = set(channels)
            self._keys = {at: one for at, one in self._keys.items() if one not in left}
        if self._newest:
            for channel in channels:
                self._newest.pop(channel, None)

    def clear(self) -> None:
        """Forget everything that waits."""
        self._frames.clear()
        self._first = 0
        self._keys = self._newest = None
        self.size = 0

    def _compact(self) -> None:
        """Drop what has been taken, but for one place that `put_back` may need. Moves each frame about once."""
        gone = self._first - 1
        del self._frames[:gone]
        self._frames[0] = b""
        self._first = 1
        if self._keys is not None:
            self._keys = {at - gone: channel for at, channel in self._keys.items() if at > gone}
        if self._newest is not None:
            self._newest = {channel: at - gone for channel, at in self._newest.items() if at > gone}

    def _put_latest(self, frame: bytes, channel: object) -> Verdict:
        if self._newest is None and self.size >= self._limits.conflate_bytes:
            self._begin_conflation()
        at = -1 if self._newest is None else self._newest.get(channel, -1)
        if at >= self._first:
            # In its place, not at the end: a symbol that ticks all the time must not starve itself.
            frame = replacing(frame, self._frames[at])
            size = self.size + len(frame) - len(self._frames[at])
            if size > max(self.size, self._limits.max_bytes):
                return Verdict.SLOW
            self.size = size
            self._frames[at] = frame
            return Verdict.CONFLATED
        verdict = self.put(frame)
        if verdict is Verdict.QUEUED:
            self._note(channel, len(self._frames) - 1)
        return verdict

    def _note(self, channel: object, position: int) -> None:
        if self._keys is None:
            self._keys = {}
        self._keys[position] = channel
        if self._newest is not None:
            self._newest[channel] = position

    def _unkey(self, position: int) -> None:
        """What stands there is begun on the wire: nothing may take its place."""
        channel = self._keys.pop(position, None) if self._keys is not None else None
        if channel is not None and self._newest is not None and self._newest.get(channel) == position:
            del self._newest[channel]

    def _begin_conflation(self) -> None:
        """Keep the last of each channel's frames, in its own place."""
        keys = self._keys or {}
        last: dict[object, int] = {}
        for position, channel in keys.items():
            if position >= self._first:
                if channel in last:
                    self._frames[position] = replacing(self._frames[position], self._frames[last[channel]])
                last[channel] = position
        frames: list[bytes] = []
        kept: dict[int, object] = {}
        for position in range(self._first, len(self._frames)):
            channel = keys.get(position)
            if channel is None or last[channel] == position:
                if channel is not None:
                    kept[len(frames)] = channel
                frames.append(self._frames[position])
        self._frames, self._first, self._keys = frames, 0, kept
        self._newest = {channel: position for position, channel in kept.items()}
        self.size = sum(map(len, frames))
