"""Keys: what tokens are checked with, and for which algorithms each key may be used (RFC 7517, RFC 7518).

Does: make keys of secrets, PEM files and JSON Web Keys, bind each to the algorithms of its type, find those that a
token may have been signed with.
Does not: read files or settings (keyfiles), fetch anything (jwks), or read tokens (auth).
Called by: keyfiles, jwks, auth.
Never break: what a key may be used for is decided by its type and never by a token: a public key, which everybody may
know, is no secret of HS256. A token's `kid` finds a key in a dictionary and is used for nothing else.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import InvalidKeyError

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""A secret has the size of its hash or more (RFC 7518 §3.2)."""
OF_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
OF_CURVE = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
ALGORITHMS = (*SECRET_BYTES, *OF_RSA, *OF_CURVE.values(), "EdDSA")
"""All that there is; `none` is no algorithm."""
LEAST_RSA_BITS = 2048
"""RFC 7518 §3.3."""
MAX_TRIED = 4
"""Keys that a token without a `kid` is tried with: each costs a signature, and the token may be anybody's."""
PUBLIC_PARTS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
"""Of a JSON Web Key, by its type. No `oct`: a key that is handed out to everybody is no secret."""


class Check(Protocol):
    """Of one algorithm."""

    def verify(self, msg: bytes, key: Any, sig: bytes) -> bool:
        """Whether a signature holds."""


class Hmac:
    """Of a secret: as jwt's, which goes the long way through an object for each signature."""

    __slots__ = ("_digest",)

    def __init__(self, bits: str) -> None:
        self._digest = f"sha{bits}"

    def verify(self, msg: bytes, key: bytes, sig: bytes) -> bool:
        return hmac.compare_digest(hmac.digest(key, msg, self._digest), sig)


JWT = get_default_algorithms()
CHECKS: dict[str, Check] = {name: JWT[name] for name in ALGORITHMS} | {name: Hmac(name[2:]) for name in SECRET_BYTES}


class Key(NamedTuple):
    """One key. uses: what `CHECKS` wants for each algorithm that it may be used for."""

    kid: str
    """Its name; '' for one without, which every token may have been signed with."""
    uses: Mapping[str, Any]


def of_secret(secret: str, kid: str = "") -> Key:
    """A shared secret; for none but the algorithms whose hash is no longer than it."""
    material = secret.encode()
    return Key(kid, {name: material for name, least in SECRET_BYTES.items() if len(material) >= least})


def of_pem(data: bytes, kid: str = "") -> Key:
    """A public key. Raises ValueError, whose text says what is allowed."""
    if b"PRIVATE KEY-----" in data:
        raise ValueError("a public key: the hub only checks tokens, and need not be able to make any")
    try:
        found = load_pem_public_key(data)
    except ValueError:
        raise ValueError("a public key in PEM, such as openssl pkey -pubout writes it") from None
    return of_public(found, kid)


def of_public(key: object, kid: str = "") -> Key:
    """A public key of `cryptography`. Raises ValueError."""
    if isinstance(key, RSAPublicKey):
        if key.key_size < LEAST_RSA_BITS:
            raise ValueError(f"RSA keys of {LEAST_RSA_BITS} bits and more")
        return Key(kid, dict.fromkeys(OF_RSA, key))
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in OF_CURVE:
        return Key(kid, {OF_CURVE[key.curve.name]: key})
    if isinstance(key, Ed25519PublicKey):
        return Key(kid, {"EdDSA": key})
    raise ValueError("RSA, the curves P-256, P-384 and P-521, and Ed25519")


def private(data: bytes) -> tuple[Any, Key]:
    """A private key in PEM, and its public half. Raises ValueError, whose text says what is allowed."""
    try:
        found = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):  # TypeError: it wants a password
        raise ValueError("a private key in PEM without a password") from None
    return found, of_public(found.public_key())


def of_jwk(jwk: object) -> Key:
    """A JSON Web Key of a set. Raises ValueError for one that checks no signatures, or that we can't use."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        raise ValueError("a key for signatures")
    uses = jwk.get("key_ops", ["verify"])
    if not isinstance(uses, list) or "verify" not in uses:
        raise ValueError("a key that checks signatures")
    kty, kid = jwk.get("kty"), jwk.get("kid", "")
    if not isinstance(kty, str) or kty not in PUBLIC_PARTS or not isinstance(kid, str):
        raise ValueError("keys of the types RSA, EC and OKP")
    # Only these: with more, one could be a private key.
    parts = {"kty": kty, **{name: jwk.get(name) for name in PUBLIC_PARTS[kty]}}
    try:
        key = of_public(JWT[{"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[kty]].from_jwk(parts), kid)
    except (InvalidKeyError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"a whole key: {error}") from None
    if "alg" not in jwk:
        return key
    return key._replace(uses={name: material for name, material in key.uses.items() if name == jwk["alg"]})


class KeyRing:
    """All keys that tokens may be signed with at this moment. Never changed, but replaced."""

    __slots__ = ("_all", "_by_kid", "_nameless", "keys")

    def __init__(self, keys: Iterable[Key] = (), algorithms: Collection[str] = ()) -> None:
        """algorithms: the only ones that are allowed; () for all that the keys' types allow."""
        allowed = frozenset(algorithms or ALGORITHMS)
        self.keys = [key._replace(uses={a: m for a, m in key.uses.items() if a in allowed}) for key in keys]
        self._by_kid: dict[str, Mapping[str, Any]] = {}
        self._nameless: dict[str, list[Any]] = {}
        self._all: dict[str, list[Any]] = {}
        for key in self.keys:
            if key.kid:
                self._by_kid.setdefault(key.kid, key.uses)
            for algorithm, material in key.uses.items():
                self._all.setdefault(algorithm, []).append(material)
                if not key.kid:
                    self._nameless.setdefault(algorithm, []).append(material)

    def __bool__(self) -> bool:
        """Some token could be good."""
        return bool(self._all)

    @property
    def algorithms(self) -> list[str]:
        """What a token may be signed with."""
        return [name for name in ALGORITHMS if name in self._all]

    def knows(self, kid: str) -> bool:
        """There is a key of this name."""
        return kid in self._by_kid

    def candidates(self, kid: object, algorithm: object) -> Sequence[Any]:
        """What a token with this header may have been signed with: at most MAX_TRIED, in their order.

        kid: None where the header has none. The key of that name alone, where there is one.
        """
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            return ()
        if kid is None:
            return self._all.get(algorithm, ())[:MAX_TRIED]
        named = self._by_kid.get(kid)
        if named is not None:
            return (named[algorithm],) if algorithm in named else ()
        return self._nameless.get(algorithm, ())[:MAX_TRIED]
