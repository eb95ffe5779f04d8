"""Values: what a single text of the settings may be; whole mistakes are in test_config.py."""

from __future__ import annotations

import pytest

from hub.values import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000), "127.0.0.1:8000"),
        ("localhost:0", Address("127.0.0.1", 0), "127.0.0.1:0"),
        ("[::1]:65535", Address("::1", 65535), "[::1]:65535"),
        ("unix:/run/hub.sock", Address("", 0, "/run/hub.sock"), "unix:/run/hub.sock"),
        ("tls:0.0.0.0:443", Address("0.0.0.0", 443, tls=True), "tls:0.0.0.0:443"),
        ("tls:[::]:443", Address("::", 443, tls=True), "tls:[::]:443"),
        ("systemd:hub-http@1.socket", Address("", 0, name="hub-http@1.socket"), "systemd:hub-http@1.socket"),
        ("tls:systemd:https", Address("", 0, name="https", tls=True), "tls:systemd:https"),
    ],
)
def test_addresses_are_read(text: str, address: Address, shown: str) -> None:
    """Each form gives its parts, and its text again."""
    assert parse_address(text) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    "text",
    ["", ":80", "80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "1.2.3:80", "::1:80",
     "[127.0.0.1]:80",
     "[::1]", "example.com:80", "unix:", "unix:relative", "unix:/" + "x" * 107, "127.0.0.1:80 ",
     "tls:", "tls:tls:1.2.3.4:1", "tls:unix:/run/hub.sock", "systemd:", "systemd:a:b", "systemd:a b", "systemd:tls:a"],
)  # fmt: skip
def test_bad_addresses_are_refused(text: str) -> None:
    """Nothing is guessed: no names, no bare ports, no relative or too long paths."""
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)
