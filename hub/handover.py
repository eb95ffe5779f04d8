"""Handover: a client's socket goes to the worker in which its session lives.

Does: pass an open descriptor, with a few words, to another worker of this hub; take those that are passed here.
Does not: know what the client is or speaks, or bring requests and answers (relay).
Called by: links (builds it, closes), transports.polling.
Never break: a descriptor has one owner. Once `send` has returned it is the other worker's, or on its way, and ours is
closed by whoever called; one that nobody wants is closed where it arrived.

A WebSocket that is to take over a polling session can be accepted by any worker. Relaying its bytes would cost two
workers for each message ever after; with its descriptor (SCM_RIGHTS, unix(7)) the session's worker has it to itself.
The sockets lie beside the relay's, and each belongs to one generation as those do.

A kernel keeps no more than net.unix.max_dgram_qlen descriptors for a worker that has not taken them yet, which may be
10, and thousands of clients upgrade at once after a restart. So what finds a full queue waits here and is tried again.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from .errors import OwnerFailed, OwnerGone, OwnerSlow
from .relay import FDS, SOCKET_MODE, Home, Owner

logger = logging.getLogger(__name__)

MAX_BYTES = 65_536
"""Of the words that go with a descriptor."""
AT_ONCE = 32
"""Taken in one turn of the loop; each is an upgrade's work, some 50 µs."""
MAX_WAITING = 4096
"""Descriptors that wait for a place in other workers' queues; each is of a client that is connected here anyway."""
RETRY_S = 0.002
"""Between two tries: about what it takes a worker to take ten."""
WAIT_S = 5.0
"""So long at most; a client waits longer for its upgrade, and a worker that takes nothing all that time hangs."""
FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS})

Take = Callable[[int, bytes], None]
"""Called with a descriptor, which is the callee's from now on, and its words."""


class _Waiting(NamedTuple):
    """A copy of a descriptor that is still to be passed on, and until when (the loop's time)."""

    owner: Owner
    fd: int
    words: bytes
    until: float


class Handover:
    """One worker's way to all others of its hub, and theirs to it."""

    def __init__(self, home: Home, owner: Owner, kind: str = FDS) -> None:
        """owner: this worker. kind: of what is passed, where there are several ways between the same workers."""
        self._home = home
        self._owner = owner
        self._kind = kind
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._take: Take | None = None
        self._waiting: list[_Waiting] = []
        self._retry: asyncio.TimerHandle | None = None

    def start(self, take: Take) -> None:
        """Be reachable. Raises OSError."""
        self._take = take
        path = self._path(self._owner)
        os.fchmod(self._sock.fileno(), SOCKET_MODE)
        self._sock.bind(path)
        asyncio.get_running_loop().add_reader(self._sock, self._receive)

    def close(self) -> None:
        """Be gone; what is on its way here is closed with the socket, and what waits for others is too."""
        if self._retry is not None:
            self._retry.cancel()
        for one in self._waiting:
            os.close(one.fd)
        self._waiting.clear()
        if self._take is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            with contextlib.suppress(FileNotFoundError):  # the supervisor was quicker to clear up
                os.unlink(self._path(self._owner))
        self._sock.close()

    def send(self, owner: Owner, fd: int, words: bytes) -> None:
        """Pass a descriptor on; the caller closes its own. words: at most MAX_BYTES.

        Raises OwnerGone: there is no such worker. OwnerSlow: too much waits for others. OwnerFailed: too many words.
        Also without, one that waits here is closed if its worker goes meanwhile, or takes nothing for WAIT_S.
        """
        if len(words) > MAX_BYTES:
            raise OwnerFailed(f"found {len(words)} bytes beside a descriptor; allowed: {MAX_BYTES}")
        if owner.hub != self._owner.hub:
            raise OwnerGone("the session's hub is not this one, or was restarted")
        if not self._pass_on(owner, fd, words):
            if len(self._waiting) >= MAX_WAITING:
                raise OwnerSlow(f"too much waits for worker {owner.slot}")
            until = asyncio.get_running_loop().time() + WAIT_S
            self._waiting.append(_Waiting(owner, os.dup(fd), words, until))
            self._try_again_soon()

    def offer(self, owner: Owner, fd: int, words: bytes) -> bool:
        """Pass a descriptor on if the other worker takes it at once; otherwise nothing has happened."""
        try:
            return self._pass_on(owner, fd, words)
        except OwnerGone:
            return False

    @property
    def waiting(self) -> int:
        """Descriptors that wait for a place in a queue."""
        return len(self._waiting)

    def _pass_on(self, owner: Owner, fd: int, words: bytes) -> bool:
        """False: the other worker's queue is full. Raises OwnerGone."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            self._sock.sendmsg([words], rights, 0, self._path(owner))
        except OSError as error:
            if error.errno in FULL:
                return False
            raise OwnerGone(f"worker {owner.slot} of that generation is gone") from None
        return True

    def _try_again_soon(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        """Pass on what waits, in its order, to those who take something again."""
        self._retry = None
        waiting, self._waiting = self._waiting, []
        full: set[Owner] = set()
        now = asyncio.get_running_loop().time()
        for one in waiting:
            if one.owner in full or not self._settles(one, now):
                full.add(one.owner)
                self._waiting.append(one)
        if self._waiting:
            self._try_again_soon()

    def _settles(self, one: _Waiting, now: float) -> bool:
        """Whether one needs to wait no more: it is on its way, or can't be."""
        try:
            if not self._pass_on(one.owner, one.fd, one.words) and now < one.until:
                return False
        except OwnerGone:
            logger.debug("worker %d went before it took a descriptor", one.owner.slot)
        os.close(one.fd)
        return True

    def _path(self, owner: Owner) -> str:
        return self._home.path(owner.slot, owner.generation, self._kind)

    def _receive(self) -> None:
        for _ in range(AT_ONCE):
            try:
                words, fds, _, _ = socket.recv_fds(self._sock, MAX_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                # Without a descriptor left for it, say: the client's connection ends, and it stays with its polls.
                logger.warning("a descriptor from another worker was lost")
                return
            if fds and self._take is not None:
                os.set_inheritable(fds[0], False)  # Python 3.11 passes no MSG_CMSG_CLOEXEC on
                self._take(fds[0], words)
