"""Urls: addresses as URLs, and URLs that somebody typed."""

from __future__ import annotations

import pytest

from hub.errors import ConfigError
from hub.urls import Endpoint, endpoint_of, parse_endpoint, url
from hub.values import Address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (Address("127.0.0.1", 8000), "ws://127.0.0.1:8000/connection/websocket"),
        (Address("::1", 8000), "ws://[::1]:8000/connection/websocket"),
        (Address("", 0, "/run/hub/hub.sock"), "unix:/run/hub/hub.sock"),
        (Address("127.0.0.1", 443, tls=True), "wss://127.0.0.1:443/connection/websocket"),
        (Address("", 0, name="https", tls=True), "tls:systemd:https"),
    ],
)
def test_an_address_is_written_as_the_url_of_its_endpoint(address: Address, expected: str) -> None:
    """TCP addresses become URLs with the kind's path, Unix ones stay themselves."""
    assert url("ws", address) == expected


def test_a_listener_on_all_addresses_is_reached_by_loopback() -> None:
    """0.0.0.0 and :: are no addresses to connect to."""
    assert endpoint_of("http", Address("0.0.0.0", 8001)) == Endpoint("http://127.0.0.1:8001/api")
    assert endpoint_of("http", Address("::", 8001)) == Endpoint("http://[::1]:8001/api")
    assert endpoint_of("ws", Address("0.0.0.0", 443, tls=True)) == Endpoint("wss://127.0.0.1:443/connection/websocket")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://hub.example", Endpoint("http://hub.example/api")),
        ("http://hub.example:8001/", Endpoint("http://hub.example:8001/api")),
        ("https://hub.example/behind/proxy/api/", Endpoint("https://hub.example/behind/proxy/api")),
        ("unix:/run/hub/api.sock", Endpoint("http://localhost/api", "/run/hub/api.sock")),
    ],
)
def test_a_typed_url_gets_the_usual_path_where_it_has_none(text: str, expected: Endpoint) -> None:
    """A path that was typed stays, without its last slash."""
    assert parse_endpoint("http", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hub.example",
        "ws://hub.example",
        "http://",
        "http://a:port/",
        "http://a:0/api",
        "http://[::/",
        "http://a b/",
        "unix:x",
    ],
)
def test_what_is_no_url_of_the_kind_is_refused(text: str) -> None:
    """The message has what was found and what is allowed."""
    with pytest.raises(ConfigError, match=r"^URL: found .*; allowed: http://HOST:PORT/api"):
        parse_endpoint("http", text)
