"""Tokens: who is let in as whom; the rows of the attack list about them; no change of a good one passes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from math import inf

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import auth, errors, keys
from hub.auth import Authenticator, Claims, Rules
from hub.capabilities import Capability
from hub.errors import CommandError, ProtocolError
from hub.grants import Grant
from hub.keys import KeyRing

from .support import FakeClock
from .test_keys import EC, ED, RSA, pem, private_pem

SECRET = "a secret for tests, long enough for the larger hashes too: 64 bytes and more"
OTHER = "another secret, also long enough for the larger hashes: 64 bytes and more"
NOW = 1_000_000.0
RING = KeyRing([keys.of_secret(SECRET), keys.of_pem(pem(RSA)), keys.of_pem(pem(EC)), keys.of_pem(pem(ED))])
SIGNERS = {"HS256": SECRET, "HS512": SECRET, "RS256": RSA, "PS512": RSA, "ES256": EC, "EdDSA": ED}


def token(key: object = SECRET, algorithm: str = "HS256", headers: dict | None = None, **claims: object) -> str:
    return jwt.encode({"sub": "42", "exp": NOW + 60, **claims}, key, algorithm=algorithm, headers=headers)


def part(value: object) -> str:
    """One part of a token: what `value` is as JSON, or these bytes."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed(header: object, payload: object, secret: bytes = SECRET.encode()) -> str:
    """What no library would make, with a good HS256 signature."""
    text = f"{part(header)}.{part(payload)}"
    return f"{text}.{part(hmac.digest(secret, text.encode(), hashlib.sha256))}"


CLAIMS = {"sub": "42", "exp": NOW + 60}
HS256 = {"alg": "HS256"}
CAPS = [{"channels": ["game:*"], "match": "wildcard", "allow": ["pub"]}]
ALLOWED = (Capability(frozenset({"pub"}), frozenset(), (("game:", ""),)),)


def judge(ring: KeyRing | str = SECRET, now: float = NOW, **options: object) -> Authenticator:
    return Authenticator(ring, lambda: now, **options)


def refused(found: object, by: Authenticator) -> None:
    """It ends the connection with 3500."""
    with pytest.raises(ProtocolError) as error:
        by.verify(found)
    assert error.value.close == errors.CLOSE_INVALID_TOKEN


def is_refused(found: object, by: Authenticator) -> bool:
    refused(found, by)
    return True


def revoking(is_revoked: Callable[[Claims], bool]) -> Callable[[Claims], None]:
    """What `Authenticator.judge` may be."""

    def check(claims: Claims) -> None:
        if is_revoked(claims):
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "revoked")

    return check


# What is good.


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_token_of_each_kind_of_key_is_good(algorithm):
    """By a ring that has them all: the type of the key decides."""
    assert judge(RING).verify(token(SIGNERS[algorithm], algorithm)) == Claims("42", NOW + 60)


def test_a_token_that_we_made_names_its_user():
    """make and Authenticator agree, with a secret and with a private key; an empty user is nobody in particular."""
    assert judge().verify(auth.make("42", SECRET, 60, NOW)) == Claims("42", NOW + 60, issued_at=NOW)
    made = auth.make("", private_pem(RSA), 60, NOW, "RS256", "a", aud="hub", jti="7")
    by = judge(KeyRing([keys.of_pem(pem(RSA), "a")]), rules=Rules(audience="hub"))
    assert by.verify(made) == Claims("", NOW + 60, jti="7", issued_at=NOW)


def test_all_that_a_token_says_is_kept():
    """What the hub knows by name, and all the rest."""
    found = judge().verify(token(jti="j", iat=NOW - 5, caps=CAPS, max_hz=2, info={"name": "Ann"}, x=[1]))
    assert found == Claims("42", NOW + 60, 2.0, "j", NOW - 5, ALLOWED, {"info": {"name": "Ann"}, "x": [1]})
    assert judge().verify(token()).extra is judge().verify(token(sub="7")).extra, "nothing is the same for all"


def test_a_token_is_good_from_its_nbf_to_its_exp():
    """exp in the past is 109, so that an SDK fetches a new token; a second before it is still good."""
    found = token(nbf=NOW)
    assert judge(now=NOW + 59).verify(found).user == "42"
    with pytest.raises(CommandError) as ended:
        judge(now=NOW + 60).verify(found)
    assert ended.value.reply == errors.TOKEN_EXPIRED
    refused(found, judge(now=NOW - 1))


def test_clocks_may_differ_by_the_leeway():
    """At both ends, and not by more; a connection outlives its token by it."""
    rules, found = Rules(leeway_s=30), token(nbf=NOW)
    for now in (NOW - 30, NOW + 89):
        assert judge(now=now, rules=rules).verify(found).user == "42"
    refused(found, judge(now=NOW - 31, rules=rules))
    with pytest.raises(CommandError):
        judge(now=NOW + 90, rules=rules).verify(found)
    assert judge(rules=rules, grace_s=25).grace_s == 55


def test_audience_and_issuer_are_compared():
    """Of several audiences one must be ours; a token for others is not for us, also where we have no name."""
    rules = Rules("hub", "idp")
    for aud in ("hub", ["x", "hub"]):
        assert judge(rules=rules).verify(token(aud=aud, iss="idp")).user == "42"
    for claims in ({}, {"aud": "hub"}, {"iss": "idp"}, {"aud": "hubs", "iss": "idp"}, {"aud": ["x"], "iss": "idp"}):
        refused(token(**claims), judge(rules=rules))
    for aud in ("hub", ["hub"]):
        refused(token(aud=aud), judge())
    for aud in (7, {"hub": 1}, "", [[]]):
        refused(signed(HS256, {**CLAIMS, "aud": aud, "iss": "idp"}), judge(rules=rules))
    assert judge().verify(token(iss="anybody")).user == "42"


def test_a_token_of_the_secret_before_is_good():
    """Two at a time, for as long as tokens of the older one live; then it is taken out."""
    both = KeyRing([keys.of_secret(SECRET), keys.of_secret(OTHER)])
    for secret in (SECRET, OTHER):
        assert judge(both).verify(token(secret)).user == "42"
        assert judge(both).verify(token(secret, headers={"kid": "whatever"})).user == "42"


# The rows of the attack list.

ATTACKS = {
    "none": f"{part({'alg': 'none'})}.{part(CLAIMS)}.",
    "none with a signature": f"{part({'alg': 'none'})}.{part(CLAIMS)}.{token().rpartition('.')[2]}",
    "None": signed({"alg": "None"}, CLAIMS),
    "no algorithm": signed({}, CLAIMS),
    "algorithm of another type": signed({"alg": ["HS256"]}, CLAIMS),
    "algorithm of another type, and a kid": signed({"alg": ["HS256"], "kid": "x"}, CLAIMS),
    "algorithm is an object, and a kid": signed({"alg": {"a": 1}, "kid": "x"}, CLAIMS),
    "HS256 with the public RSA key": signed(HS256, CLAIMS, pem(RSA)),
    "HS256 with the public EC key": signed(HS256, CLAIMS, pem(EC)),
    "HS256 with the empty key": signed(HS256, CLAIMS, b""),
    "RS256, and an HS256 signature": signed({"alg": "RS256"}, CLAIMS),
    "ES256, and an HS256 signature": signed({"alg": "ES256"}, CLAIMS),
    "EdDSA, and an HS256 signature": signed({"alg": "EdDSA"}, CLAIMS),
    "ES256 of zeros": f"{part({'alg': 'ES256'})}.{part(CLAIMS)}.{part(bytes(64))}",
    "kid is no text": signed({**HS256, "kid": 7}, CLAIMS),
    "kid and its path": signed({**HS256, "kid": "../../../dev/null"}, CLAIMS, b""),
    "kid and SQL": signed({**HS256, "kid": "x' UNION SELECT 'key' --"}, CLAIMS, b"key"),
    "jku": jwt.encode(CLAIMS, OTHER, headers={"jku": "https://attacker.example/jwks.json"}),
    "x5u": jwt.encode(CLAIMS, OTHER, headers={"x5u": "https://attacker.example/x.pem"}),
    "a key of its own": signed({**HS256, "jwk": {"kty": "oct", "k": part(b"k" * 32)}}, CLAIMS, b"k" * 32),
    "crit": signed({**HS256, "crit": ["exp"], "exp": 1}, CLAIMS),
    "crit, empty": signed({**HS256, "crit": []}, CLAIMS),
    "b64, detached": signed({**HS256, "b64": False, "crit": ["b64"]}, CLAIMS),
    "no exp": signed(HS256, {"sub": "42"}),
    "exp null": signed(HS256, {**CLAIMS, "exp": None}),
    "exp beyond numbers": signed(HS256, b'{"sub":"42","exp":1e999}'),
    "no sub": signed(HS256, {"exp": NOW + 60}),
    "sub is a number": signed(HS256, {**CLAIMS, "sub": 42}),
    "sub too long": token(sub="u" * 256),
    "sub is no UTF-8": signed(HS256, b'{"sub":"\\ud800","exp":2000000}'),
    "nbf in the future": token(nbf=NOW + 30),
    "huge": token(x="x" * 4096),
    "a subscription's": token(channel="a"),
    "caps are no list": token(caps={"a": 1}),
    "caps with a regular expression": token(caps=[{"channels": ["a"], "match": "regex", "allow": ["sub"]}]),
    "jti is no text": signed(HS256, {**CLAIMS, "jti": 7}),
    "jti too long": token(jti="j" * 256),
    "max_hz below 0": token(max_hz=-1),
    "another key": token(OTHER),
    "another algorithm than is allowed": token(algorithm="HS384"),
    "claims are no object": signed(HS256, ["sub", "exp"]),
    "claims are no JSON": signed(HS256, b"{"),
    "header is no object": signed(["alg"], CLAIMS),
    "header is no JSON": signed(b"{", CLAIMS),
    "deep header": signed(b"[" * 2000, CLAIMS),
    "two parts": "a.b",
    "four parts": token() + ".a",
    "empty parts": "..",
    "a line end": token() + "\n",
    "padded": token() + "=",
    "standard base64": token().replace("-", "+").replace("_", "/") + "+",
    "not ASCII": token() + "é",
    "empty": "",
    "no text": 7,
    "nothing": None,
    "bytes": token().encode(),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name):
    """3500, by a ring of all kinds of keys that allows HS256, RS256, ES256 and EdDSA."""
    ring = KeyRing(RING.keys, ["HS256", "RS256", "ES256", "EdDSA"])
    refused(ATTACKS[name], judge(ring))
    assert judge(ring).verify(signed(HS256, CLAIMS)).user == "42", "and it is not our signer that is at fault"


@pytest.mark.parametrize("value", ["1", True, [1], {"a": 1}, None, 10**400])
@pytest.mark.parametrize("claim", ["exp", "nbf", "iat", "max_hz"])
def test_claims_of_the_wrong_type_are_refused(claim, value):
    """Nothing of it raises anything else."""
    refused(signed(HS256, {**CLAIMS, claim: value}), judge())


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat", "max_hz"])
def test_no_number_is_no_number(claim):
    """NaN, as some libraries write it, is before and after nothing."""
    refused(signed(HS256, {**CLAIMS, claim: float("nan")}), judge())


def test_without_a_secret_no_token_is_good():
    """A hub without a key refuses every token rather than trusting the empty key."""
    for secret in ("", " " * 31):
        assert not judge(secret).enabled
        refused(signed(HS256, CLAIMS, secret.encode()), judge(secret))


GOOD = {name: token(key, name) for name, key in SIGNERS.items()}
JUDGE = judge(RING)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\0é"


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 2000), st.sampled_from(ALPHABET), st.sampled_from("rid"))
def test_any_change_of_a_good_token_is_refused(algorithm, at, character, how):
    """One character replaced, inserted or deleted, wherever; also the spare bits of the last one of each part."""
    good = GOOD[algorithm]
    at %= len(good) + 1
    changed = good[:at] + ("" if how == "d" else character) + good[at + (how != "i") :]
    if changed != good:
        refused(changed, JUDGE)
    assert JUDGE.verify(good).user == "42"


@pytest.mark.parametrize("algorithm", GOOD)
def test_a_token_has_one_text(algorithm):
    """Other last letters can stand for the same bytes (RFC 4648 §3.5): none of them is taken."""
    good = GOOD[algorithm]
    assert all(good[-1] == letter or is_refused(good[:-1] + letter, JUDGE) for letter in ALPHABET[:64])


@given(st.text() | st.binary() | st.none() | st.integers() | st.lists(st.text(), min_size=3, max_size=3).map(".".join))
def test_rubbish_is_refused(found):
    """With 3500, and nothing else is raised."""
    refused(found, JUDGE)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "crit", "jku"]), st.none() | st.text() | st.integers()))
def test_only_alg_and_kid_of_a_header_count(header):
    """With a good signature under it, whatever it says besides: good for HS256 without crit, else refused."""
    found = signed(header, CLAIMS)
    good = header.get("alg") == "HS256" and "crit" not in header and isinstance(header.get("kid"), str | None)
    if good:
        assert JUDGE.verify(found).user == "42"
    else:
        refused(found, JUDGE)


# What is remembered.


def test_a_remembered_token_is_judged_by_the_clock_of_now():
    """It ends like any other."""
    clock = FakeClock(NOW)
    by = Authenticator(SECRET, clock)
    first = by.verify(token())
    assert by.verify(token()) is first, "no signature is checked twice"
    clock.advance(60)
    with pytest.raises(CommandError):
        by.verify(token())


def test_a_remembered_token_can_be_revoked():
    """The question is asked each time: what is revoked is refused at once."""
    by, revoked = judge(), set()
    by.judge = revoking(lambda claims: claims.jti in revoked)
    found = token(jti="a")
    claims = by.verify(found)
    revoked.add("a")
    refused(found, by)
    with pytest.raises(ProtocolError):
        by.check(claims)
    assert by.verify(token(jti="b")).jti == "b"


def test_so_many_are_remembered_and_the_oldest_is_forgotten():
    """The least recently used one; none at all where the setting says 0."""
    by, texts = judge(cache=2), [token(jti=str(number)) for number in range(3)]
    first, second = (by.verify(text) for text in texts[:2])
    assert by.verify(texts[0]) is first
    by.verify(texts[2])
    assert by.verify(texts[0]) is first and by.verify(texts[1]) is not second
    none = judge(cache=0)
    assert none.verify(texts[0]) is not none.verify(texts[0])


def test_new_keys_forget_what_old_ones_let_in():
    """A key that is taken out is taken out for all; `forget` has them all judged anew."""
    by = judge()
    claims = by.verify(token())
    by.forget()
    assert by.verify(token()) is not claims
    by.renew(KeyRing([keys.of_secret(OTHER)]))
    refused(token(), by)


def test_a_bad_token_is_never_remembered_as_good():
    """Nor one that has ended, as it might be asked for with another clock."""
    by = judge()
    for _ in range(2):
        refused(token(OTHER), by)
    assert not by._cache


def test_a_key_that_is_being_fetched_is_worth_another_try():
    """100, temporary, for a kid that nobody knows, if somebody looks for it; 3500 for all else."""
    by, asked = judge(KeyRing([keys.of_pem(pem(RSA), "a")])), []

    def missing(kid: str | None) -> bool:
        asked.append(kid)
        return len(asked) == 1

    by.missing = missing
    with pytest.raises(CommandError) as later:
        by.verify(token(RSA, "RS256", {"kid": "b"}))
    assert later.value.reply.temporary and later.value.reply.code == 100
    refused(token(RSA, "RS256", {"kid": "b"}), by)
    assert len(asked) == 2
    for kid, algorithm, key in (("a", "EdDSA", ED), ("a", "HS256", SECRET)):
        refused(token(key, algorithm, {"kid": kid}), by)
    refused(signed({"alg": "none", "kid": "b"}, CLAIMS), by)
    refused(token(EC, "ES256"), by)
    assert asked == ["b", "b", None], "nothing else has keys fetched"


# Subscriptions and tickets.


def channel_token(key: object = SECRET, **claims: object) -> str:
    return token(key, **{"channel": "room:7", **claims})


def test_a_channel_token_gives_one_channel_to_one_user():
    """As its claims say; each claim of a connection's that it has besides means nothing."""
    found = channel_token(allow=["pub"], jti="j", iat=NOW - 5, caps=7, max_hz="x", info=[1])
    by = judge(RING)
    assert by.verify_subscription(found, "42") == Grant("room:7", NOW + 60, frozenset({"pub"}), "j", NOW - 5)
    assert by.verify_subscription(found, "42") is by.verify_subscription(found, "42"), "it is remembered"
    assert by.verify_subscription(channel_token(EC, algorithm="ES256", expire_at=0), "42").expires_at == inf
    assert by.verify_subscription(signed(HS256, {"channel": "a", "exp": NOW + 60}), "") == Grant("a", NOW + 60)


@pytest.mark.parametrize(
    ("bad", "user", "reply"),
    [
        (channel_token(), "77", errors.PERMISSION_DENIED),
        (channel_token(), "", errors.PERMISSION_DENIED),
        (token(), "42", errors.PERMISSION_DENIED),
        (channel_token(SECRET + "x"), "42", errors.PERMISSION_DENIED),
        (channel_token()[:-2], "42", errors.PERMISSION_DENIED),
        (channel_token(override={"presence": {"value": True}}), "42", errors.PERMISSION_DENIED),
        (channel_token(nbf=NOW + 5), "42", errors.PERMISSION_DENIED),
        (channel_token(aud="x"), "42", errors.PERMISSION_DENIED),
        (signed(HS256, {**CLAIMS, "channel": 7}), "42", errors.PERMISSION_DENIED),
        (signed(HS256, {"channel": "a", "sub": None, "exp": NOW + 60}), "", errors.PERMISSION_DENIED),
        (signed(HS256, {"channel": "a", "sub": "42"}), "42", errors.PERMISSION_DENIED),
        (["x"], "42", errors.PERMISSION_DENIED),
        (channel_token(exp=NOW), "42", errors.TOKEN_EXPIRED),
        (channel_token(expire_at=NOW), "42", errors.TOKEN_EXPIRED),
    ],
    ids=range(14),
)
def test_a_channel_token_for_somebody_else_or_not_ours_is_refused(bad, user, reply):
    """The connection lives; 109 makes SDKs ask for another."""
    by = judge()
    for _ in range(2):
        with pytest.raises(CommandError) as error:
            by.verify_subscription(bad, user)
        assert error.value.reply == reply


def test_a_remembered_channel_token_ends_and_can_be_revoked():
    """With the token, with what it gives, or at once: 103, as the connection lives."""
    clock = FakeClock(NOW)
    by = Authenticator(SECRET, clock)
    short, found = channel_token(expire_at=NOW + 5), channel_token(jti="a")
    assert by.verify_subscription(short, "42").expires_at == NOW + 5
    assert by.verify_subscription(found, "42").jti == "a"
    by.judge = revoking(lambda claims: claims.jti == "a")
    clock.advance(5)
    for text, reply in ((short, errors.TOKEN_EXPIRED), (found, errors.PERMISSION_DENIED)):
        with pytest.raises(CommandError) as error:
            by.verify_subscription(text, "42")
        assert error.value.reply == reply
    by.judge = revoking(lambda claims: False)
    clock.advance(55)
    with pytest.raises(CommandError) as error:
        by.verify_subscription(found, "42")
    assert error.value.reply == errors.TOKEN_EXPIRED


def test_neither_kind_of_token_is_taken_for_the_other_where_it_is_remembered():
    """Nor is a token with an empty channel a connection's."""
    by, found = judge(), channel_token()
    assert by.verify_subscription(found, "42").expires_at == NOW + 60
    refused(found, by)
    refused(token(channel=""), by)
    assert by.verify(token()).user == "42"
    with pytest.raises(CommandError):
        by.verify_subscription(token(), "42")


def test_subscriptions_may_have_a_key_and_an_audience_of_their_own():
    """Then the connection's key makes none, and the other way round."""
    own = (KeyRing([keys.of_secret(OTHER)]), Rules(audience="channels"))
    by = judge(subscriptions=own)
    assert by.verify_subscription(channel_token(OTHER, aud="channels"), "42").channel == "room:7"
    for text in (channel_token(aud="channels"), channel_token(OTHER), channel_token(OTHER, aud="x")):
        with pytest.raises(CommandError):
            by.verify_subscription(text, "42")
    refused(token(OTHER), by)


def test_the_server_api_can_vouch_for_a_client():
    """By claims like a token's; without `exp` they have no end. What makes no good token makes no good ticket."""
    by = judge(rules=Rules("hub", "idp"))
    assert by.vouch({"sub": "ann", "caps": CAPS}) == Claims("ann", inf, capabilities=ALLOWED)
    assert by.vouch({"sub": "ann", "exp": NOW + 1}).expires_at == NOW + 1
    for payload in (
        {},
        {"sub": 7},
        {"sub": "a", "exp": "1"},
        {"sub": "a", "exp": None},
        {"sub": "a", "caps": 1},
        {"sub": "a", "channel": "b"},
        [],
    ):
        with pytest.raises(ProtocolError):
            by.vouch(payload)
    with pytest.raises(CommandError):
        by.vouch({"sub": "ann", "exp": NOW})
    by.judge = revoking(lambda claims: claims.user == "ann")
    with pytest.raises(ProtocolError):
        by.vouch({"sub": "ann"})
