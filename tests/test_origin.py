"""Which web pages may connect."""

from __future__ import annotations

import pytest

from hub.certificates import Certificates
from hub.origin import Origins, allowed
from tests.emulated import http
from tests.openings import GOOD, OPENINGS, status_of
from tests.pki import Authority
from tests.plane import plane
from tests.support import async_test

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


@pytest.mark.parametrize(
    ("origin", "verdict"),
    [
        (None, True),
        ("https://hub.example", True),
        ("http://hub.example", False),
        ("HTTP://hub.example", False),
        ("wss://hub.example", False),
        ("http://localhost:3000", True),
        ("https://shop.example", True),
    ],
)
def test_of_a_secure_host_only_its_https_pages_are_its_own(origin, verdict):
    """Listed ones say their scheme."""
    assert allowed(origin, "hub.example", LIST, secure=True) is verdict


WILD = Origins({"https://*.shop.example", "http://*.shop.example:3000"})


@pytest.mark.parametrize(
    ("origin", "verdict"),
    [
        ("https://www.shop.example", True),
        ("https://a.b-c.d_e.shop.example", True),
        ("HTTPS://WWW.Shop.Example", True),
        ("http://www.shop.example:3000", True),
        ("https://shop.example", False),
        ("http://www.shop.example", False),
        ("https://www.shop.example:3000", False),
        ("https://www.shop.example:443", False),
        ("https://evil-shop.example", False),
        ("https://shop.example.evil", False),
        ("https://www.shop.example.evil", False),
        ("https://evil.example/.shop.example", False),
        ("https://evil.example#.shop.example", False),
        ("https://evil.example?.shop.example", False),
        ("https://user@www.shop.example", False),
        ("https://.shop.example", False),
        ("https://a..shop.example", False),
        ("https://-.shop.example", False),
        ("https://*.shop.example ", False),
        ("https://www.shop.example\n", False),
        ("https://" + "a." * 130 + "shop.example", False),
        ("null", False),
    ],
)
def test_a_wildcard_means_subdomains_and_nothing_else(origin, verdict):
    """Of any depth, with its scheme and its port; whatever is no plain name is nobody's subdomain."""
    assert allowed(origin, "hub.example", WILD) is verdict


def test_a_list_says_whether_it_is_open_to_all():
    assert Origins({"*"}).any and not WILD.any


@pytest.mark.parametrize("origin", ["https://anybody.example", "null", "file://x", ""])
def test_a_star_lets_all_origins_in(origin):
    assert allowed(origin, "hub.example", {"*"}) is True


PAGES = [
    (None, True),
    ("http://127.0.0.1", True),
    ("https://app.shop.example", True),
    ("https://one.example", True),
    ("https://evil-shop.example", False),
    ("https://app.shop.example.evil", False),
    ("https://shop.example", False),
    ("null", False),
]


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_all_wires_let_the_same_pages_in(valkey_url, prefix, fast):
    """Cross-site hijacking: one list for WebSockets, streams, polls and plain requests; 403 to all other pages."""
    async with plane(valkey_url, prefix, fast=fast, origins=("https://*.shop.example", "https://one.example")) as hub:
        for wire, request in OPENINGS.items():
            for origin, good in PAGES:
                status = await status_of(hub.port, request(Origin=origin))
                assert status in (GOOD if good else {403}), (wire, origin, status)
        posted = http("POST", "/emulation", b"{}", Origin="https://evil.example")
        assert await status_of(hub.port, posted) == 403


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_http_pages_of_the_same_host_stay_out_of_all_wires_with_tls(valkey_url, prefix, tmp_path, fast):
    """Anybody on the way could write such a page; one that is listed may come."""
    authority = Authority(tmp_path)
    certificates = Certificates([authority.issue().write(tmp_path)])
    pages = {"https://127.0.0.1": True, "http://127.0.0.1": False, "http://old.example": True}
    async with plane(valkey_url, prefix, fast=fast, origins=("http://old.example",), certificates=certificates) as hub:
        for wire, request in OPENINGS.items():
            for origin, good in pages.items():
                status = await status_of(hub.port, request(Origin=origin), authority.client())
                assert status in (GOOD if good else {403}), (wire, origin, status)
        posted = http("POST", "/emulation", b"{}", Origin="http://127.0.0.1")
        assert await status_of(hub.port, posted, authority.client()) == 403


@async_test
async def test_a_star_lets_frames_without_an_origin_in_on_all_wires(valkey_url, prefix):
    """'null' as any other; a request then has no rights that a script outside of a browser has not."""
    async with plane(valkey_url, prefix, origins=("*",)) as hub:
        for wire, request in OPENINGS.items():
            assert await status_of(hub.port, request(Origin="null")) in GOOD, wire
    async with plane(valkey_url, prefix) as hub:
        for wire, request in OPENINGS.items():
            assert await status_of(hub.port, request(Origin="null")) == 403, wire
