"""Where a client is: what proxies say of it, and what nobody else can."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.forwarded import MAX_HOPS, MAX_PROXY_BYTES, Proxied, Proxies, address_of, check_trusted, read_proxy_line

PROXIES = Proxies(["10.0.0.0/8", "2001:db8:1::/48", "unix:"])
NEAR, FAR = ("10.0.0.5", 4711), ("203.0.113.7", 4711)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        (FAR, "", "203.0.113.7"),
        (FAR, "192.0.2.1", "203.0.113.7"),
        (NEAR, "", "10.0.0.5"),
        (NEAR, "192.0.2.1", "192.0.2.1"),
        (NEAR, "192.0.2.1, 203.0.113.7, 10.0.0.9", "203.0.113.7"),
        (NEAR, "192.0.2.1,203.0.113.7,10.0.0.9 ", "203.0.113.7"),
        (NEAR, "10.0.0.1, 203.0.113.7", "203.0.113.7"),
        (NEAR, "10.0.0.7, 10.0.0.9", "10.0.0.7"),
        (NEAR, "192.0.2.1, nonsense, 10.0.0.9", "10.0.0.9"),
        (NEAR, "192.0.2.1, , 10.0.0.9", "10.0.0.9"),
        (NEAR, "unknown", "10.0.0.5"),
        (NEAR, "010.0.0.1", "10.0.0.5"),
        (NEAR, "10.0.0", "10.0.0.5"),
        (NEAR, "203.0.113.7:80", "203.0.113.7"),
        (NEAR, "[2001:db8:2::1]:80", "2001:db8:2::1"),
        (NEAR, "2001:DB8:2:0::1", "2001:db8:2::1"),
        (NEAR, "198.51.100.1, 2001:db8:1::1", "198.51.100.1"),
        (NEAR, "::ffff:203.0.113.7", "203.0.113.7"),
        (NEAR, "192.0.2.1, ::ffff:10.1.1.1", "192.0.2.1"),
        (NEAR, "fe80::1%eth0", "10.0.0.5"),
        (NEAR, "203.0.113.7\u0661", "10.0.0.5"),
        (("::ffff:10.0.0.5", 1, 0, 0), "203.0.113.7", "203.0.113.7"),
        (("2001:db8:1::5", 1, 0, 0), "203.0.113.7", "203.0.113.7"),
        (("2001:db8:2::5", 1, 0, 0), "203.0.113.7", "2001:db8:2::5"),
        (("fe80::1%eth0", 1, 0, 2), "203.0.113.7", "fe80::1"),
        ("", "203.0.113.7", "203.0.113.7"),
        (b"", "", ""),
        (None, "203.0.113.7", "203.0.113.7"),
    ],
)
def test_the_walk_ends_at_the_first_who_is_no_proxy(peer, forwarded, address):
    """From the right, as the left is what the client wrote; ill-formed entries end it at the last good one."""
    assert PROXIES.client(peer, forwarded) == address


def test_a_unix_listeners_peers_are_trusted_where_the_settings_say_so():
    assert Proxies(["10.0.0.0/8"]).client("", "203.0.113.7") == ""
    assert not Proxies().trusts("") and not Proxies().trusts("10.0.0.5") and PROXIES.trusts("")


def test_the_walk_is_bounded():
    """A header of thousands of trusted hops costs no more than the last of them."""
    hops = ["203.0.113.7", *["10.0.0.9"] * MAX_HOPS]
    assert PROXIES.client(NEAR, ",".join(hops)) == "10.0.0.9"
    assert PROXIES.client(NEAR, ",".join(hops[:MAX_HOPS])) == "203.0.113.7"


addresses = st.ip_addresses().map(str)
trusted = st.ip_addresses(v=4, network="10.0.0.0/8").map(str)


@given(st.text(), st.lists(trusted, max_size=5), addresses)
def test_what_a_client_writes_changes_nothing(written, hops, client):
    """Whatever stands left of what the first trusted proxy added: the answer is who spoke to that proxy."""
    real = address_of((client, 1))
    if PROXIES.trusts(real):
        return
    forwarded = ", ".join([written, client, *hops])
    assert PROXIES.client(NEAR, forwarded) == real
    assert PROXIES.client((client, 1), forwarded) == real


@given(st.one_of(st.none(), st.binary(), st.tuples(st.text(), st.integers())), st.text())
def test_no_header_raises_and_every_answer_is_an_address(peer, forwarded):
    """Or the peer's own, as the kernel has it."""
    found = PROXIES.client(peer, forwarded)
    assert found == address_of(peer) or str(ipaddress.ip_address(found)) == found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"PROXY TCP4 203.0.113.7 10.0.0.5 4711 443\r\nGET", Proxied(("203.0.113.7", 4711), 42)),
        (b"PROXY TCP6 2001:DB8::1 2001:db8::2 1 65535\r\n", Proxied(("2001:db8::1", 1), 44)),
        (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 0 0\r\n", Proxied(("203.0.113.7", 0), 39)),
        (b"PROXY UNKNOWN\r\n\x16\x03", Proxied(None, 15)),
        (b"PROXY UNKNOWN whatever ::1 this is\r\n", Proxied(None, 36)),
        (b"", None),
        (b"PRO", None),
        (b"PROXY TCP4 203.0.113.7 10.0.0.5 4711 443\r", None),
        (b"PROXY " + b"9" * 100, None),
    ],
)
def test_a_line_is_read_with_its_size(data, expected):
    """What comes behind it is the connection's own; None while more is needed."""
    assert read_proxy_line(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"G",
        b"PROXX",
        b"\r\n",
        b"\r\n\r\n\x00\r\nQUIT\n",
        b"PROXY " + b"9" * (MAX_PROXY_BYTES - 6),
        b"PROXY UNKNOWN " + b"9" * MAX_PROXY_BYTES + b"\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.5 4711 443\nGET\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.5 4711 65536\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.5 04711 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.5 4711\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.5 4711 443 \r\n",
        b"PROXY  TCP4 203.0.113.7 10.0.0.5 4711 443\r\n",
        b"PROXY TCP4 203.0.113.700 10.0.0.5 4711 443\r\n",
        b"PROXY TCP4 ::1 ::1 4711 443\r\n",
        b"PROXY TCP6 203.0.113.7 10.0.0.5 4711 443\r\n",
        b"PROXY TCP6 ::1 ::g 4711 443\r\n",
        b"proxy TCP4 203.0.113.7 10.0.0.5 4711 443\r\n",
    ],
)
def test_what_can_not_become_a_line_is_refused(data):
    with pytest.raises(ValueError, match="PROXY line"):
        read_proxy_line(data)


def test_a_line_is_read_alike_however_it_is_cut():
    """Every beginning of a good line waits for the rest."""
    line = b"PROXY TCP6 " + b"1111:2222:3333:4444:5555:6666:7777:8888 " * 2 + b"65535 65535\r\n"
    assert len(line) <= MAX_PROXY_BYTES
    assert [read_proxy_line(line[:size]) for size in range(len(line))] == [None] * len(line)
    assert read_proxy_line(line) == Proxied(("1111:2222:3333:4444:5555:6666:7777:8888", 65535), len(line))


@given(st.binary(max_size=150) | st.binary(max_size=120).map(lambda rest: b"PROXY " + rest))
def test_any_bytes_are_a_line_or_not(data):
    """Never another exception; and a verdict is final whatever follows."""
    try:
        found = read_proxy_line(data)
    except ValueError:
        with pytest.raises(ValueError, match="PROXY line"):
            read_proxy_line(data + b"\r\n")
    else:
        assert found is None or read_proxy_line(data + b"more") == found


@given(addresses, addresses, st.integers(0, 65535), st.integers(0, 65535))
def test_every_good_line_is_understood(source, target, port, other):
    """Both addresses of one family."""
    family = 6 if ":" in source else 4
    if (":" in target) != (family == 6):
        target = source
    line = f"PROXY TCP{family} {source} {target} {port} {other}\r\n".encode()
    assert read_proxy_line(line) == Proxied((address_of((source, 0)), port), len(line))


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0", "", "unix", "unix:/run/x", "::1/129", "host", "10.0.0.0/8 "])
def test_a_bad_entry_of_the_settings_is_told(text):
    with pytest.raises(ValueError, match="a network such as"):
        check_trusted(text)


def test_good_entries_pass():
    for text in ("10.0.0.0/8", "10.0.0.1", "::1", "2001:db8::/32", "unix:", "0.0.0.0/0"):
        assert check_trusted(text) == text
