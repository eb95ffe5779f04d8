"""TLS: one client's encrypted socket, as the plane reads and writes it; and what is done to either kind.

Does: read and write like os.read and os.write, say what OpenSSL holds that no epoll knows of, end with close_notify.
Does not: choose certificates (certificates), carry out handshakes (tls_handshake), or close the descriptor: that is
its owner's.
Called by: connection, tls_handshake, tls_bridge, httpd.
Never break: what a write did not take comes again first, unchanged: its beginning may be encrypted already. So TLS
connections are never written to past this object; the sweep leaves them to `write`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl

RECORD_BYTES = 16_384
"""The most that one record holds (RFC 8446 §5.1)."""


class TlsSocket:
    """A socket whose handshake is done. Raises BlockingIOError where os.read would, and OSError for all that failed."""

    __slots__ = ("_sock", "fd", "read_needs_write", "write_needs_read")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self.fd = sock.fileno()
        self.read_needs_write = False
        """The last read waits for room to write: the peer has asked for new keys, and is answered first."""
        self.write_needs_read = False
        """The last write waits for the peer's word. Without renegotiation OpenSSL never does, as far as we know."""

    def read(self, most: int) -> bytes:
        """At most `most` bytes; b'' is the end."""
        self.read_needs_write = False
        try:
            return self._sock.recv(most)
        except ssl.SSLZeroReturnError:
            return b""  # said as an error once we have said our own end
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.read_needs_write = True
            raise BlockingIOError from None

    @property
    def pending(self) -> bool:
        """A part of a record is decrypted and not read: the descriptor won't become readable for it."""
        return self._sock.pending() > 0

    def read_pending(self) -> bytes:
        """That part, of RECORD_BYTES at the most."""
        size = self._sock.pending()
        return self.read(size) if size else b""

    def write(self, data: bytes) -> int:
        """How much was taken, which is all of it or whole records."""
        self.write_needs_read = False
        written, size = 0, len(data)
        # One record in a call: of more OpenSSL would take nothing until it has taken all, and so would have to be given
        # all of it again.
        view: bytes | memoryview = data if size <= RECORD_BYTES else memoryview(data)[:RECORD_BYTES]
        while True:
            try:
                written += self._sock.send(view)
            except ssl.SSLWantWriteError:
                return written
            except ssl.SSLWantReadError:
                self.write_needs_read = True
                return written
            if written >= size:
                return written
            view = memoryview(data)[written : written + RECORD_BYTES]

    def say_end(self) -> None:
        """Send close_notify, without which the peer takes the end for one that was forced (RFC 8446 §6.1)."""
        # It has gone, or takes nothing, or there is an unfinished record: then the end is a forced one.
        with contextlib.suppress(OSError, ValueError):
            self._sock.unwrap()

    def leave(self) -> None:
        """The end; the descriptor is open still, and its owner's to close."""
        self.say_end()
        self._sock.detach()

    def abandon(self) -> None:
        """Close the descriptor as well."""
        self.say_end()
        self._sock.close()

    def into_ssl_socket(self) -> ssl.SSLSocket:
        """For Tornado, which has it to itself from now on."""
        return self._sock


Descriptor = int | TlsSocket
"""A client's socket on its way to the plane: the descriptor of a plain one."""


def discard(fd: Descriptor) -> None:
    """Close a client's socket that nobody wants."""
    if isinstance(fd, TlsSocket):
        fd.abandon()
    else:
        os.close(fd)


def shut_down(fd: int) -> None:
    """End our side of a connection, so that the peer reads an end of file behind the last words."""
    sock = socket.socket(fileno=fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the peer was quicker
    finally:
        sock.detach()
