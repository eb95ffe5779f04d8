"""Services: what all sessions of a worker share, on any wire.

Does: hold it together, so that a session gets one thing.
Does not: have behaviour of its own.
Called by: building (builds it), session and its rooms, transports, retune (another one where settings have changed).
Never break: it is never changed: who has begun with one goes on with it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import asking, auth
from .app_gate import Gate
from .channels import Channels
from .ids import ClientIds
from .orders import Sessionless
from .outbox import Limits
from .presence import Presence
from .publish import Publisher
from .quotas import Quotas
from .redelivery import Redelivery
from .remembered import Remembered
from .sections import ClientSettings
from .subscribe import Subscriptions
from .users import Users


@dataclass(frozen=True, slots=True)
class Services:
    """What all sessions of a worker share."""

    client: ClientSettings
    outbox: Limits
    authenticator: auth.Authenticator
    channels: Channels
    publisher: Publisher
    subscriptions: Subscriptions
    presence: Presence
    histories: asking.Histories
    redelivery: Redelivery
    remembered: Remembered
    users: Users = field(default_factory=Users)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    new_id: Callable[[], str] = field(default_factory=ClientIds)
    jitter: Callable[[], float] = random.random
    gate: Gate | None = None
    """Of the application; None: there is none."""
    sessionless: set[Sessionless] = field(default_factory=set)
    """Clients of an application's bare messages, for orders."""
    check_access: Callable[[str, auth.Claims], None] = lambda user, claims: None
    """Whether this user may be here, with the token that it has shown; raises ProtocolError."""
    quotas: Quotas = field(default_factory=Quotas)
    log_addresses: bool = False

    def shown(self, address: str) -> str:
        """An address as the log may have it."""
        return (address or "unix") if self.log_addresses else "-"
