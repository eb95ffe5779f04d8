"""Handover: a client's socket goes to the worker in which its session lives.

Does: pass an open descriptor, with a few words, to another worker of this hub; take those that are passed here.
Does not: know what the client is or speaks, or bring requests and answers (relay).
Called by: worker (builds it), transports.polling.
Never break: a descriptor has one owner. Once `send` has returned it is the other worker's, and ours is closed by
whoever called; one that nobody wants is closed where it arrived.

A WebSocket that is to take over a polling session can be accepted by any worker. Relaying its bytes would cost two
workers for each message ever after; with its descriptor (SCM_RIGHTS, unix(7)) the session's worker has it to itself.
The sockets lie beside the relay's, and each belongs to one generation as those do.
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

from .errors import OwnerFailed, OwnerGone, OwnerSlow
from .relay import SOCKET_MODE, Home, Owner

logger = logging.getLogger(__name__)

MAX_BYTES = 65_536
"""Of the words that go with a descriptor."""
AT_ONCE = 32
"""Taken in one turn of the loop; each is an upgrade's work, some 50 µs."""

Take = Callable[[int, bytes], None]
"""Called with a descriptor, which is the callee's from now on, and its words."""


class Handover:
    """One worker's way to all others of its hub, and theirs to it."""

    def __init__(self, home: Home, owner: Owner) -> None:
        """owner: this worker."""
        self._home = home
        self._owner = owner
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._take: Take | None = None

    def start(self, take: Take) -> None:
        """Be reachable, behind the relay's start, which clears up after a killed worker. Raises OSError."""
        self._take = take
        path = self._path(self._owner)
        os.fchmod(self._sock.fileno(), SOCKET_MODE)
        self._sock.bind(path)
        asyncio.get_running_loop().add_reader(self._sock, self._receive)

    def close(self) -> None:
        """Be gone; what is on its way here is closed with the socket."""
        if self._take is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            with contextlib.suppress(FileNotFoundError):  # the supervisor was quicker to clear up
                os.unlink(self._path(self._owner))
        self._sock.close()

    def send(self, owner: Owner, fd: int, words: bytes) -> None:
        """Pass a descriptor on; the caller closes its own. words: at most MAX_BYTES.

        Raises OwnerGone: there is no such worker. OwnerSlow: too much waits for it. OwnerFailed: too many words.
        """
        if len(words) > MAX_BYTES:
            raise OwnerFailed(f"found {len(words)} bytes beside a descriptor; allowed: {MAX_BYTES}")
        if owner.hub != self._owner.hub:
            raise OwnerGone("the session's hub is not this one, or was restarted")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            self._sock.sendmsg([words], rights, 0, self._path(owner))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS):
                raise OwnerSlow(f"too much waits for worker {owner.slot}") from None
            raise OwnerGone(f"worker {owner.slot} of that generation is gone") from None

    def _path(self, owner: Owner) -> str:
        return self._home.path(owner.slot, owner.generation).removesuffix(".sock") + "-fds.sock"

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
