"""Certificates: what is refused at the start, which one a client gets, and what a renewed file changes."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from hub import certificates as room
from hub.certificates import Certificates, Pair
from hub.errors import ConfigError
from tests.nodes import until
from tests.pki import DAY, NOW, Authority
from tests.support import FakeClock, async_test


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


def seen(certificates: Certificates, client: ssl.SSLContext, name: str) -> ssl.SSLSocket:
    """A client's side of a handshake, which asks for `name`; closed, but it still knows what was agreed on."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)

    def serve() -> None:
        try:
            certificates.context.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()  # the client's side says what was wrong

    server = threading.Thread(target=serve)
    server.start()
    try:
        return client.wrap_socket(ours, server_hostname=name)
    finally:
        server.join()


def serial(certificates: Certificates, client: ssl.SSLContext, name: str) -> str:
    with seen(certificates, client, name) as sock:
        return sock.getpeercert()["serialNumber"]


def mistake(pair: Pair) -> str:
    with pytest.raises(ConfigError) as caught:
        Certificates([pair])
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(pair.cert, "CERT").replace(pair.key, "KEY")


def test_each_name_has_its_certificate_and_all_others_the_first(authority: Authority, tmp_path: Path) -> None:
    """By the names in the certificates, in any case; a wildcard stands for one label."""
    names = (["a.example"], ["b.example", "*.b.example"])
    issued = [authority.issue(each) for each in names]
    certificates = Certificates([one.write(tmp_path, str(at)) for at, one in enumerate(issued)])
    client = authority.client()
    first, second = serial(certificates, client, "a.example"), serial(certificates, client, "b.example")
    assert first != second
    assert serial(certificates, client, "x.b.example") == second
    assert serial(certificates, client, "B.EXAMPLE") == second
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.example'"):
        seen(certificates, client, "other.example")
    client.check_hostname = False
    assert serial(certificates, client, "other.example") == first
    assert serial(certificates, client, "y.x.b.example") == first


def test_the_end_is_that_of_the_first_to_end(authority: Authority, tmp_path: Path) -> None:
    """In seconds since 1970, whichever is loaded first."""
    days = (20, 9, 15)
    issued = [authority.issue([f"{day}.example"], ends=NOW + day * DAY) for day in days]
    certificates = Certificates([one.write(tmp_path, str(at)) for at, one in enumerate(issued)])
    assert certificates.ends_at == pytest.approx((NOW + 9 * DAY).timestamp(), abs=1)


def test_what_is_spoken(authority: Authority, tmp_path: Path) -> None:
    """TLS 1.3, or 1.2 with ECDHE and AEAD; HTTP/1.1, no compression, no tickets of 1.3."""
    certificates = Certificates([authority.issue().write(tmp_path)])
    client = authority.client()
    client.set_alpn_protocols(["h2", "http/1.1"])
    with seen(certificates, client, "localhost") as sock:
        assert (sock.version(), sock.selected_alpn_protocol(), sock.compression()) == ("TLSv1.3", "http/1.1", None)
    assert certificates.context.num_tickets == 0
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with seen(certificates, client, "localhost") as sock:
        name, version, bits = sock.cipher()
        assert version == "TLSv1.2" and bits >= 128
        assert name.startswith("ECDHE") and name.endswith(("GCM-SHA256", "GCM-SHA384", "CHACHA20-POLY1305"))
    for ciphers in ("AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-SHA384", "DHE-RSA-AES256-GCM-SHA384"):
        client.set_ciphers(ciphers)
        with pytest.raises(ssl.SSLError):
            seen(certificates, client, "localhost")
    options = certificates.context.options
    assert options & ssl.OP_NO_RENEGOTIATION and options & ssl.OP_NO_COMPRESSION


def test_mistakes(authority: Authority, tmp_path: Path) -> None:
    """Each is one line that names the setting."""
    good = authority.issue()
    pair = good.write(tmp_path)
    other = authority.issue().write(tmp_path, "other")
    found = mistake(Pair(pair.cert, other.key))
    key = "tls.certificates[0].key: found KEY"
    assert found == f"{key}, of another certificate; allowed: the key of CERT"
    usable = "allowed: a private key in PEM without a passphrase"
    assert mistake(authority.issue(passphrase=b"pass").write(tmp_path)) == (
        f"{key}, which OpenSSL can't use with it; {usable}"
    )
    Path(pair.key).write_bytes(b"no key\n")
    assert mistake(pair) == f"{key}, which OpenSSL can't use with it; {usable}"
    good.write(tmp_path)
    Path(pair.cert).write_bytes(b"nothing\n")
    cert = "tls.certificates[0].cert: found CERT"
    assert mistake(pair) == f"{cert}, which holds no certificate; allowed: a certificate in PEM"
    os.unlink(pair.cert)
    os.mkfifo(pair.cert)
    assert mistake(pair) == f"{cert}: Not a regular file; allowed: a PEM file that can be read"
    os.unlink(pair.cert)
    assert mistake(pair) == f"{cert}: No such file or directory; allowed: a PEM file that can be read"
    os.unlink(pair.key)
    assert mistake(pair) == f"{key}: No such file or directory; allowed: a file that the hub can read"


@pytest.mark.parametrize(("begins", "ends"), [(NOW - 9 * DAY, NOW - DAY), (NOW + DAY, NOW + 9 * DAY)])
def test_a_certificate_that_is_not_valid_now_is_a_mistake(begins, ends, authority: Authority, tmp_path: Path) -> None:
    """It has ended, or has not begun; the line says when."""
    span = f"valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
    assert mistake(authority.issue(begins=begins, ends=ends).write(tmp_path)) == (
        f"tls.certificates[0].cert: found CERT, {span}; allowed: a certificate that is valid now"
    )


def test_a_key_that_others_can_read_is_a_mistake(authority: Authority, tmp_path: Path) -> None:
    """The world, or the group of a file that is the hub's own."""
    pair = authority.issue().write(tmp_path)
    os.chmod(pair.key, 0o644)
    assert mistake(pair) == (
        "tls.certificates[0].key: found KEY with mode 0644; allowed: 0600, or 0640 where its owner is not the hub's"
        " user"
    )


def test_all_mistakes_are_told_at_once(authority: Authority, tmp_path: Path) -> None:
    """A line for each pair, with its number."""
    pair = authority.issue().write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Certificates([Pair("/nowhere", pair.key), pair, Pair(pair.cert, "/nowhere")])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "tls.certificates[0].cert",
        "tls.certificates[2].key",
    ]


@pytest.mark.expects_log
def test_one_that_ends_soon_is_worth_a_line(authority: Authority, tmp_path: Path, caplog) -> None:
    """Within a week."""
    ends = NOW + 3 * DAY
    Certificates([authority.issue(ends=ends).write(tmp_path)])
    assert [record.getMessage().partition(" ends on ")[2] for record in caplog.records] == [
        f"{ends:%Y-%m-%d %H:%M} UTC"
    ]


@async_test
async def test_a_renewed_certificate_is_used_and_old_connections_live_on(
    authority: Authority, tmp_path: Path, caplog
) -> None:
    """Within reload_s; a handshake that has begun ends with what it began with."""
    caplog.set_level("INFO")
    certificates = Certificates([authority.issue().write(tmp_path)])
    client = authority.client()
    old = serial(certificates, client, "localhost")
    before = certificates.context
    certificates.watch(0.01)
    try:
        authority.issue().write(tmp_path)
        await until(lambda: certificates.context is not before)
    finally:
        certificates.close()
    assert serial(certificates, client, "localhost") != old
    assert [record.getMessage() for record in caplog.records] == ["certificates were loaded anew"]


@pytest.mark.expects_log
def test_what_is_no_good_changes_nothing_and_is_told_once(authority: Authority, tmp_path: Path, caplog) -> None:
    """A certificate that came before its key, say; once the key is there, both count."""
    pair = authority.issue(["a.example"]).write(tmp_path)
    certificates = Certificates([pair])
    client = authority.client()
    old = serial(certificates, client, "a.example")
    new = authority.issue(["b.example"])
    Path(pair.cert).write_bytes(new.cert)
    for _ in range(3):
        certificates.refresh()
        assert serial(certificates, client, "a.example") == old
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("certificates stay as they were: tls.certificates[0].key: found ")
    Path(pair.key).write_bytes(new.key)
    certificates.refresh()
    assert serial(certificates, client, "b.example") != old


@pytest.mark.expects_log
def test_one_that_came_too_early_counts_from_when_it_is_valid(authority: Authority, tmp_path: Path, caplog) -> None:
    """Its files don't change once more for that; one line says that it is not yet, and none in between."""
    caplog.set_level("INFO")
    clock = FakeClock(NOW.timestamp())
    certificates = Certificates([authority.issue().write(tmp_path)], clock=FakeClock(), wall_clock=clock)
    before = certificates.context
    authority.issue(begins=NOW + DAY).write(tmp_path)
    certificates.refresh()
    clock.advance(DAY.total_seconds() - 2)
    certificates.refresh()
    assert certificates.context is before
    clock.advance(2)
    certificates.refresh()
    assert certificates.context is not before
    after = certificates.context
    certificates.refresh()
    assert certificates.context is after
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_a_context_does_not_grow_old(authority: Authority, tmp_path: Path) -> None:
    """Its key of TLS 1.2 tickets goes with it; files that are the same are no reason to say anything."""
    clock = FakeClock()
    certificates = Certificates([authority.issue().write(tmp_path)], clock=clock)
    before = certificates.context
    clock.advance(room.RENEW_S - 1)
    certificates.refresh()
    assert certificates.context is before
    clock.advance(2)
    certificates.refresh()
    assert certificates.context is not before


def test_contents_that_were_read_by_another_process_are_presented_once_they_are_taken(
    authority: Authority, tmp_path: Path
) -> None:
    """Prepared, they change nothing; the files need not be there any more. For each name its certificate."""
    first = authority.issue(["a.example"]).write(tmp_path, "a")
    found = Certificates([first])
    before = serial(found, authority.client(), "a.example")
    pairs = [authority.issue([name]).write(tmp_path, name) for name in ("a.example", "b.example")]
    contents = room.read_contents(pairs)
    for path in tmp_path.glob("*.key.pem"):
        path.unlink()
    descriptors = os.listdir("/proc/self/fd")
    loaded = found.prepare(pairs, contents)
    assert os.listdir("/proc/self/fd") == descriptors
    assert serial(found, authority.client(), "a.example") == before
    found.take(loaded)
    names = [serial(found, authority.client(), name) for name in ("a.example", "b.example")]
    assert before not in names and len(set(names)) == 2


def test_files_that_changed_since_they_were_read_are_loaded_by_the_next_look(
    authority: Authority, tmp_path: Path
) -> None:
    """And those that did not are not."""
    pair = authority.issue(["a.example"]).write(tmp_path)
    found = Certificates([pair])
    contents = room.read_contents([pair])
    found.take(found.prepare([pair], contents))
    taken = found.context
    found.refresh()
    assert found.context is taken
    authority.issue(["a.example"]).write(tmp_path)
    found.refresh()
    assert found.context is not taken


def test_contents_of_a_file_that_is_none_are_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.certificates\[0\]\.cert: found /nowhere: No such file"):
        room.read_contents([Pair("/nowhere", "/nowhere.key")])
