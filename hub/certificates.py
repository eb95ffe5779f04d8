"""Certificates: from pairs of files to what a handshake needs, also when the files change.

Does: read and check certificates and keys, choose one by the name that the client asks for (SNI), load what has been
renewed, and keep what there is where that is no good.
Does not: carry out handshakes (tls_handshake), or know who listens where (listeners).
Called by: serve (before the workers are forked, so that one that is forked later has what the hub was started with),
worker (`watch`), tls_handshake (`context`).
Never break: a connection keeps the keys that it began with; while the hub runs, no mistake in a file ends anything.

TLS 1.2 with forward secrecy and AEAD (RFC 7540's list is longer; nothing from after 2014 needs more), and TLS 1.3. No
compression (CRIME), no renegotiation, ALPN http/1.1. No TLS 1.3 session tickets: only the worker that made one could
use it. A ticket of TLS 1.2 is as safe as the key in its context, so a context is renewed after RENEW_S at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from .errors import ConfigError
from .secret_files import check_private, read_regular

logger = logging.getLogger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all good."""
ALPN = ["http/1.1"]
RENEW_S = 86_400.0
SOON_S = 7 * 86_400.0
"""A certificate that ends within so long is worth a line when it is loaded."""
MAX_FILE_BYTES = 1_048_576


class Pair(NamedTuple):
    """Where a certificate with its chain, and its key, are: PEM files."""

    cert: str
    key: str


class NotYetValid(ConfigError):
    """A certificate that is good from `begins_at` on, in seconds since 1970."""

    def __init__(self, begins_at: float, text: str) -> None:
        super().__init__(text)
        self.begins_at = begins_at


Mark = tuple[int, int, int]
"""Of a file: changed when, its inode, its size."""
Marks = tuple[Mark | None, ...]


class Contents(NamedTuple):
    """What the files of some pairs held at one moment, read by `read_contents`; another process can load it."""

    files: Mapping[str, bytes]
    marks: Marks


class Loaded(NamedTuple):
    """What `Certificates.take` puts in the place of what there is."""

    pairs: tuple[Pair, ...]
    marks: Marks
    names: dict[str, ssl.SSLContext]
    context: ssl.SSLContext
    ends_at: float


class Certificates:
    """What a hub presents. `context` is the one to begin handshakes with; the first pair's is for all other names.

    ends_at: when the first of them ends, in seconds since 1970.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        contents: Contents | None = None,
    ) -> None:
        """contents: of pairs that were checked when they were read, by `read_contents`; None: the files of now.

        Raises ConfigError with a line for each pair that is no good.
        """
        self._pairs = tuple(pairs)
        self._clock = clock
        self._wall_clock = wall_clock
        self._marks = _stat(self._pairs) if contents is None else contents.marks
        self._loaded_at = clock()
        self._begins_at = inf
        """When one that is not valid yet will be, in seconds since 1970; the first of them that has failed to load."""
        # Of old contexts nobody asks any more, but for handshakes under way, for which the new names are as good.
        self._names, self.context, self.ends_at = self._load(self._pairs, contents)
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, period_s: float) -> None:
        """Look after the files every so often, on this worker's loop; again for another period."""
        self.close()
        self._timer = asyncio.get_running_loop().call_later(period_s, self._look_again, period_s)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_again(self, period_s: float) -> None:
        self.watch(period_s)
        self.refresh()

    def refresh(self) -> None:
        """Load what has changed; if it is no good, one line says so, and everything stays as it is."""
        marks = _stat(self._pairs)
        begun = self._wall_clock() >= self._begins_at
        changed = marks != self._marks or begun
        if not changed and self._clock() - self._loaded_at < RENEW_S:
            return
        # Also where it fails: the next try is worth it once a file is another one, or has become valid.
        self._marks, self._loaded_at = marks, self._clock()
        try:
            self._names, self.context, self.ends_at = self._load(self._pairs)
        except ConfigError as error:
            logger.error("certificates stay as they were: %s", "; ".join(str(error).splitlines()))
            return
        if changed:
            logger.info("certificates were loaded anew")

    def prepare(self, pairs: Sequence[Pair], contents: Contents) -> Loaded:
        """Make what `take` needs, of pairs that were checked when their contents were read. Raises ConfigError."""
        return Loaded(tuple(pairs), contents.marks, *self._load(tuple(pairs), contents))

    def take(self, loaded: Loaded) -> None:
        """Present this from the next handshake on."""
        self._pairs, self._marks, self._names, self.context, self.ends_at = loaded
        self._loaded_at, self._begins_at = self._clock(), inf

    def _load(
        self, pairs: tuple[Pair, ...], contents: Contents | None = None
    ) -> tuple[dict[str, ssl.SSLContext], ssl.SSLContext, float]:
        names: dict[str, ssl.SSLContext] = {}
        contexts, ends, lines = [], [], []
        begins_at = inf
        for number, pair in enumerate(pairs):
            key = f"tls.certificates[{number}]"
            try:
                if contents is None:
                    _check_pair(key, pair, self._wall_clock())
                    context, found, ends_at = _load_pair(key, pair)
                else:
                    context, found, ends_at = _load_contents(key, pair, contents.files)
            except ConfigError as error:
                if isinstance(error, NotYetValid):
                    begins_at = min(begins_at, error.begins_at)
                lines.append(str(error))
                continue
            contexts.append(context)
            ends.append(ends_at)
            for name in found:
                names.setdefault(name, context)
        if contents is None:
            # Of what only another process could read, nothing can be tried again here.
            self._begins_at = begins_at
        if lines:
            raise ConfigError("\n".join(lines))
        contexts[0].sni_callback = self._choose
        return names, contexts[0], min(ends)

    def _choose(self, sock: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        """What OpenSSL calls with the name in the client's hello (RFC 6066 §3); None where it asks for none."""
        asked = (name or "").lower()
        chosen = self._names.get(asked) or self._names.get("*." + asked.partition(".")[2])
        if chosen is not None and chosen is not context:
            sock.context = chosen


def read_contents(pairs: Sequence[Pair]) -> Contents:
    """The files of these pairs, for `prepare` in another process. Raises ConfigError."""
    # Marked before they are read: what changes meanwhile is then found changed.
    marks, files = _stat(pairs), {}
    for number, pair in enumerate(pairs):
        for name, path in zip(Pair._fields, pair, strict=True):
            files[path] = _read_file(f"tls.certificates[{number}].{name}", path)
    return Contents(files, marks)


def _check_pair(key: str, pair: Pair, now: float) -> None:
    """Raises ConfigError."""
    check_private(f"{key}.key", Path(pair.key))
    _check_time(f"{key}.cert", pair.cert, _parse(f"{key}.cert", pair.cert, _read_file(f"{key}.cert", pair.cert)), now)


def _load_contents(key: str, pair: Pair, files: Mapping[str, bytes]) -> tuple[ssl.SSLContext, list[str], float]:
    """Likewise, of files that have been read."""
    with contextlib.ExitStack() as stack:
        paths = []
        for path in pair:
            # OpenSSL takes a chain and a key from files only; these have no name, and are gone once they are loaded.
            fd = os.memfd_create("pem", os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            with open(fd, "wb", closefd=False) as file:
                file.write(files[path])
            paths.append(f"/proc/self/fd/{fd}")
        return _load_pair(key, Pair(*paths))


def _load_pair(key: str, pair: Pair) -> tuple[ssl.SSLContext, list[str], float]:
    """A context, the names that it is for, in lower case, such as '*.example.com', and its end, in seconds since 1970.

    Raises ConfigError.
    """
    certificate = _parse(f"{key}.cert", pair.cert, _read_file(f"{key}.cert", pair.cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(ALPN)
    try:
        # Without `password` OpenSSL would ask for it at the terminal.
        context.load_cert_chain(pair.cert, pair.key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            found, allowed = f"{pair.key}, of another certificate", f"the key of {pair.cert}"
        else:
            found, allowed = f"{pair.key}, which OpenSSL can't use with it", "a private key in PEM without a passphrase"
        raise ConfigError(f"{key}.key: found {found}; allowed: {allowed}") from None
    except OSError as error:
        raise ConfigError(f"{key}: found {error.strerror or error}; allowed: two PEM files that can be read") from None
    return context, _names(certificate), certificate.not_valid_after_utc.timestamp()


def _read_file(key: str, path: str) -> bytes:
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{key}: found {path}: {error.strerror}; allowed: a PEM file that can be read") from None


def _parse(key: str, path: str, data: bytes) -> x509.Certificate:
    """The first certificate of a file, which is the hub's own."""
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigError(f"{key}: found {path}, which holds no certificate; allowed: a certificate in PEM") from None


def _check_time(key: str, path: str, certificate: x509.Certificate, now: float) -> None:
    moment = datetime.fromtimestamp(now, UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= moment <= ends:
        failure = ConfigError if begins <= moment else partial(NotYetValid, begins.timestamp())
        span = f"valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
        raise failure(f"{key}: found {path}, {span}; allowed: a certificate that is valid now")
    if (ends - moment).total_seconds() < SOON_S:
        logger.warning("%s: %s ends on %s", key, path, f"{ends:%Y-%m-%d %H:%M} UTC")


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]


def _stat(pairs: Sequence[Pair]) -> Marks:
    return tuple(_mark(path) for pair in pairs for path in pair)


def _mark(path: str) -> Mark | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # gone, or on its way: whoever loads it says what is wrong
    return status.st_mtime_ns, status.st_ino, status.st_size
