"""Services: what of a client's address the log may have."""

from __future__ import annotations

from dataclasses import replace

from tests.test_session import Rig


def test_addresses_are_in_the_log_where_the_operator_wants_them() -> None:
    """By default a dash stands for each; a Unix socket has no address, and is called what it is."""
    services = Rig().services
    assert services.shown("192.0.2.1") == services.shown("") == "-"
    shown = replace(services, log_addresses=True)
    assert (shown.shown("192.0.2.1"), shown.shown("")) == ("192.0.2.1", "unix")


def test_what_is_not_given_is_nobody_else_s() -> None:
    """Two workers' services share no bare clients and no counts of connections."""
    one, other = Rig().services, Rig().services
    assert one.sessionless is not other.sessionless and one.quotas is not other.quotas
