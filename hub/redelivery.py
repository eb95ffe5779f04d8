"""Redelivery: when the mailboxes of this worker's users are looked at, and what its devices have been sent.

Does: hand a device that has just subscribed what its user has not acknowledged; visit mailboxes in which something is
due, and those of this worker's users after something was missed; know which messages have gone out on which channel, so
that an acknowledgement "up to" one speaks of nothing else.
Does not: touch Redis itself (mailbox does), or decide who may subscribe (session).
Called by: building (builds it, puts it between ingest and fan-out), session (opened), rpc (acknowledge).
Never break: a device gets what is in flight before anything newer, and while Redis does not tell what that is, nothing.

One task for each worker, and no timer for each user: what is due when stands in Redis, so a killed worker's mailboxes
are visited by the others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from . import tasks
from .channels import Channels, Namespace, namespace_of
from .errors import BrokerUnavailable, HubError, raise_if_hopeless
from .log import Brake
from .mailbox import MAX_CLAIMS, Mailboxes, id_of
from .message import Publication

logger = logging.getLogger(__name__)

TICK_S = 0.5
"""Between two looks at what is due: what a redelivery may come late, at 2 commands a second, worker and namespace."""
RETRY_S = 1.0
"""About so long after Redis failed to say what is in flight it is asked again."""
VISITS_AT_ONCE = 256
"""After a lost link, so many mailboxes are visited in one round trip; then others have their turn."""

Deliver = Callable[[list[Publication]], None]


class Device(Protocol):
    """A session that has subscribed to its user's mailbox."""

    def holds(self, channel: str) -> bool:
        """It is subscribed."""

    def push(self, channel: str, body: bytes) -> None:
        """Send this one a publication."""

    def resubscribe(self, channel: str) -> None:
        """Take it out of the channel, and have its client subscribe anew."""


class _Box:
    """A mailbox with devices in this worker."""

    __slots__ = ("devices", "held", "opening", "sent")

    def __init__(self) -> None:
        self.devices: set[Device] = set()
        """Some may have left; those are found out when the next one comes."""
        self.opening: list[Device] = []
        """Those that wait for what is in flight."""
        self.held: list[Publication] = []
        """What came meanwhile; at most twice the window."""
        self.sent: dict[str, None] = {}
        """What all devices here have been sent, by id, in that order."""

    def has_others(self, channel: str, device: Device) -> bool:
        """Whether other devices are inside that don't wait for what is in flight."""
        return any(one.holds(channel) for one in self.devices - {device} if one not in self.opening)


class Redelivery:
    """The mailboxes of one worker's users."""

    def __init__(
        self,
        mailboxes: Mailboxes,
        channels: Channels,
        deliver: Deliver,
        audience_size: Callable[[str], int],
        spread: Callable[[], float] = random.random,
    ) -> None:
        """deliver: what is passed on. audience_size: the fan-out's. spread: from 0 to 1, keeps workers out of step."""
        self._mailboxes = mailboxes
        self._namespaces: Mapping[str, Namespace] = channels.mailboxes()
        self._deliver = deliver
        self._audience_size = audience_size
        self._spread = spread
        self._boxes: dict[str, _Box] = {}
        self._missed: dict[str, None] = {}
        """Mailboxes of which something that was published lately may not have arrived here."""
        self._runner: asyncio.Task[None] | None = None
        self._closing = False
        self._trouble = Brake()

    def start(self) -> None:
        """Look after mailboxes until `close`; nothing where no namespace has any. Again without effect."""
        if self._namespaces and self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    def retune(self, channels: Channels) -> None:
        """Other rules from now on; the first mailboxes need `start`."""
        self._namespaces = channels.mailboxes()

    async def close(self) -> None:
        """Leave the rest to the other workers."""
        self._closing = True
        if self._runner is not None:
            await tasks.end(self._runner)
            self._runner = None

    # What session and rpc call.

    def opened(self, channel: str, namespace: Namespace, device: Device) -> None:
        """A device is in the channel's audience now; right after that, in the same turn."""
        box = self._boxes.get(channel)
        if box is None:
            box = self._boxes[channel] = _Box()
        elif self._audience_size(channel) <= 1:
            # Of what others were sent before it came, this one knows nothing.
            box.sent.clear()
        box.devices = {one for one in box.devices if one.holds(channel)} | {device}
        box.opening.append(device)
        self._open(channel, namespace, box, device)

    def sent_up_to(self, channel: str, last: str) -> list[str]:
        """The ids up to `last` that this worker's devices have been sent on the channel."""
        box = self._boxes.get(channel)
        return [one for one in box.sent if one <= last] if box is not None else []

    def acknowledge(
        self, channel: str, namespace: Namespace, ids: list[str], replied: Callable[[int | HubError], None]
    ) -> None:
        """Take messages out of the mailbox; as `Mailboxes.acknowledge`."""
        self._mailboxes.acknowledge(channel, namespace, ids, partial(self._acknowledged, channel, ids, replied))

    def _acknowledged(
        self, channel: str, ids: list[str], replied: Callable[[int | HubError], None], reply: int | HubError
    ) -> None:
        box = self._boxes.get(channel)
        if box is not None and not isinstance(reply, HubError):
            for one in ids:
                box.sent.pop(one, None)
        replied(reply)

    def _open(self, channel: str, namespace: Namespace, box: _Box, device: Device) -> None:
        self._mailboxes.open(channel, namespace, partial(self._hand_over, channel, namespace, box, device))

    def _hand_over(
        self, channel: str, namespace: Namespace, box: _Box, device: Device, reply: list[bytes] | HubError
    ) -> None:
        still_there = device.holds(channel)
        if isinstance(reply, HubError) and still_there and not self._closing:
            # Without what is in flight it must not get what is newer, so that goes on waiting.
            pause_s = RETRY_S * (0.5 + self._spread())
            asyncio.get_running_loop().call_later(pause_s, self._open, channel, namespace, box, device)
            return
        box.opening.remove(device)
        if not isinstance(reply, HubError) and still_there:
            publications = [Publication(channel, body) for body in reply]
            missed = [one for one in publications if id_of(one.body) not in box.sent]
            for one in publications:
                device.push(channel, one.body)
                self._note(channel, box, one.body)
            if missed and box.has_others(channel, device):
                # They are behind a link that was down meanwhile; now that it counts as sent here, they must have it.
                self._deliver(missed)
        if not box.opening and box.held:
            held, box.held = box.held, []
            for publication in held:
                self._note(channel, box, publication.body)
            self._deliver(held)

    # What the worker calls.

    def check_all(self) -> None:
        """The link to Redis is new, or something did not arrive on it: have what waits sent, soon."""
        self._missed = dict.fromkeys(self._boxes)

    def overloaded(self, channel: str) -> None:
        """The fan-out could not take up a message, and gives this audience no more: its devices have to come anew."""
        box = self._boxes.get(channel)
        if box is not None:
            # Later, as the fan-out is at work now.
            asyncio.get_running_loop().call_soon(self._send_away, channel, box)

    def _send_away(self, channel: str, box: _Box) -> None:
        # What was taken up and not sent is among them, so none of it may count as sent.
        box.sent.clear()
        devices, box.devices = box.devices, set()
        for device in devices:
            if device.holds(channel):
                device.resubscribe(channel)

    # Between ingest and fan-out.

    def deliver(self, publications: list[Publication]) -> None:
        """What came from Redis, on its way to the fan-out; what overtook a device's first messages waits for those."""
        boxes = self._boxes
        if boxes:
            publications = [one for one in publications if one.channel not in boxes or not self._hold(one)]
        if publications:
            self._deliver(publications)

    def _hold(self, publication: Publication) -> bool:
        channel = publication.channel
        box = self._boxes[channel]
        if not box.opening:
            self._note(channel, box, publication.body)
            return False
        box.held.append(publication)
        if len(box.held) > self._most(channel):
            # It is in flight, so it comes again; and nobody here can acknowledge it before.
            del box.held[0]
        return True

    def _note(self, channel: str, box: _Box, body: bytes) -> None:
        if one := id_of(body):
            box.sent.pop(one, None)
            box.sent[one] = None
            # What was acknowledged elsewhere stays here for a while.
            if len(box.sent) > self._most(channel):
                del box.sent[next(iter(box.sent))]

    def _most(self, channel: str) -> int:
        """Of messages that one mailbox may hold here: no more are in flight, but redeliveries bring some twice."""
        return 2 * self._namespaces[namespace_of(channel)].mailbox_window

    # The one task.

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S * (0.5 + self._spread()))
            try:
                self._clear()
                for name, namespace in self._namespaces.items():
                    await self._visit_due(name, namespace)
                await self._visit_missed()
            except BrokerUnavailable as error:
                self._trouble.warning(logger, "redelivery: %s", error)
            except HubError as error:
                logger.debug("redelivery: %s", error)  # too many commands wait; the next tick tries again
            except Exception:
                # A fault of ours in one round must not end redelivery for all users of this worker.
                logger.exception("redelivery: a round failed")

    async def _visit_due(self, name: str, namespace: Namespace) -> None:
        while True:
            claimed = _good(await tasks.reply(partial(self._mailboxes.claim, name)))
            await self._visit([str(channel, "latin-1") for channel in claimed])
            if len(claimed) < MAX_CLAIMS:
                return

    async def _visit_missed(self) -> None:
        """What was published while the link was away may have gone to nobody."""
        missed, self._missed = deque(self._missed), {}
        try:
            while missed:
                batch = [missed.popleft() for _ in range(min(len(missed), VISITS_AT_ONCE))]
                # Later once more; who has left meanwhile will open it.
                self._missed |= dict.fromkeys(one for one in await self._visit(batch) if one in self._boxes)
        except HubError:
            self._missed |= dict.fromkeys([*batch, *missed])
            raise

    async def _visit(self, channels: list[str]) -> list[str]:
        """Returns those with which it failed; raises the error where it did with all, as it does without Redis."""
        # Whoever reaches Redis can write there, so it may be anything.
        known = [channel for channel in channels if namespace_of(channel) in self._namespaces]
        begun = [
            tasks.reply(partial(self._mailboxes.visit, channel, self._namespaces[namespace_of(channel)]))
            for channel in known
        ]
        outcomes = [await answer for answer in begun]
        raise_if_hopeless(outcomes)
        failed = [pair for pair in zip(known, outcomes, strict=True) if isinstance(pair[1], HubError)]
        for channel, error in failed:
            self._trouble.warning(logger, "redelivery: %r: %s", channel, error)
        return [channel for channel, _ in failed]

    def _clear(self) -> None:
        """Forget mailboxes whose devices have all left."""
        for channel in [one for one, box in self._boxes.items() if not box.opening and not self._audience_size(one)]:
            del self._boxes[channel]


def _good(reply: Any) -> Any:
    """Raises what is an error."""
    if isinstance(reply, HubError):
        raise reply
    return reply
