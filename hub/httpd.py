"""HTTP: Tornado's server with deadlines and sizes of our own, and what all our answers have in common.

Does: accept HTTP on the inherited listeners, answer what is no endpoint.
Does not: know files (assets), the API (api) or the wires (transports), whose routes are handed in. What a head must
look like is judged by heads.
Called by: doors (Server, application); whoever answers requests derives from Handler.
Never break: no default of Tornado's bounds a client here (3600 s for a head, 100 MB for a body, none for a body's
time or for reading the answer), and no head reaches Tornado that heads has not judged.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
import ssl
from collections.abc import Awaitable
from functools import lru_cache, partial
from http.client import responses
from typing import Any, cast

from tornado import httputil, iostream, web
from tornado.http1connection import (
    HTTP1Connection,
    HTTP1ConnectionParameters,
    HTTP1ServerConnection,
)
from tornado.httpserver import HTTPServer, _HTTPRequestContext
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError

from . import heads
from .handshake import Bounds, Refusal
from .quotas import NOWHERE, Place
from .sections import HttpSettings
from .tls import TlsSocket, shut_down

logger = logging.getLogger(__name__)

Routes = list[tuple[str, type[web.RequestHandler], dict[str, Any]]]
CHUNK_BYTES = 4096
"""Tornado allocates this much for each attempt to read; its own 64 KiB costs more than parsing a small request."""
END_GRACE_S = 0.1
"""For the answer to a client that has ended its side behind its request: what can be answered at once is."""
LINGER_S = 1.0
"""For what a client goes on sending behind a head that was refused: unread, it would make a reset of our answer."""
SHORTEST_S = 0.1
"""Tornado would take a deadline of 0 for none."""


@lru_cache(16)
def _head_or_too_much(most_bytes: int) -> bytes:
    """Regular expression: a head and its end, however wrongly that is written, or as many bytes as a head may have."""
    return rb"\A(?s:.{0,%d}?\n\r?\n|.{%d})" % (most_bytes - 3, most_bytes)


@lru_cache(4)
def _line_or_too_much(most_bytes: int) -> bytes:
    """Regular expression: a line, with CRLF or LF, or as many bytes as it may have."""
    return rb"\A(?s:.{0,%d}?\n|.{%d})" % (most_bytes - 1, most_bytes)


class HeadStream(IOStream):
    """A stream on which a head that is too long can still be answered: Tornado closes the connection there."""

    place: Place = NOWHERE
    """Left when it is closed, or when somebody takes its socket away."""
    _wakes_at = 1

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        """What Tornado reads bodies with: whoever sends one byte by byte wakes nobody before a whole piece is there.

        A coroutine goes on with each piece: 500 clients who send two bytes each took 45 ms of the loop.
        """
        read = super().read_bytes(num_bytes, partial)
        self.wake_at(num_bytes if partial and not read.done() else 1)  # type: ignore[attr-defined]
        return read

    async def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> bytes:
        """What Tornado reads the sizes of chunks with, and nothing else. Raises HTTPInputError for a line that is too
        long or ends with a bare LF: Tornado closes the connection there, or waits for CRLF in what comes behind it.
        """
        assert max_bytes is not None
        self.wake_at(1)
        line = await super().read_until_regex(_line_or_too_much(max_bytes), max_bytes)
        if not line.endswith(delimiter):
            raise httputil.HTTPInputError("the size of a chunk does not end with CRLF")
        return line

    def wake_at(self, size: int) -> None:
        """Be readable with so many bytes, or the end."""
        if size != self._wakes_at and self.socket is not None:
            self._wakes_at = size
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def close_fd(self) -> None:
        super().close_fd()
        self.place.leave()

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """What Tornado reads heads with, and nothing else; also returns what is too long, for heads to judge."""
        assert max_bytes is not None
        self.wake_at(1)
        return super().read_until_regex(_head_or_too_much(max_bytes), max_bytes)


class Stream(HeadStream):
    """A client's connection; it may end its side behind a request (RFC 9112 §9.6) and still gets an immediate answer.

    Tornado takes the end of file for the end of the connection, before the request's handler has run. Here that is so
    for whoever is still waiting after END_GRACE_S. `_state` is no documented API: a test holds it to every version.
    """

    _ended = False

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        size = super().read_from_fd(buf)
        if size != 0 or self.reading():
            return size
        if not self._ended:
            self._ended = True
            self.io_loop.add_callback(self._look_away)
            self.io_loop.call_later(END_GRACE_S, self._end)
        return None

    def _look_away(self) -> None:
        # The end stays readable, and the loop would spin on it. What is written can add the descriptor again.
        if self.socket is not None and not self.closed() and not self.writing():
            self.io_loop.remove_handler(self.socket)
            self._state = None

    def _end(self) -> None:
        if self.socket is None:
            return  # detached
        if self.writing():
            self.io_loop.call_later(END_GRACE_S, self._end)
        else:
            self.close()


class TlsStream(Stream):
    """The same over TLS, whose handshake is done: Tornado's own, SSLIOStream, would begin with one."""

    def __init__(self, sock: ssl.SSLSocket, early: bytes, **options: Any) -> None:
        """early: what was read already. Private names as in `websocket.leave_tornado`, and tested with those."""
        super().__init__(sock, **options)
        self._read_buffer += early
        self._read_buffer_size = len(early)

    def wake_at(self, size: int) -> None:
        """Never but at once: how many bytes are still to come is not known of what is encrypted."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return super().read_from_fd(buf)
        except ssl.SSLZeroReturnError:
            return 0  # the end, which is an error once we have said our own
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def write_to_fd(self, data: memoryview) -> int:
        try:
            return super().write_to_fd(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        finally:
            del data  # as in IOStream: an error's traceback would keep the buffer from being moved

    def _is_connreset(self, e: BaseException) -> bool:
        # Whatever a client sends that is no TLS is its own doing, and no line in the log.
        return isinstance(e, ssl.SSLError) or super()._is_connreset(e)

    @property
    def secure(self) -> ssl.SSLSocket:
        return cast("ssl.SSLSocket", self.socket)

    def close_fd(self) -> None:
        TlsSocket(self.secure).abandon()
        self.socket = None  # type: ignore[assignment]
        self.place.leave()


class Server(HTTPServer):
    """HTTP/1 with one deadline for a connection's first head and another for silence between its requests."""

    def initialize(self, request_callback: Any, settings: HttpSettings) -> None:  # type: ignore[override]
        super().initialize(
            request_callback,
            chunk_size=CHUNK_BYTES,
            max_header_size=settings.header_bytes,
            max_body_size=settings.body_bytes,
            max_buffer_size=settings.header_bytes + settings.body_bytes,
            idle_connection_timeout=settings.header_timeout_s,
            body_timeout=settings.body_timeout_s,
        )
        self._begin_with(settings)

    def _begin_with(self, settings: HttpSettings) -> None:
        self._next_request = copy.copy(self.conn_params)
        self._next_request.header_timeout = settings.idle_timeout_s
        self._settings = settings
        self.bounds = Bounds(settings.header_bytes, settings.header_fields, settings.query_fields)
        """Of heads that are read in place, before anything is served here."""

    @property
    def kept(self) -> int:
        """Connections that there are, idle ones too."""
        return len(self._connections)

    def retire(self) -> None:
        """Say `Connection: close` with each answer from now on: the next request is for whoever accepts then."""
        self.conn_params.no_keep_alive = self._next_request.no_keep_alive = True
        for connection in self._connections:
            cast("_Exchanges", connection).last()

    def retune(self, settings: HttpSettings) -> None:
        """Other limits, for connections that come from now on."""
        self.conn_params = copy.copy(self.conn_params)
        self.conn_params.max_header_size = settings.header_bytes
        self.conn_params.max_body_size = settings.body_bytes
        self.conn_params.header_timeout = settings.header_timeout_s
        self.conn_params.body_timeout = settings.body_timeout_s
        self.max_buffer_size = settings.header_bytes + settings.body_bytes
        self._begin_with(settings)

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        # Tornado has one time for both; it reads `params` anew for each request of a connection.
        server_conn.params = self._next_request  # type: ignore[attr-defined]
        return super().start_request(server_conn, request_conn)

    def take(self, stream: HeadStream, address: object, head_timeout_s: float) -> None:
        """Serve a connection whose first head may take `head_timeout_s` more: some of its time was spent before."""
        params = copy.copy(self.conn_params)
        params.header_timeout = max(head_timeout_s, SHORTEST_S)
        # As HTTPServer.handle_stream does it, with parameters of this connection's own.
        protocol = "https" if isinstance(stream, TlsStream) else "http"
        context = _HTTPRequestContext(stream, address, protocol, self.trusted_downstream)  # type: ignore[arg-type]
        connection = _Exchanges(stream, params, context, self._settings)
        self._connections.add(connection)
        connection.start_serving(self)


class _Exchanges(HTTP1ServerConnection):
    """One connection's requests, one behind the other."""

    def __init__(
        self, stream: HeadStream, params: HTTP1ConnectionParameters, context: object, settings: HttpSettings
    ) -> None:
        super().__init__(stream, params, context)
        self._settings = settings
        self._exchange: _Exchange | None = None

    def last(self) -> None:
        """The request that is being answered is this connection's last one, if the answer's head is not written yet."""
        if self._exchange is not None:
            self._exchange.last()

    async def _server_request_loop(self, delegate: httputil.HTTPServerConnectionDelegate) -> None:
        # Tornado's own loop, with exchanges of ours.
        goes_on = True
        try:
            while goes_on:
                exchange = self._exchange = _Exchange(self.stream, self.params, self.context, self._settings)
                try:
                    goes_on = await exchange.read_response(delegate.start_request(self, exchange))
                except (StreamClosedError, iostream.UnsatisfiableReadError, asyncio.CancelledError):
                    return
                except Exception:
                    # The border of one connection: a fault of ours ends it, with a trace, and no other.
                    logger.exception("an HTTP connection failed")
                    exchange.close()
                    return
                await asyncio.sleep(0)
        finally:
            delegate.on_close(self)


class _Refused(Exception):
    """The request is not looked at; the connection ends with the answer."""

    def __init__(self, refusal: heads.Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class _Exchange(HTTP1Connection):
    """One request and its answer, each in its time. The methods that begin with _ are Tornado's; tests hold them."""

    def __init__(
        self, stream: IOStream, params: HTTP1ConnectionParameters, context: object, settings: HttpSettings
    ) -> None:
        super().__init__(stream, False, params, context)
        self._answer_timeout_s = settings.answer_timeout_s
        self._limits = heads.Limits(settings.body_bytes, settings.header_fields, settings.query_fields)

    def last(self) -> None:
        """Have the answer say `Connection: close`."""
        self._disconnect_on_finish = True

    async def _read_message(self, delegate: httputil.HTTPMessageDelegate) -> bool:
        try:
            return await super()._read_message(delegate)
        except _Refused as refused:
            logger.debug("a request was refused: %s", refused)
            await _turn_away(self.detach(), refused.refusal.answer())
            return False

    def _parse_headers(self, data: bytes) -> tuple[str, httputil.HTTPHeaders]:
        refusal = heads.judge(data, self._limits)
        if refusal is not None:
            raise _Refused(refusal)
        return super()._parse_headers(data)

    async def _read_fixed_body(self, content_length: int, delegate: httputil.HTTPMessageDelegate) -> None:
        try:
            await super()._read_fixed_body(content_length, delegate)
        finally:
            if isinstance(self.stream, HeadStream):  # it may be somebody else's behind the request
                self.stream.wake_at(1)

    async def _read_chunked_body(self, delegate: httputil.HTTPMessageDelegate) -> None:
        try:
            await super()._read_chunked_body(delegate)
        except httputil.HTTPInputError as fault:
            raise _Refused(heads.TOO_LARGE if "too large" in str(fault) else heads.BAD_CHUNKS) from None

    def finish(self) -> None:
        """The answer is whole: from here on the client has `answer_timeout_s` to read it."""
        super().finish()
        written = self._pending_write
        if written is None or written.done() or self.stream is None:
            return
        deadline = self.stream.io_loop.call_later(self._answer_timeout_s, self.close)
        written.add_done_callback(partial(_cancel, self.stream.io_loop, deadline))


def _cancel(loop: IOLoop, deadline: object, _: object) -> None:
    loop.remove_timeout(deadline)


async def _turn_away(stream: IOStream, answer: bytes) -> None:
    try:
        async with asyncio.timeout(LINGER_S):
            await stream.write(answer)
            _end_writing(stream)
            while True:
                await stream.read_bytes(CHUNK_BYTES, partial=True)
    except (TimeoutError, StreamClosedError, OSError):
        pass  # it has gone, or has had its time
    finally:
        stream.close()


def _end_writing(stream: IOStream) -> None:
    """Say that nothing more comes; what comes can still be read. Raises OSError."""
    if isinstance(stream, TlsStream):
        # shutdown() would have the SSLSocket forget that it speaks TLS.
        TlsSocket(stream.secure).say_end()
        shut_down(stream.secure.fileno())
    else:
        stream.socket.shutdown(socket.SHUT_WR)


class Handler(web.RequestHandler):
    """Answers in plain text, one line; never repeats what the client sent."""

    def set_default_headers(self) -> None:
        self.set_header("Server", "hub")
        # Whatever is meant for all says otherwise: a CDN would keep a 404, say, for minutes.
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:  # RFC 9110 §15.5.6
            unknown = web.RequestHandler._unimplemented_method
            known = [name for name in self.SUPPORTED_METHODS if getattr(type(self), name.lower()) is not unknown]
            self.set_header("Allow", ", ".join(known))
        self.plain(status_code, responses.get(status_code, "error"))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """As Tornado does it, but without the query, which may carry a token, and nothing louder for bad requests."""
        if isinstance(value, web.HTTPError):
            logger.debug("%s %s: %d", self.request.method, self.request.path, value.status_code)
        else:
            logger.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))

    @property
    def peer(self) -> object:
        """Who is at the other end of the connection, as `socket.accept` has it; perhaps a proxy."""
        return getattr(getattr(self.request.connection, "context", None), "address", None)

    @property
    def secure(self) -> bool:
        """It came by a TLS listener of ours. What a proxy says of itself is not looked at."""
        return self.request.protocol == "https"

    def turn_away(self, refusal: Refusal) -> None:
        """Finish with why the request is refused."""
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        self.plain(refusal.status, refusal.text)

    def plain(self, status: int, text: str) -> None:
        """Finish with one line of text."""
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(text + "\n")


class NotFound(Handler):
    """Every address that is no endpoint."""

    def prepare(self) -> None:
        self.plain(404, "no such address; clients connect to /connection/websocket")


def application(routes: Routes) -> web.Application:
    """Tornado's application for a list of routes; everything else is a 404."""
    return web.Application(list(routes), default_handler_class=NotFound, log_function=_log_request)


def _log_request(handler: web.RequestHandler) -> None:
    # The path without its query, which may carry a token. Debug: a client must not be able to fill the log.
    if logger.isEnabledFor(logging.DEBUG):
        request = handler.request
        logger.debug(
            "%s %s %d %.1f ms", request.method, request.path, handler.get_status(), request.request_time() * 1e3
        )
