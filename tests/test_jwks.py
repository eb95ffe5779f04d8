"""JWKS: keys of an identity provider, from a real server on loopback; how often it is asked, and what it can't do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import itertools
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import jwt
import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from hub import auth, keys
from hub import jwks as jwks_room
from hub.auth import Authenticator
from hub.errors import CommandError, ProtocolError
from hub.jwks import MAX_BYTES, MAX_KEYS, MISSING_S, Jwks, read

from .nodes import until
from .support import FakeClock, async_test
from .test_keys import EC, ED, RSA, jwk, private_pem

SECRET = "a secret for tests, of more than 32 bytes"


def jwks(*found: dict) -> bytes:
    return orjson.dumps({"keys": found})


class Provider:
    """A server that answers each request as `answer` says, and counts them."""

    def __init__(self) -> None:
        self.answer: Callable[[], bytes] = lambda: self.ok(jwks())
        self.requests: list[bytes] = []
        self.held = asyncio.Event()
        """Set, it answers."""
        self.held.set()
        self.asked = asyncio.Event()
        self.url = ""

    def ok(self, body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
        lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
        return b"\r\n".join([*lines, b"", body])

    def serves(self, *found: dict) -> None:
        self.answer = lambda: self.ok(jwks(*found))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.asked.set()
            await self.held.wait()
            writer.write(self.answer())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the hub has gone before its answer, as it may
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def provider(tls: ssl.SSLContext | None = None) -> AsyncIterator[Provider]:
    one = Provider()
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0, ssl=tls)
    one.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
    try:
        yield one
    finally:
        one.held.set()
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def following(found: Provider, **options: object) -> AsyncIterator[tuple[Jwks, Authenticator]]:
    """What a worker has; the secret is a key of its own."""
    own = [keys.of_secret(SECRET)]
    by = Authenticator(keys.KeyRing(own), time.time)
    one = Jwks(found.url, by, own, options.pop("algorithms", ()), options.pop("refresh_s", 300), **options)
    try:
        yield one, by
    finally:
        await one.close()


def token(key: object, algorithm: str, kid: str = "") -> str:
    return auth.make("ann", key, 3600, time.time(), algorithm, kid)


A, B = token(RSA, "RS256", "a"), token(EC, "ES256", "b")
RSA_A, EC_B = jwk(RSA, kid="a"), jwk(EC, kid="b")


def verdict(by: Authenticator, text: str) -> str:
    try:
        return by.verify(text).user
    except CommandError as error:
        return f"{error.reply.code}{' temporary' if error.reply.temporary else ''}"
    except ProtocolError as error:
        return str(error.close.code)


async def fetched(found: Jwks, number: int) -> None:
    """So many fetches have begun, and the last has ended."""
    await until(lambda: found.fetches >= number and found._fetching is None)


@async_test
async def test_keys_of_the_set_are_good_beside_our_own():
    """From the start; of a set that serves both."""
    async with provider() as idp, following(idp) as (found, by):
        assert by.enabled and verdict(by, A) == "100 temporary", "before its keys can be there"
        idp.serves(RSA_A, EC_B)
        await found.start()
        assert [verdict(by, text) for text in (A, B, token(SECRET, "HS256"))] == ["ann"] * 3
        assert idp.requests[0].startswith(b"GET /keys HTTP/1.1\r\n") and len(idp.requests) == 1


@async_test
async def test_a_key_that_is_taken_out_is_good_no_more():
    """After the next fetch, also for tokens that are remembered."""
    async with provider() as idp, following(idp, refresh_s=0.01) as (found, by):
        idp.serves(RSA_A)
        await found.start()
        assert verdict(by, A) == "ann"
        idp.serves(EC_B)
        await fetched(found, found.fetches + 2)
        by.missing = lambda kid: False
        assert (verdict(by, A), verdict(by, B)) == ("3500", "ann")


@async_test
async def test_an_unknown_kid_has_the_set_fetched():
    """Who shows it is told to come back, and is let in then; what nobody knows afterwards is refused for a minute."""
    clock = FakeClock()
    async with provider() as idp, following(idp, clock=clock) as (found, by):
        idp.serves(RSA_A)
        await found.start()
        idp.serves(RSA_A, EC_B)
        made_up = token(RSA, "RS256", "made-up")
        assert [verdict(by, text) for text in (B, made_up, B)] == ["100 temporary"] * 3
        await fetched(found, 2)
        assert verdict(by, B) == "ann"
        clock.advance(59.9)
        assert verdict(by, made_up) == "3500" and found.fetches == len(idp.requests) == 2
        clock.advance(0.2)
        assert verdict(by, made_up) == "100 temporary" and verdict(by, A) == "ann"
        await fetched(found, 3)
        assert verdict(by, made_up) == "3500" and len(idp.requests) == 3


@async_test
async def test_made_up_kids_do_not_hold_up_a_new_key():
    """Whoever makes them up has the set fetched every few seconds and no more often; a new key is found with them."""
    clock = FakeClock()
    async with provider() as idp, following(idp, clock=clock) as (found, by):
        idp.serves(RSA_A)
        await found.start()
        numbers = itertools.count()

        def flood() -> set[str]:
            return {verdict(by, token(RSA, "RS256", f"kid-{next(numbers)}")) for _ in range(20)}

        assert flood() == {"100 temporary"}
        await fetched(found, 2)
        idp.serves(RSA_A, EC_B)
        assert flood() == {"100 temporary"} and verdict(by, B) == "100 temporary" and found.fetches == 2
        clock.advance(MISSING_S)
        assert flood() == {"100 temporary"}
        await fetched(found, 3)
        assert verdict(by, B) == "ann" and len(idp.requests) == 3


@async_test
async def test_so_many_made_up_kids_are_remembered(monkeypatch):
    """The oldest are forgotten, before and behind a fetch."""
    monkeypatch.setattr(jwks_room, "MAX_NAMES", 5)
    clock = FakeClock()
    async with provider() as idp, following(idp, clock=clock) as (found, _):
        idp.serves(RSA_A)
        await found.start()
        for round_ in range(3):
            clock.advance(MISSING_S)
            assert all(found.miss(f"{round_}-{number}") for number in range(8))
            assert len(found._sought) <= 5
            await fetched(found, 2 + round_)
            assert len(found._absent) == 5
        assert not found.miss("2-0") and found.miss("0-0")


@async_test
async def test_nothing_of_a_token_gets_into_the_request():
    """The URL is the setting's, whatever a token says (CVE-2026-32301)."""
    async with provider() as idp, following(idp) as (found, by):
        idp.serves(RSA_A)
        await found.start()
        headers = {"kid": "../../evil?x=1", "jku": f"{idp.url}/evil", "x5u": f"{idp.url}/evil"}
        evil = jwt.encode({"sub": "evil", "exp": 9e9, "iss": f"{idp.url}/evil"}, RSA, "RS256", headers=headers)
        assert verdict(by, evil) == "100 temporary"
        await fetched(found, 2)
        assert len(idp.requests) == 2 and idp.requests[0] == idp.requests[1] and b"evil" not in idp.requests[1]


BAD = {
    "no JSON": lambda idp: idp.ok(b"<html>"),
    "no set": lambda idp: idp.ok(b'{"keys":7}'),
    "an array": lambda idp: idp.ok(b"[]"),
    "an empty set": lambda idp: idp.ok(jwks()),
    "secrets only": lambda idp: idp.ok(jwks({"kty": "oct", "k": "eHh4", "kid": "b"})),
    "500": lambda idp: idp.ok(jwks(EC_B), b"500 Oops"),
    "404": lambda idp: idp.ok(jwks(EC_B), b"404 Not Found"),
    "a redirect": lambda idp: (
        idp.ok(jwks(EC_B)) if b"/other" in idp.requests[-1] else idp.ok(b"", b"302 Found", b"Location: /other")
    ),
    "huge": lambda idp: idp.ok(jwks(EC_B) + b" " * MAX_BYTES),
    "huge, and no length": lambda idp: b"HTTP/1.1 200 OK\r\n\r\n" + jwks(EC_B) + b" " * MAX_BYTES,
    "huge head": lambda idp: idp.ok(jwks(EC_B), b"200 OK", b"X: " + b"x" * 20_000),
    "no HTTP": lambda idp: b"\x15\x03\x01\x00\x02\x02F",
    "nothing": lambda idp: b"",
    "cut off": lambda idp: idp.ok(jwks(EC_B))[:-5],
}


@pytest.mark.expects_log
@pytest.mark.parametrize("kind", BAD)
@async_test
async def test_a_bad_answer_leaves_the_keys_as_they_were(kind, caplog):
    """The last good ones hold, one warning says so, without the answer's words; and it is tried again."""
    async with provider() as idp, following(idp, refresh_s=0.05) as (found, by):
        idp.serves(RSA_A)
        await found.start()
        idp.answer = lambda: BAD[kind](idp)
        with caplog.at_level(logging.WARNING, "hub"):
            await fetched(found, found.fetches + 2)
        assert verdict(by, A) == "ann"
        (line,) = [one.getMessage() for one in caplog.records if one.name == "hub.jwks"]
        assert not any(b"/other" in request for request in idp.requests), "where to go is not the server's choice"
        assert line.startswith("auth.jwks_url: no keys: ") and "the last good ones hold" in line and "html" not in line
        idp.serves(EC_B)
        await fetched(found, found.fetches + 2)
        assert verdict(by, B) == "ann"


@pytest.mark.expects_log
@async_test
async def test_before_there_is_a_set_any_key_may_be_in_it():
    """With a provider that is away at the start, who needs its keys is told to try again, until it is back."""
    async with provider() as idp, following(idp, refresh_s=0.05) as (found, by):
        idp.answer = lambda: BAD["404"](idp)
        await found.start()
        assert verdict(by, A) == "100 temporary" and found.fetches == 2
        await fetched(found, 2)
        nameless = token(RSA, "RS256")
        assert [verdict(by, text) for text in (A, nameless)] == ["100 temporary"] * 2 and found._fetching is None
        idp.serves(RSA_A)
        await fetched(found, 3)
        assert [verdict(by, text) for text in (A, nameless, token(EC, "ES256"))] == ["ann", "ann", "3500"]


@pytest.mark.expects_log
@async_test
async def test_a_silent_server_holds_nobody_up():
    """Two seconds at the start; who needs its keys meanwhile is told to try again at once, all others are served."""
    async with provider() as idp, following(idp) as (found, by):
        idp.held.clear()
        began = time.monotonic()
        starting = asyncio.ensure_future(found.start())
        await idp.asked.wait()
        assert verdict(by, A) == "100 temporary" and verdict(by, token(SECRET, "HS256")) == "ann"
        await starting
        assert 1.5 < time.monotonic() - began < 4 and not found.loaded
        idp.serves(RSA_A)
        idp.held.set()
        await fetched(found, 2)
        assert verdict(by, A) == "ann"


def certificate(directory: Path) -> tuple[ssl.SSLContext, str]:
    """A server's context for 127.0.0.1, and the file that its certificate is to be judged by."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(EC.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(EC, hashes.SHA256())
    )
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(private_pem(EC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context, str(chain)


@pytest.mark.expects_log
@async_test
async def test_a_server_must_prove_who_it_is(tmp_path):
    """Over https its certificate is checked: by the authority of the settings, or by those that the machine trusts."""
    context, ca_file = certificate(tmp_path)
    async with provider(context) as idp:
        idp.serves(RSA_A)
        async with following(idp, ca_file=ca_file) as (found, by):
            await found.start()
            assert verdict(by, A) == "ann"
        async with following(idp) as (found, by):
            await found.start()
            assert not found.loaded and verdict(by, A) == "100 temporary"


@async_test
async def test_the_allow_list_holds_for_the_set_too():
    """And its keys have the types that they say, not those that tokens would like."""
    async with provider() as idp, following(idp, algorithms=["RS256", "HS256"]) as (found, by):
        idp.serves(RSA_A, EC_B, jwk(ED, kid="c"))
        await found.start()
        by.missing = lambda kid: False
        confused = jwt.encode({"sub": "evil", "exp": 9e9}, "x" * 32, "HS256", headers={"kid": "a"})
        assert [verdict(by, text) for text in (A, B, confused)] == ["ann", "3500", "3500"]


def test_a_set_is_read_key_by_key():
    """What is no key for us is left out; so many are looked at."""
    assert [
        key.kid for key in read(jwks(EC_B, {"kty": "oct", "k": "eA"}, {}, jwk(RSA, kid="e", use="enc"), RSA_A))
    ] == [
        "b",
        "a",
    ]
    many = read(jwks(*[{**EC_B, "kid": str(number)} for number in range(MAX_KEYS + 1)]))
    assert len(many) == MAX_KEYS


@async_test
async def test_other_keys_of_our_own_stand_beside_the_set_that_was_fetched():
    """At once and without a fetch; also where the authenticator has just been given other rules."""
    async with provider() as idp, following(idp) as (found, by):
        idp.serves(RSA_A)
        await found.start()
        other = keys.of_secret("another secret, of more than 32 bytes")
        by.become(Authenticator(keys.KeyRing([other]), time.time))
        found.retune([other], (), 300)
        assert verdict(by, A) == "ann" and verdict(by, token(SECRET, "HS256")) == "3500"
        assert verdict(by, token("another secret, of more than 32 bytes", "HS256")) == "ann"
        assert found.fetches == 1 and by.expects_keys
