"""Which web pages may connect."""

from __future__ import annotations

import pytest

from hub.origin import allowed

LIST = frozenset({"https://shop.example", "http://localhost:3000"})


@pytest.mark.parametrize(
    ("origin", "host", "verdict"),
    [
        (None, "hub.example", True),
        ("https://hub.example", "hub.example", True),
        ("http://hub.example:8000", "hub.example:8000", True),
        ("HTTPS://HUB.example", "hub.EXAMPLE", True),
        ("https://shop.example", "hub.example", True),
        ("http://localhost:3000", "hub.example", True),
        ("https://shop.example:444", "hub.example", False),
        ("http://shop.example", "hub.example", False),
        ("https://shop.example.evil", "hub.example", False),
        ("https://evil-shop.example", "hub.example", False),
        ("https://hub.example.evil", "hub.example", False),
        ("http://hub.example:8001", "hub.example:8000", False),
        ("null", "hub.example", False),
        ("null", "null", False),
        ("", "", False),
        ("https://", "", False),
        ("file://hub.example", "hub.example", False),
        ("https://[", "[", False),
        ("https://user@hub.example", "hub.example", False),
    ],
)
def test_an_origin_is_judged_by_host_and_list(origin, host, verdict):
    """Absent, same host and listed are allowed, everything else is not."""
    assert allowed(origin, host, LIST) is verdict


@pytest.mark.parametrize("origin", ["https://anybody.example", "null", "file://x", ""])
def test_a_star_lets_all_origins_in(origin):
    assert allowed(origin, "hub.example", {"*"}) is True
