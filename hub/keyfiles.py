"""Keyfiles: the keys that the settings name, and the authenticator that judges by them.

Does: read PEM files, put secrets and files into key rings, say which setting is wrong.
Does not: know key types (keys) or judge tokens (auth), or fetch keys (jwks).
Called by: building (builds the authenticator), serve (checks the files before a start).
Never break: no message holds a secret or what a file says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from . import keys
from .auth import Authenticator, Rules
from .errors import ConfigError
from .keys import Key, KeyRing
from .secret_files import read_regular
from .sections import AuthSettings

MAX_PEM_BYTES = 65_536
"""A key has a few hundred."""
MAX_AUTHORITIES_BYTES = 4_194_304
"""All that a Linux machine trusts take some 200 KB."""


Files = Mapping[str, bytes]
"""What the files of `auth.keys` hold, by path, as `read` has it."""


def authenticator(settings: AuthSettings, now: Callable[[], float], files: Files | None = None) -> Authenticator:
    """Judges by the settings. files: None reads them now. Raises ConfigError."""
    own = KeyRing(map(keys.of_secret, filter(None, [settings.subscription_secret])))
    rules = Rules(settings.audience, settings.issuer, settings.leeway_s)
    subscriptions = rules._replace(audience=settings.subscription_audience or settings.audience)
    found = Authenticator(
        key_ring(settings, files),
        now,
        rules,
        cache=settings.cache,
        grace_s=settings.expire_grace_s,
        subscriptions=(own if own else None, subscriptions),
    )
    found.expects_keys = bool(settings.jwks_url)
    return found


def key_ring(settings: AuthSettings, files: Files | None = None) -> KeyRing:
    """The keys of connection tokens, without those of a JWKS URL. Raises ConfigError."""
    ring = KeyRing(own_keys(settings, files), settings.algorithms)
    if settings.algorithms and ring.keys and not ring and not settings.jwks_url:
        raise ConfigError(f"auth.algorithms: found {', '.join(settings.algorithms)}, which none of the keys can do")
    _check_authorities(settings.jwks_ca_file)
    return ring


def _check_authorities(path: str) -> None:
    # A worker that waits for a named pipe, in the middle of a fetch, would do nothing else any more.
    try:
        if path:
            read_regular(path, MAX_AUTHORITIES_BYTES)
    except OSError as error:
        raise ConfigError(f"auth.jwks_ca_file: found {path}: {error.strerror}; allowed: a PEM file") from None


def own_keys(settings: AuthSettings, files: Files | None = None) -> list[Key]:
    """Secrets first, the newer one before the older, then files in their order. Raises ConfigError."""
    secrets = filter(None, [settings.hmac_secret, settings.hmac_secret_old])
    return [*map(keys.of_secret, secrets), *_of_files(settings.keys, read(settings) if files is None else files)]


def read(settings: AuthSettings) -> Files:
    """The files of the settings, for another process. Raises ConfigError."""
    files = {}
    for index, text in enumerate(settings.keys):
        _, path = _split(text)
        try:
            files[path] = read_regular(path, MAX_PEM_BYTES)
        except OSError as error:
            raise ConfigError(f"auth.keys[{index}]: found {path}: {error.strerror}; allowed: a PEM file") from None
    return files


def _split(text: str) -> tuple[str, str]:
    """'new=/etc/hub/new.pem' -> ('new', '/etc/hub/new.pem')."""
    kid, path = text.split("=", 1) if "=" in text else ("", text)
    return kid, path


def _of_files(texts: list[str], files: Files) -> Iterator[Key]:
    for index, text in enumerate(texts):
        kid, path = _split(text)
        try:
            yield keys.of_pem(files[path], kid)
        except ValueError as error:
            raise ConfigError(f"auth.keys[{index}]: found {path}; allowed: {error}") from None
