"""Keys: which algorithms a key is good for, and which keys a token may have been signed with."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from hub import keys, values
from hub.keys import KeyRing

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
EC_384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
SMALL = rsa.generate_private_key(65537, 1024)
OF_RSA = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]


def pem(private: object) -> bytes:
    """The public half."""
    return private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(private: object) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def jwk(private: object, **more: object) -> dict:
    """The public half as a JSON Web Key."""
    kind = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm = next((found for type_, found in kind.items() if isinstance(private, type_)), OKPAlgorithm)
    return {**json.loads(algorithm.to_jwk(private.public_key())), **more}


def test_settings_know_the_same_algorithms():
    """config takes no name that keys can't check, and keys checks none that config refuses."""
    assert sorted(values.ALGORITHMS) == sorted(keys.ALGORITHMS) == sorted(keys.CHECKS)
    assert "none" not in keys.CHECKS


@pytest.mark.parametrize(
    ("size", "algorithms"),
    [(31, []), (32, ["HS256"]), (48, ["HS256", "HS384"]), (64, ["HS256", "HS384", "HS512"])],
)
def test_a_secret_is_as_long_as_its_hash(size, algorithms):
    """RFC 7518 §3.2, in bytes: a shorter one is good for nothing."""
    assert list(keys.of_secret("x" * size).uses) == algorithms
    assert KeyRing([keys.of_secret("é" * (size // 2) + "x" * (size % 2))]).algorithms == algorithms


@pytest.mark.parametrize(
    ("private", "algorithms"),
    [(RSA, OF_RSA), (EC, ["ES256"]), (EC_384, ["ES384"]), (ED, ["EdDSA"])],
    ids=["RSA", "P-256", "P-384", "Ed25519"],
)
def test_a_public_key_is_good_for_the_algorithms_of_its_type(private, algorithms):
    """Never for HS256: everybody may know a public key. From PEM and from a set alike."""
    assert list(keys.of_pem(pem(private)).uses) == algorithms
    assert list(keys.of_jwk(jwk(private)).uses) == algorithms


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        (b"", "a public key in PEM"),
        (b"x" * 32, "a public key in PEM"),
        (private_pem(RSA), "only checks tokens"),
        (private_pem(EC), "only checks tokens"),
        (pem(SMALL), "RSA keys of 2048 bits and more"),
        (pem(ed448.Ed448PrivateKey.generate()), "RSA, the curves"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "RSA, the curves"),
        (pem(dsa.generate_private_key(1024)), "RSA, the curves"),
    ],
    ids=["empty", "no PEM", "private RSA", "private EC", "1024 bits", "Ed448", "secp256k1", "DSA"],
)
def test_a_file_that_is_no_good_key_is_told(data, allowed):
    """What would be allowed, and nothing of the key."""
    with pytest.raises(ValueError, match=allowed):
        keys.of_pem(data)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {"kty": "oct", "k": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg"},
        jwk(RSA, use="enc"),
        jwk(RSA, key_ops=["encrypt"]),
        jwk(RSA, key_ops=7),
        jwk(RSA, kty=["RSA"]),
        jwk(RSA, kty={"RSA": 1}),
        jwk(RSA, kid=7),
        jwk(RSA, n=None),
        jwk(RSA, n="!"),
        jwk(RSA, e=7),
        jwk(SMALL),
        jwk(EC, x="AA"),
        jwk(EC, crv="P-999"),
        jwk(EC, crv=None),
        jwk(ED, x="AA"),
        jwk(ED, crv="X25519"),
    ],
    ids=range(19),
)
def test_what_is_no_good_key_of_a_set_is_refused(bad):
    """A secret first of all: whoever can fetch the set could sign with it."""
    with pytest.raises(ValueError, match=r"."):
        keys.of_jwk(bad)


def test_a_key_of_a_set_may_be_for_one_algorithm_only():
    """Its `alg` narrows what its type allows, and never widens it."""
    assert list(keys.of_jwk(jwk(RSA, alg="PS256")).uses) == ["PS256"]
    assert list(keys.of_jwk(jwk(RSA, alg="HS256")).uses) == []
    assert keys.of_jwk(jwk(RSA, kid="a", use="sig", key_ops=["verify"])).kid == "a"


def test_only_public_parts_of_a_key_are_read():
    """A set that is so careless as to hold a private key gives us its public half."""
    private = {**json.loads(RSAAlgorithm.to_jwk(RSA)), "key_ops": ["sign", "verify"]}
    assert "d" in private
    assert isinstance(keys.of_jwk(private).uses["RS256"], rsa.RSAPublicKey)


def ring(*kids: str, **options: object) -> KeyRing:
    return KeyRing([keys.of_secret(f"{number}" * 32, kid) for number, kid in enumerate(kids)], **options)


def test_a_kid_finds_its_key_and_no_other():
    """By dictionary; of another type's algorithm it has nothing."""
    found = ring("a", "b")
    assert found.candidates("b", "HS256") == (b"1" * 32,)
    assert found.candidates("b", "RS256") == ()
    assert found.knows("b") and not found.knows("c")
    mixed = KeyRing([keys.of_secret("x" * 32), keys.of_pem(pem(RSA), "b")])
    assert mixed.candidates("b", "HS256") == (), "nor a key without a name"


@pytest.mark.parametrize("kid", ["c", "../../dev/null", "' OR 1=1 --", "", 7, ["a"], {"a": 1}])
def test_another_kid_finds_nothing_where_all_keys_have_names(kid):
    """Whatever it says, it is looked up and nothing else."""
    assert not ring("a", "b").candidates(kid, "HS256")


@pytest.mark.parametrize("algorithm", [None, 7, ["HS256"], "none", "hs256", ""])
def test_an_algorithm_that_is_none_finds_nothing(algorithm):
    assert not ring("").candidates(None, algorithm)


def test_keys_without_a_name_are_tried_in_their_order():
    """With and without a kid in the token; a token without one is tried with named keys too, four keys at most."""
    found = ring("", "a", "")
    assert list(found.candidates("unknown", "HS256")) == [b"0" * 32, b"2" * 32]
    assert list(found.candidates(None, "HS256")) == [b"0" * 32, b"1" * 32, b"2" * 32]
    assert len(ring(*[""] * 9).candidates(None, "HS256")) == len(ring(*[""] * 9).candidates("x", "HS256")) == 4


def test_the_allow_list_narrows_what_keys_are_good_for():
    """Also to nothing; then no token could be good."""
    both = [keys.of_secret("x" * 64), keys.of_pem(pem(RSA))]
    assert KeyRing(both, ["HS512", "RS256"]).algorithms == ["HS512", "RS256"]
    assert not KeyRing(both, ["EdDSA"]) and not KeyRing() and KeyRing(both)
