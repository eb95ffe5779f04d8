"""Keyfiles: the authenticator that settings describe, and which of them is told to be wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hub import auth, keyfiles
from hub.errors import CommandError, ConfigError, ProtocolError
from hub.sections import AuthSettings

from .test_keys import EC, RSA, SMALL, pem, private_pem

SECRET, OLD, OTHER = (f"a secret for tests, of more than 32 bytes, {number}" for number in range(3))


def make(key: object = SECRET, algorithm: str = "HS256", kid: str = "", ttl_s: float = 60, **claims: object) -> str:
    return auth.make("ann", key, ttl_s, time.time(), algorithm, kid, **claims)


def judge(**settings: object) -> auth.Authenticator:
    return keyfiles.authenticator(AuthSettings(**settings), time.time)


def refuses(by: auth.Authenticator, *tokens: str) -> None:
    for token in tokens:
        with pytest.raises(ProtocolError):
            by.verify(token)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """PEM files by name."""
    contents = {
        "rsa": pem(RSA),
        "ec": pem(EC),
        "small": pem(SMALL),
        "private": private_pem(RSA),
        "empty": b"",
        "large": pem(RSA) + b"\n" * 65_536,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    return {name: str(tmp_path / name) for name in [*contents, "missing", "pipe", "directory"]}


def test_both_secrets_are_good_and_no_other():
    """For as long as the old one is in the settings."""
    by = judge(hmac_secret=SECRET, hmac_secret_old=OLD)
    assert by.enabled and by.verify(make()).user == by.verify(make(OLD)).user == "ann"
    refuses(by, make(OTHER))
    refuses(judge(hmac_secret=SECRET), make(OLD))
    assert not judge().enabled


def test_a_file_with_a_kid_is_for_tokens_that_name_it(files):
    """One without is for all."""
    named = judge(keys=[f"a={files['rsa']}"])
    assert named.verify(make(RSA, "RS256", "a")).user == "ann"
    refuses(named, make(RSA, "RS256", "b"))
    assert judge(keys=[files["rsa"]]).verify(make(RSA, "RS256", "b")).user == "ann"
    resolved = AuthSettings().model_copy(update={"keys": [f"={files['rsa']}", f"b=c={files['ec']}"]})
    with pytest.raises(ConfigError, match=r"^auth\.keys\[1\]: found c=/"):
        keyfiles.key_ring(resolved)  # as config leaves them: the path is all that is behind the first sign


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("missing", "No such file or directory; allowed: a PEM file"),
        ("empty", "allowed: a public key in PEM"),
        ("private", "allowed: a public key: the hub only checks tokens"),
        ("small", "allowed: RSA keys of 2048 bits and more"),
        ("pipe", "Not a regular file; allowed: a PEM file"),
        ("directory", "Is a directory; allowed: a PEM file"),
        ("large", "More than 65536 bytes; allowed: a PEM file"),
    ],
)
def test_a_bad_file_is_one_line(name, allowed, files):
    """With its place in the list."""
    with pytest.raises(ConfigError) as error:
        judge(keys=[files["rsa"], f"k={files[name]}"])
    line = str(error.value)
    assert line.startswith(f"auth.keys[1]: found {files[name]}") and allowed in line and "\n" not in line


def test_who_signs_the_key_sets_server_is_read_before_a_start(files):
    """A worker that waited for a pipe, in the middle of a fetch, would serve nobody."""
    for name in ("pipe", "directory", "missing"):
        with pytest.raises(ConfigError, match=r"^auth\.jwks_ca_file: found .*; allowed: a PEM file$"):
            judge(jwks_url="https://idp.example/", jwks_ca_file=files[name])
    assert judge(jwks_url="https://idp.example/", jwks_ca_file=files["rsa"]).expects_keys


def test_only_allowed_algorithms_count(files):
    """The list must leave something that a key can do, unless a set may bring it."""
    by = judge(hmac_secret=SECRET, keys=[files["rsa"]], algorithms=["PS256"])
    assert by.verify(make(RSA, "PS256")).user == "ann"
    refuses(by, make(), make(RSA, "RS256"))
    with pytest.raises(ConfigError, match=r"^auth\.algorithms: found ES256, which none of the keys can do$"):
        judge(hmac_secret=SECRET, algorithms=["ES256"])
    assert judge(hmac_secret=SECRET, algorithms=["ES256"], jwks_url="https://idp.example/").expects_keys


def test_rules_are_those_of_the_settings():
    """Audience, issuer and leeway; the grace goes to sessions."""
    by = judge(hmac_secret=SECRET, audience="hub", issuer="idp", leeway_s=20, expire_grace_s=5)
    assert by.verify(make(aud="hub", iss="idp", ttl_s=-15)).user == "ann" and by.grace_s == 25
    refuses(by, make(aud="hub"), make(iss="idp"))
    assert judge(hmac_secret=SECRET, cache=0).verify(make()) is not None


def test_subscription_tokens_have_their_own_settings():
    """Without them they are made like the others."""
    same = judge(hmac_secret=SECRET, audience="hub")
    assert same.verify_subscription(make(channel="a", aud="hub"), "ann")
    own = judge(hmac_secret=SECRET, subscription_secret=OTHER, subscription_audience="channels")
    assert own.verify_subscription(make(OTHER, channel="a", aud="channels"), "ann")
    for by, token in ((own, make(channel="a", aud="channels")), (own, make(OTHER, channel="a")), (same, make(OTHER))):
        with pytest.raises(CommandError):
            by.verify_subscription(token, "ann")
