"""Tickets: good once, for a short time, over all workers; whom they speak for is judged like a token."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest
from redis.asyncio import Redis

from hub import capabilities, errors
from hub.auth import Authenticator, Claims
from hub.errors import BrokerUnavailable, CommandError, ProtocolError
from hub.sections import RedisSettings
from hub.store import Store
from hub.tickets import MAX_CLAIMS_BYTES, Tickets

from .support import async_test


@contextlib.asynccontextmanager
async def tickets(url: str, prefix: str, **options: object) -> AsyncIterator[Tickets]:
    """Of one worker."""
    one = Tickets(Store(RedisSettings(prefix=prefix), url), Authenticator("", time.time), **options)
    try:
        yield one
    finally:
        await one.close()


async def is_refused(found: Tickets, ticket: str) -> bool:
    try:
        await found.redeem(ticket)
    except ProtocolError as error:
        return error.close == errors.CLOSE_INVALID_TOKEN
    return False


@async_test
async def test_a_ticket_is_good_once_on_any_worker(valkey_url, prefix):
    """Of many who show it at the same time, one is let in."""
    async with tickets(valkey_url, prefix) as one, tickets(valkey_url, prefix) as other:
        caps = [{"channels": ["a"], "allow": ["pub"]}]
        ticket = await one.issue({"sub": "ann", "caps": caps, "seat": 7})
        found = await asyncio.gather(*(w.redeem(ticket) for w in (one, other) * 8), return_exceptions=True)
        (claims,) = (one for one in found if not isinstance(one, Exception))
        assert (claims.user, claims.capabilities, claims.extra) == ("ann", capabilities.read(caps), {"seat": 7})
        assert all(isinstance(one, ProtocolError) for one in found if one is not claims)


@async_test
async def test_a_ticket_ends_by_itself(valkey_url, prefix):
    """After its seconds, in Redis; and the claims that it stands for may end before it."""
    async with tickets(valkey_url, prefix) as found, Redis.from_url(valkey_url) as redis:
        ticket = await found.issue({"sub": "ann"}, 17.5)
        key = f"{prefix}:ticket:{sha256(ticket.encode()).hexdigest()}"
        assert 17_000 < await redis.pttl(key) <= 17_500
        await redis.pexpire(key, 0)
        assert await is_refused(found, ticket)
        with pytest.raises(CommandError, match="token expired"):
            await found.issue({"sub": "ann", "exp": time.time() - 1})


@async_test
async def test_no_ticket_can_be_made_of_what_redis_holds(valkey_url, prefix):
    """Its key is a digest, and nothing there is the ticket's text."""
    async with tickets(valkey_url, prefix) as found, Redis.from_url(valkey_url) as redis:
        ticket = await found.issue({"sub": "ann"})
        (key,) = [key async for key in redis.scan_iter(f"{prefix}:ticket:*")]
        assert ticket.encode() not in key and ticket.encode() not in await redis.get(key)
        assert await is_refused(found, key.decode().rpartition(":")[2])
        assert (await found.redeem(ticket)).user == "ann"


@async_test
async def test_tickets_of_chance_are_each_another(valkey_url, prefix):
    """Of 256 bits."""
    async with tickets(valkey_url, prefix) as found:
        made = {await found.issue({"sub": ""}) for _ in range(50)}
        assert len(made) == 50 and all(len(ticket) == 43 for ticket in made)


@async_test
async def test_a_ticket_is_newer_than_what_was_revoked_before_it(valkey_url, prefix):
    """All tokens of a user until now may be good no more; who logs in again gets a ticket, and comes in."""
    revoked_at = time.time()

    def judge(claims: Claims) -> None:
        if claims.issued_at < revoked_at:
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "revoked")

    async with tickets(valkey_url, prefix) as found:
        found._authenticator.judge = judge
        assert (await found.redeem(await found.issue({"sub": "ann"}))).issued_at >= revoked_at
        with pytest.raises(CommandError, match="revoked"):
            await found.issue({"sub": "ann", "iat": revoked_at - 1})


@async_test
async def test_what_is_no_ticket_is_refused(valkey_url, prefix):
    """Without asking Redis where it can't be one; also where somebody else has written under its name."""
    async with tickets(valkey_url, prefix) as found, Redis.from_url(valkey_url) as redis:
        for text in ("", "x", "x" * 65, "é", "*"):
            assert await is_refused(found, text)
        for body in (b"", b"{", b"[]", b'{"sub":7}'):
            await redis.set(found._store.keys.ticket(sha256(b"t").hexdigest()), body)
            assert await is_refused(found, "t")


@pytest.mark.parametrize(
    ("claims", "ttl_s", "reply"),
    [
        ({}, 30, errors.BAD_REQUEST),
        ({"sub": 7}, 30, errors.BAD_REQUEST),
        ({"sub": "ann", "caps": 1}, 30, errors.BAD_REQUEST),
        ({"sub": "ann", "channel": 1}, 30, errors.BAD_REQUEST),
        ({"sub": "ann", "nbf": 2**40}, 30, errors.BAD_REQUEST),
        ({"sub": "ann"}, 0, errors.BAD_REQUEST),
        ({"sub": "ann"}, 60.1, errors.BAD_REQUEST),
        ({"sub": "ann"}, float("nan"), errors.BAD_REQUEST),
        ({"sub": "ann", "x": "x" * MAX_CLAIMS_BYTES}, 30, errors.LIMIT_EXCEEDED),
    ],
    ids=range(9),
)
@async_test
async def test_a_ticket_for_bad_claims_is_not_made(claims, ttl_s, reply, valkey_url, prefix):
    """Told to the server API's caller, and not to the client later."""
    async with tickets(valkey_url, prefix) as found:
        with pytest.raises(CommandError) as refused:
            await found.issue(claims, ttl_s)
        assert refused.value.reply == reply


@async_test
async def test_without_redis_nobody_is_let_in_and_may_try_again(prefix):
    """Temporary, for both sides."""
    async with tickets("redis://127.0.0.1:1/0", prefix) as found:
        with pytest.raises(BrokerUnavailable):
            await found.issue({"sub": "ann"})
        with pytest.raises(BrokerUnavailable):
            await found.redeem("t")
