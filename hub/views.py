"""Views: what a subscription with wishes sees of a publication: fewer fields, marks, the name of its watch list.

Does: turn a publication's body into that, for any wire form; say in tags what a value stands for.
Does not: decide who sees what and when (fanout, pace), or read wishes (wishes).
Called by: fanout (encode), outbox (over, of its frames), session through `Views`.
Never break: subscriptions with equal wishes share one View and so their bytes; a body is taken apart once for all views
of the same publication.

With marks, a publication's tags say (all are texts, as tags are):

    merged   values since the one before that are not sent, as this one is newer, here or already at the ticker; "0"
             where every value is
    gap      values that the source has numbered, among all since the one before, and that never came here
    time     the source's time of the value, and
    hub      the hub's when it took it up for this subscription, both in nanoseconds since 1970
    state    "stale": the source has been silent too long; "live": it is heard again. Only when that changes
    repeat   "1": no new value, the last one again, because of `state`

There a publisher's own tags of these names are left out: a mark is the hub's word.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import orjson

from .audience import Group, Mergeable, Numbering, Stand, Update, WireForm

REPEAT = -1
MARKS = ("merged", "gap", "time", "hub", "state", "repeat")


class Marked(Mergeable):
    """A frame with marks."""

    # bytes can't have slots beside its own items.
    view: View
    channel: str
    update: Update

    def over(self, older: bytes) -> bytes:
        """This one instead of both: it stands for what the older one stood for as well."""
        if not isinstance(older, Marked):
            return self
        new, old = self.update, older.update
        state = new.state or old.state
        merged = new.merged + old.merged + 1
        return self.view.encode_update(self.channel, new._replace(merged=merged, gap=new.gap + old.gap, state=state))

    def since(self, stand: Stand) -> bytes:
        """This one for somebody who had been served a part of what it stands for."""
        return self.view.encode_update(self.channel, self.update.since(stand))


class View:
    """How subscriptions with the same wishes see publications, in one wire form."""

    def __init__(
        self,
        form: WireForm,
        shown: str = "",
        fields: tuple[str, ...] = (),
        marks: bool = False,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """shown: the channel that the publication comes on, '' for its own; then its tag `channel` says which that is.

        fields: of data that is an object, only these; () for all.
        """
        self._form = form
        self._shown = shown
        self._fields = fields
        self.marks = marks
        stamp = getattr(form, "stamp", None)
        if stamp is not None:
            self.stamp: Callable[[Group], bytes] = stamp  # a group asks any of its audiences for it
        self._now_ns = now_ns

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        """One value that stands for itself."""
        return self.encode_update(channel, Update(body))

    def encode_update(self, channel: str, update: Update) -> bytes:
        """One value and what it stands for."""
        frame = self._form.encode_publication(self._shown or channel, self.body(channel, update))
        if not self.marks:
            return frame
        marked = Marked(frame)
        marked.view, marked.channel, marked.update = self, channel, update
        return marked

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        return self._form.encode_arrival(self._shown or channel, body)

    def encode_message(self, message: bytes) -> bytes:
        return self._form.encode_message(message)

    def body(self, channel: str, update: Update) -> bytes:
        """The body of the publication that is sent."""
        if not self._fields and not self.marks:
            if not self._shown:
                return update.body
            if b'"tags":' not in update.body:
                # As it is, but for the name: what orjson wrote ends in a brace, and is never empty.
                return b'%b,"tags":{"channel":"%b"}}' % (update.body[:-1], channel.encode())
        publication = dict(parsed(update.body))
        data = publication.get("data")
        tags = dict(publication.get("tags", {}))
        if self.marks:
            for name in MARKS:
                tags.pop(name, None)
            tags |= self._tags(data, update)
        if self._shown:
            tags["channel"] = channel
        if tags:
            publication["tags"] = tags
        if self._fields and isinstance(data, dict):
            publication["data"] = {name: data[name] for name in self._fields if name in data}
        return orjson.dumps(publication)

    def _tags(self, data: Any, update: Update) -> dict[str, str]:
        tags = {"merged": str(max(0, update.merged)), "hub": str(self._now_ns())}
        source_ns = data.get("time_ns") if isinstance(data, dict) else None
        if isinstance(source_ns, str):
            tags["time"] = source_ns
        if update.gap:
            tags["gap"] = str(update.gap)
        if update.state:
            tags["state"] = update.state
        if update.merged == REPEAT:
            tags["repeat"] = "1"
        return tags


class Views:
    """The views of one worker that somebody has."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._views: WeakValueDictionary[tuple[WireForm, str, tuple[str, ...], bool], View] = WeakValueDictionary()
        self._now_ns = now_ns

    def __len__(self) -> int:
        return len(self._views)

    def of(self, form: WireForm, shown: str = "", fields: tuple[str, ...] = (), marks: bool = False) -> View:
        """The one view of these wishes. fields: in any order, each once."""
        key = (form, shown, tuple(sorted(fields)), marks)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = View(form, shown, key[2], marks, self._now_ns)
        return view


class _Last:
    """The body that was taken apart last."""

    body = b""
    publication: dict[str, Any] = {}  # noqa: RUF012  # replaced as a whole, and never written into


def parsed(body: bytes) -> dict[str, Any]:
    """A body as an object, which nobody may change: views of the same publication come one after the other."""
    if body is not _Last.body:
        _Last.publication = _taken_apart(body)
        _Last.body = body
    return _Last.publication


def _taken_apart(body: bytes) -> dict[str, Any]:
    # Whoever reaches Redis can write anything there. An exception here, in the middle of a batch or of a moment, would
    # cost others their values; so what is wrong is left out.
    try:
        publication = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(publication, dict):
        return {}
    if not isinstance(publication.get("tags", {}), dict):
        del publication["tags"]
    return publication


def numbering(body: bytes) -> Numbering:
    """What `seq`, `merged` and `era` of a value's data say, as ticks have them; 0 for what is not there."""
    data = parsed(body).get("data")
    if not isinstance(data, dict):
        return NOWHERE
    return Numbering(_whole(data.get("seq")), _whole(data.get("merged")), _whole(data.get("era")))


NOWHERE = Numbering()


def _whole(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
