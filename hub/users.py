"""Users: who has connected to this worker.

Does: count sessions and users, and find the sessions of one user, one by its id, or all.
Does not: know who may connect (auth), or other workers' sessions.
Called by: session (enter, leave), worker (counts, and what notices reach), orders.
Never break: a session that has entered leaves once.

The anonymous user '' is nobody in particular, so it counts as sessions and not as a user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .auth import Claims
from .notice import Listener
from .quotas import Closable


class Member(Listener, Protocol):
    """A session, as seen from here."""

    client: str
    user: str

    @property
    def claims(self) -> Claims:
        """Of its token; for as long as it is here these name the same user."""

    @property
    def session_name(self) -> str:
        """Of the HTTP emulation; '' elsewhere."""

    @property
    def kind(self) -> str:
        """Of its wire: 'websocket'."""

    @property
    def socket(self) -> Any:
        """The connection that carries it."""

    def holds(self, channel: str) -> bool:
        """The client is subscribed to it."""


OnChange = Callable[[str, int, Closable | None], None]


def ignore(user: str, count: int, connection: Closable | None) -> None:
    """Nobody wants to know."""


class Users:
    """The sessions of one worker by their user."""

    __slots__ = ("_by_name", "_by_token", "_by_user", "_on_change", "on_enter", "sessions")

    def __init__(self, on_change: OnChange = ignore) -> None:
        """on_change: hears how many sessions a user has now, and of whom has come; None where one has gone."""
        self._on_change = on_change
        self.on_enter: Callable[[Member], None] | None = None
        """Hears of each that has connected, while a trace waits for more of one user."""
        self._by_user: dict[str, Member | set[Member]] = {}
        """Most have one session, which needs no set."""
        self._by_name: dict[str, Member] = {}
        """By client id, and by the name of its session where it has one."""
        self._by_token: dict[str, set[Member]] = {}
        """By the user of their token: those whom an application calls otherwise."""
        self.sessions = 0

    def __len__(self) -> int:
        return len(self._by_user)

    def count(self, user: str) -> int:
        """Sessions of a user; of nobody in particular 0."""
        known = self._by_user.get(user)
        return len(known) if isinstance(known, set) else int(known is not None)

    def counts(self) -> dict[str, int]:
        """Sessions by user, nobody in particular left out."""
        return {user: self.count(user) for user in self._by_user}

    def enter(self, session: Member, connection: Closable | None = None) -> None:
        """It has connected. connection: what can be closed, where its user turns out to have too many."""
        self.sessions += 1
        self._by_name[session.client] = session
        if self.on_enter is not None:
            self.on_enter(session)
        if session.session_name:
            self._by_name[session.session_name] = session
        named = session.claims.user
        if named and named != session.user:
            self._by_token.setdefault(named, set()).add(session)
        if not session.user:
            return
        known = self._by_user.get(session.user)
        if known is None:
            self._by_user[session.user] = session
        elif isinstance(known, set):
            known.add(session)
        else:
            self._by_user[session.user] = {known, session}
        self._on_change(session.user, self.count(session.user), connection)

    def leave(self, session: Member) -> None:
        """The opposite of an `enter` before."""
        self.sessions -= 1
        del self._by_name[session.client]
        if session.session_name:
            del self._by_name[session.session_name]
        named = session.claims.user
        if named and named != session.user:
            self._by_token[named].remove(session)
            if not self._by_token[named]:
                del self._by_token[named]
        if not session.user:
            return
        known = self._by_user[session.user]
        if isinstance(known, set):
            known.remove(session)
        if known is session or not known:
            del self._by_user[session.user]
        self._on_change(session.user, self.count(session.user), None)

    def of(self, user: str, without: str = "") -> Iterator[Member]:
        """The sessions of one user that do not hold the channel `without`."""
        known = self._by_user.get(user)
        sessions = known if isinstance(known, set) else () if known is None else (known,)
        return (session for session in sessions if not session.holds(without))

    def meant(self, user: str) -> Iterator[Member]:
        """The sessions of one user, and those whose token names it while they go by another name."""
        yield from self.of(user)
        yield from self._by_token.get(user, ())

    def find(self, name: str) -> Member | None:
        """The session of one client id, or of this name."""
        return self._by_name.get(name)

    def everybody(self) -> Iterator[Member]:
        """All sessions."""
        # A set of them besides would be some 70 bytes for each.
        return (session for name, session in self._by_name.items() if name == session.client)
